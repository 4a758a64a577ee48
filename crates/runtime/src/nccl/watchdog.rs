//! The watchdog of a communicator: a thread that compares what the ranks call, and ends what cannot end by itself.
//!
//! NCCL's kernels wait for each other on the GPU: where one rank calls something else, stops or dies, the others' would
//! wait for ever. So the ranks' watchdogs exchange, off the path of the calls and over their own connections, which
//! calls each rank has made. A difference, a rank that is lost and a call that is older than the deadline each end the
//! communicator, with the error every later call and every wait for the device gets. The other ranks are told before
//! the communicator is aborted, which may take long.
//!
//! The watchdogs also agree on the end: a rank that leaves says so and goes on comparing until all leave, and then the
//! communicator is finalized, which newer versions of NCCL do together; or until it waits no longer, and then it
//! goes alone.

use crate::nccl::call::{CALL_BYTES, Call};
use crate::nccl::enqueue::to_error;
use crate::nccl::group::{Members, Shared};
use crate::nccl::journal::{self, DIGEST_BYTES, Leaving, Parting, Shown};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use syncbn_comm::Group;
use syncbn_core::{Code, Error, Result};
use syncbn_nccl::NcclError;

/// How often the ranks compare their calls.
const COMPARE: Duration = Duration::from_millis(50);
/// How often calls under way are looked at.
const LOOK: Duration = Duration::from_millis(1);
/// Looks between two comparisons.
const LOOKS: u32 = (COMPARE.as_millis() / LOOK.as_millis()) as u32;

/// Starts the thread.
pub(crate) fn start(shared: Arc<Shared>) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("syncbn-watchdog".into())
        .spawn(move || Watchdog::new(&shared).run())
        .map_err(|cause| Error::internal(format!("cannot start the watchdog's thread: {cause}")))
}

struct Watchdog<'a> {
    shared: &'a Shared,
    /// Every rank's digest, in the group's order.
    digests: Vec<u8>,
    /// Calls that were compared.
    compared: u64,
    /// Whether all ranks still take part in comparisons: they stop together, once one goes.
    comparing: bool,
}

impl<'a> Watchdog<'a> {
    fn new(shared: &'a Shared) -> Self {
        let digests = vec![0; DIGEST_BYTES * shared.members.ranks.len()];
        Self { shared, digests, compared: 0, comparing: true }
    }

    fn run(mut self) {
        if let Err(error) = self.watch() {
            self.shared.fail(error);
        }
        // Who leaves need not wait for a thread that is gone.
        self.shared.journal.part(Parting::Alone);
    }

    fn watch(&mut self) -> Result<()> {
        let journal = &self.shared.journal;
        loop {
            for _ in 0..LOOKS {
                journal.sleep(if journal.entries().pending.is_empty() { COMPARE } else { LOOK });
                self.look()?;
                let entries = journal.entries();
                if entries.leaving != Leaving::No || entries.pending.is_empty() {
                    break;
                }
            }
            if journal.error().is_some() {
                return Ok(());
            }
            if let Some(parting) = self.compare()? {
                journal.part(parting);
                return Ok(());
            }
        }
    }

    /// Looks at this rank's own calls.
    fn look(&self) -> Result<()> {
        let Shared { members, communicator, journal, .. } = self.shared;
        journal.settle()?;
        if let Some((sequence, call, timeout)) = journal.late(members.timeout) {
            return Err(self.late(sequence, call, timeout));
        }
        match communicator.async_error() {
            // Ended by this rank, which says why.
            Ok(_) | Err(NcclError::Closed { .. } | NcclError::Aborted { .. }) => Ok(()),
            // The call that failed says why, if it is not back yet.
            Err(NcclError::Failed { .. }) if journal.is_calling() => Ok(()),
            Err(error) => Err(to_error(error)),
        }
    }

    /// Compares calls with the other ranks'; how this rank has parted from them, once it has.
    fn compare(&mut self) -> Result<Option<Parting>> {
        let Shared { members, journal, watch, .. } = self.shared;
        if !self.comparing {
            return Ok((journal.entries().leaving != Leaving::No).then_some(Parting::Alone));
        }
        journal.digest(&mut self.digests[members.index * DIGEST_BYTES..][..DIGEST_BYTES]);
        if let Err(error) = watch.all_gather(&mut self.digests) {
            return self.left_without_a_word(error).map(|()| None);
        }
        let digests: Vec<Shown<'_>> = self.digests.chunks_exact(DIGEST_BYTES).map(Shown::new).collect();
        if let Some(error) = first_difference(members, &digests, self.compared) {
            return Err(error);
        }
        self.compared = digests.iter().map(Shown::issued).min().unwrap_or(0);
        let mine = &digests[members.index];
        for (digest, &rank) in digests.iter().zip(&members.ranks) {
            if digest.leaving() == Leaving::No {
                continue;
            }
            journal.depart(rank, digest.issued());
            if mine.issued() > digest.issued() {
                return Err(departed(members, mine, rank, digest.issued()));
            }
        }
        let in_step = digests.iter().all(|digest| digest.issued() == mine.issued());
        if in_step && digests.iter().all(|digest| digest.leaving() != Leaving::No) {
            return Ok(Some(Parting::Together));
        }
        self.comparing = digests.iter().all(|digest| digest.leaving() != Leaving::Goes);
        Ok((!self.comparing && mine.leaving() != Leaving::No).then_some(Parting::Alone))
    }

