//! The watchdog of a communicator: a thread that compares what the ranks call, and ends what cannot end by itself.
//!
//! NCCL's kernels wait for each other on the GPU: where one rank calls something else, stops or dies, the others' would
//! wait for ever. So the ranks' watchdogs exchange, off the path of the calls and over their own connections, which
//! calls each rank has made. A difference, a rank that is lost and a call that is older than the deadline each end the
//! communicator, with the error every later call and every wait for the device gets.

use crate::nccl::call::{CALL_BYTES, Call};
use crate::nccl::enqueue::to_error;
use crate::nccl::group::{Members, Shared};
use crate::nccl::journal::{DIGEST_BYTES, Shown};
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
    /// Whether all ranks still take part in comparisons: they stop together, once one leaves.
    comparing: bool,
}

impl<'a> Watchdog<'a> {
    fn new(shared: &'a Shared) -> Self {
        let digests = vec![0; DIGEST_BYTES * shared.members.ranks.len()];
        Self { shared, digests, compared: 0, comparing: true }
    }

    fn run(mut self) {
        let journal = &self.shared.journal;
        loop {
            for _ in 0..LOOKS {
                journal.sleep(if journal.entries().pending.is_empty() { COMPARE } else { LOOK });
                if let Err(error) = self.look() {
                    return self.shared.fail(error);
                }
                let entries = journal.entries();
                if entries.leaving || entries.pending.is_empty() {
                    break;
                }
            }
            if journal.error().is_some() {
                return;
            }
            // Before the comparison: the other ranks must be told.
            let leaving = journal.entries().leaving;
            if let Err(error) = self.compare() {
                return self.shared.fail(error);
            }
            if leaving {
                return;
            }
        }
    }

    /// Looks at this rank's own calls.
    fn look(&self) -> Result<()> {
        let Shared { members, communicator, journal, .. } = self.shared;
        journal.settle()?;
        let late = {
            let entries = journal.entries();
            entries.pending.front().filter(|p| p.since.elapsed() >= members.timeout).map(|p| (p.sequence, p.call))
        };
        if let Some((sequence, call)) = late {
            return Err(self.late(sequence, call));
        }
        match communicator.async_error() {
            // This rank is leaving, and has still to say so.
            Ok(_) | Err(NcclError::Closed { .. }) => Ok(()),
            Err(error) => Err(to_error(error)),
        }
    }

    /// Compares calls with the other ranks'.
    fn compare(&mut self) -> Result<()> {
        if !self.comparing {
            return Ok(());
        }
        let Shared { members, journal, watch, .. } = self.shared;
        journal.digest(&mut self.digests[members.index * DIGEST_BYTES..][..DIGEST_BYTES]);
        watch.all_gather(&mut self.digests)?;
        let digests: Vec<Shown<'_>> = self.digests.chunks_exact(DIGEST_BYTES).map(Shown::new).collect();
        if let Some(error) = first_difference(members, &digests, self.compared) {
            return Err(error);
        }
        self.compared = digests.iter().map(Shown::issued).min().unwrap_or(0);
        self.comparing = !digests.iter().any(Shown::is_leaving);
        Ok(())
    }

    #[cold]
    fn late(&self, sequence: u64, call: Call) -> Error {
        let members = &self.shared.members;
        let digests = self.digests.chunks_exact(DIGEST_BYTES).map(Shown::new);
        let others = members.ranks.iter().zip(digests).enumerate().filter(|(index, _)| *index != members.index);
        let missing: Vec<(usize, u64)> = others
            .filter(|(_, (_, digest))| digest.issued() < sequence)
            .map(|(_, (&rank, digest))| (rank, digest.issued()))
            .collect();
        let waited =
            format!("{call} (#{sequence}) on rank {} waited {:?}", members.ranks[members.index], members.timeout);
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