    /// A rank that could wait no longer for this one to compare has left: no failure, unless a call needs it. What this
    /// rank has enqueued the other has too, or it will be late.
    fn left_without_a_word(&mut self, error: Error) -> Result<()> {
        let Shared { journal, watch, .. } = self.shared;
        let left = error.peer().filter(|&rank| error.code() == Code::PeerLost && watch.has_left(rank));
        let Some(rank) = left else { return Err(error) };
        self.comparing = false;
        journal.depart(rank, journal.issued());
        Ok(())
    }

    #[cold]
    fn late(&self, sequence: u64, call: Call, timeout: Duration) -> Error {
        let members = &self.shared.members;
        let digests = self.digests.chunks_exact(DIGEST_BYTES).map(Shown::new);
        let others = members.ranks.iter().zip(digests).enumerate().filter(|(index, _)| *index != members.index);
        let missing: Vec<(usize, u64)> = others
            .filter(|(_, (_, digest))| digest.issued() < sequence)
            .map(|(_, (&rank, digest))| (rank, digest.issued()))
            .collect();
        let waited = format!("{call} (#{sequence}) on rank {} waited {timeout:?}", members.ranks[members.index]);
        let Some(&(first, _)) = missing.first() else {
            let text = format!("{waited} for the GPU; every rank made the call (group '{}')", members.name);
            return Error::new(Code::Timeout, text);
        };
        let who: Vec<String> =
            missing.iter().map(|(rank, issued)| format!("rank {rank}, which made {issued} calls")).collect();
        let text = format!("{waited} for {} (group '{}')", who.join(" and "), members.name);
        Error::new(Code::Timeout, text).with_peer(first)
    }
}

/// This rank has made calls that rank `rank`, which leaves after `issued` calls, will not make.
#[cold]
fn departed(members: &Members, mine: &Shown<'_>, rank: usize, issued: u64) -> Error {
    let sequence = (issued + 1).max(mine.oldest());
    let call = Call::decode(mine.call(sequence));
    call.map_or_else(
        || Error::internal("a call that this rank did not make"),
        |call| journal::left(&members.name, rank, call, sequence),
    )
}

/// The first call after number `compared` that two ranks show differently.
fn first_difference(members: &Members, digests: &[Shown<'_>], compared: u64) -> Option<Error> {
    let (mine, me) = (digests.get(members.index)?, members.ranks[members.index]);
    digests.iter().zip(&members.ranks).find_map(|(theirs, &rank)| {
        let from = mine.oldest().max(theirs.oldest()).max(compared + 1);
        let to = mine.issued().min(theirs.issued());
        let sequence = (from..=to).find(|&sequence| mine.call(sequence) != theirs.call(sequence))?;
        Some(different(members, sequence, (me, mine.call(sequence)), (rank, theirs.call(sequence))))
    })
}

#[cold]
fn different(
    members: &Members,
    sequence: u64,
    mine: (usize, &[u8; CALL_BYTES]),
    theirs: (usize, &[u8; CALL_BYTES]),
) -> Error {
    let mut calls = [mine, theirs];
    calls.sort_by_key(|(rank, _)| *rank);
    let name = |call: &[u8; CALL_BYTES]| Call::decode(call).map_or("an unknown call".into(), |call| call.to_string());
    let [(a, first), (b, second)] = calls;
    let text = format!(
        "rank {a} called {}; rank {b} called {} (#{sequence}, group '{}')",
        name(first),
        name(second),
        members.name
    );
    Error::new(Code::Mismatch, text).with_peer(theirs.0)
}

/// Fails if the ranks are not about to make the same call; waits for all of them.
pub(crate) fn compare_calls(group: &Group, members: &Members, call: Call) -> Result<()> {
    let mut calls = vec![0; CALL_BYTES * members.ranks.len()];
    let mine = call.encode();
    calls[members.index * CALL_BYTES..][..CALL_BYTES].copy_from_slice(&mine);
    group.all_gather(&mut calls)?;
    let (all, _) = calls.as_chunks::<CALL_BYTES>();
    let other = all.iter().zip(&members.ranks).find(|(theirs, _)| **theirs != mine);
    other.map_or(Ok(()), |(theirs, &rank)| {
        let me = members.ranks[members.index];
        Err(different(members, 0, (me, &mine), (rank, theirs)).with_operation(call.to_string()))
    })
}
