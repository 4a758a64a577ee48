//! What a rank has asked of its communicator, and how that ended: shared by the callers and the watchdog.

use crate::nccl::call::{CALL_BYTES, Call};
use crate::work::Work;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use syncbn_core::{Code, Error, Result};
use syncbn_cuda::Event;

/// Calls a digest shows: those before were compared when they were new, unless a rank ran ahead by more.
pub(crate) const SHOWN: usize = 128;
/// Bytes of a digest: calls made, whether the rank leaves, and the last calls.
pub(crate) const DIGEST_BYTES: usize = 16 + SHOWN * CALL_BYTES;

/// What keeps a call's tensors alive and untouched.
pub(crate) type Guards = dyn Any + Send + Sync;

/// A collective that was enqueued and is not known to be done.
pub(crate) struct Pending {
    pub(crate) sequence: u64,
    pub(crate) call: Call,
    pub(crate) since: Instant,
    pub(crate) event: Arc<Event>,
    /// Who is told.
    pub(crate) work: Option<Work>,
    /// What the work holds, until it is waited for.
    pub(crate) guards: Option<Weak<Guards>>,
}

/// A call this rank is inside.
#[derive(Clone, Copy)]
struct Calling {
    sequence: u64,
    call: Call,
    since: Instant,
    /// How long it may take.
    timeout: Duration,
}

/// Whether this rank makes more calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leaving {
    /// It may.
    #[default]
    No,
    /// It does not, and waits until the others are done too.
    Waits,
    /// It does not, and waits no longer.
    Goes,
}

/// How a rank that leaves has parted from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parting {
    /// All leave, after the same calls.
    Together,
    /// The others stay.
    Alone,
}

#[derive(Default)]
pub(crate) struct Entries {
    /// Calls made so far.
    issued: u64,
    /// The last calls, the newest at the back.
    shown: VecDeque<Call>,
    pub(crate) pending: VecDeque<Pending>,
    /// Noted before NCCL is called, which may not return.
    calling: Option<Calling>,
    error: Option<Error>,
    /// Whether a call has returned `error`.
    reported: bool,
    pub(crate) leaving: Leaving,
    /// A rank that makes no more calls, and how many it made.
    departed: Option<(usize, u64)>,
    parting: Option<Parting>,
    /// Nothing can go wrong any more.
    closed: bool,
}

/// See the [module documentation](self).
#[derive(Default)]
pub(crate) struct Journal {
    entries: Mutex<Entries>,
    changed: Condvar,
}

impl Journal {
    pub(crate) fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps for `period`, or until something is to be looked at sooner.
    pub(crate) fn sleep(&self, period: Duration) {
        let entries = self.entries();
        if entries.leaving == Leaving::No && entries.error.is_none() {
            drop(self.changed.wait_timeout(entries, period));
        }
    }

    /// Fails if `call` cannot be made any more.
    ///
    /// # Errors
    /// What ended the communicator: as it was to the first caller, as [`Code::GroupPoisoned`] to later ones;
    /// [`Code::PeerLost`] if a rank that it needs has left, which changes nothing.
    pub(crate) fn check(&self, group: &str, call: Call) -> Result<()> {
        self.entries().check(group, call)
    }

    /// Notes a call before it is made; its number, from 1. Until [`returned`](Self::returned) this rank is inside it.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn begin(&self, group: &str, call: Call, timeout: Duration) -> Result<u64> {
        let sequence = self.note(group, call)?;
        self.entries().calling = Some(Calling { sequence, call, since: Instant::now(), timeout });
        Ok(sequence)
    }

    /// As [`begin`](Self::begin), for a call that this rank is not inside of: a replay.
    pub(crate) fn note(&self, group: &str, call: Call) -> Result<u64> {
        let mut entries = self.entries();
        entries.check(group, call)?;
        entries.issued += 1;
        if entries.shown.len() == SHOWN {
            entries.shown.pop_front();
        }
        entries.shown.push_back(call);
        Ok(entries.issued)
    }

    /// This rank is inside no call any more.
    pub(crate) fn returned(&self) {
        self.entries().calling = None;
    }

    /// Whether this rank is inside a call, which reports what it ends with.
    pub(crate) fn is_calling(&self) -> bool {
        self.entries().calling.is_some()
    }

    /// The oldest call that has taken too long, and how long it was given.
    pub(crate) fn late(&self, timeout: Duration) -> Option<(u64, Call, Duration)> {
        let entries = self.entries();
        let pending = entries.pending.front().filter(|pending| pending.since.elapsed() >= timeout);
        let calling = entries.calling.filter(|calling| calling.since.elapsed() >= calling.timeout);
        let pending = pending.map(|pending| (pending.sequence, pending.call, timeout));
        pending.or(calling.map(|calling| (calling.sequence, calling.call, calling.timeout)))
    }

    /// Notes that a call was enqueued; the watchdog is woken, since there is something to watch. If the communicator has
    /// failed meanwhile the call has too: then what kept its tensors, as from [`fail`](Self::fail).
    pub(crate) fn enqueued(&self, pending: Pending) -> Option<Arc<Guards>> {
        let mut entries = self.entries();
        if let Some(error) = &entries.error {
            let error = error.clone();
            drop(entries);
            let guards = pending.guards.and_then(|guards| guards.upgrade());
            pending.work.iter().for_each(|work| work.complete(Err(error.clone())));
            return guards;
        }
        entries.pending.push_back(pending);
        drop(entries);
        self.changed.notify_all();
        None
    }

    /// Ends every pending call with `error`. None if the communicator had failed before, or is closed; else what kept
    /// the calls' tensors: the kernels may write to them until the communicator's abort is over.
    #[must_use]
    pub(crate) fn fail(&self, error: &Error) -> Option<Vec<Arc<Guards>>> {
        let mut entries = self.entries();
        if entries.error.is_some() || entries.closed {
            return None;
        }
        entries.error = Some(error.clone());
        let pending = std::mem::take(&mut entries.pending);
        drop(entries);
        self.changed.notify_all();
        let guards = pending.iter().filter_map(|pending| pending.guards.as_ref()?.upgrade()).collect();
        pending.into_iter().filter_map(|pending| pending.work).for_each(|work| work.complete(Err(error.clone())));
        Some(guards)
    }

    /// What ended the communicator.
    pub(crate) fn error(&self) -> Option<Error> {
        self.entries().error.clone()
    }

    /// This rank makes no more calls.
    pub(crate) fn leave(&self, how: Leaving) {
        self.entries().leaving = how;
        self.changed.notify_all();
    }

    /// Rank `rank` makes no calls after its first `issued`.
    pub(crate) fn depart(&self, rank: usize, issued: u64) {
        let mut entries = self.entries();
        if entries.departed.is_none_or(|(_, known)| issued < known) {
            entries.departed = Some((rank, issued));
        }
    }

    /// Calls made so far.
    pub(crate) fn issued(&self) -> u64 {
        self.entries().issued
    }

    /// How this rank parted is known.
    pub(crate) fn part(&self, how: Parting) {
        self.entries().parting.get_or_insert(how);
        self.changed.notify_all();
    }

    /// How this rank parted; waits up to `period` for it to be known.
    pub(crate) fn parting(&self, period: Duration) -> Option<Parting> {
        let unknown = |entries: &mut Entries| entries.parting.is_none();
        let entries = self.entries();
        let waited = self.changed.wait_timeout_while(entries, period, unknown);
        waited.unwrap_or_else(PoisonError::into_inner).0.parting
    }

    /// From now on nothing fails the group. Calls whose end was not seen end with `error`; what kept their tensors.
    pub(crate) fn close(&self, error: &Error) -> Vec<Arc<Guards>> {
        let guards = self.fail(error).unwrap_or_default();
        self.entries().closed = true;
        guards
    }

    /// Whether [`close`](Self::close) was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.entries().closed
    }

    /// Takes the calls that are done off the list and tells who waits for them.
    pub(crate) fn settle(&self) -> Result<()> {
        loop {
            let mut entries = self.entries();
            let Some(first) = entries.pending.front() else { return Ok(()) };
            if !first.event.is_done()? {
                return Ok(());
            }
            let done = entries.pending.pop_front();
            drop(entries);
            if let Some(work) = done.and_then(|pending| pending.work) {
                work.complete(Ok(()));
            }
        }
    }

    /// What other ranks are shown.
    pub(crate) fn digest(&self, bytes: &mut [u8]) {
        let entries = self.entries();
        bytes.fill(0);
        bytes[..8].copy_from_slice(&entries.issued.to_le_bytes());
        bytes[8] = entries.leaving as u8;
        for (slot, call) in bytes[16..].chunks_exact_mut(CALL_BYTES).zip(&entries.shown) {
            slot.copy_from_slice(&call.encode());
        }
    }
}

impl Entries {
    fn check(&mut self, group: &str, call: Call) -> Result<()> {
        let Some(error) = &self.error else {
            let missing = self.departed.filter(|(_, issued)| self.issued >= *issued);
            return missing.map_or(Ok(()), |(rank, _)| Err(left(group, rank, call, self.issued + 1)));
        };
        if !std::mem::replace(&mut self.reported, true) {
            return Err(error.clone());
        }
        let text = format!("{call}: the group '{group}' is unusable since: {}", error.message());
        let poisoned = Error::new(Code::GroupPoisoned, text).with_group(group);
        Err(error.peer().map_or(poisoned.clone(), |peer| poisoned.with_peer(peer)))
    }
}

/// A call needs a rank that has left.
#[cold]
pub(crate) fn left(group: &str, rank: usize, call: Call, sequence: u64) -> Error {
    let text = format!("rank {rank} left the group '{group}' before {call} (#{sequence})");
    Error::new(Code::PeerLost, text).with_group(group).with_peer(rank)
}

/// What one rank showed.
pub(crate) struct Shown<'a>(&'a [u8]);

impl<'a> Shown<'a> {
    /// A digest of [`DIGEST_BYTES`] bytes.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        assert_eq!(bytes.len(), DIGEST_BYTES);
        Self(bytes)
    }

    /// Calls the rank has made.
    pub(crate) fn issued(&self) -> u64 {
        self.0[..8].iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte))
    }

    /// Whether the rank makes no more.
    pub(crate) fn leaving(&self) -> Leaving {
        match self.0[8] {
            0 => Leaving::No,
            1 => Leaving::Waits,
            _ => Leaving::Goes,
        }
    }

    /// Number of the oldest call it shows.
    pub(crate) fn oldest(&self) -> u64 {
        self.issued().saturating_sub(SHOWN as u64 - 1).max(1)
    }

    /// Call number `sequence`, in the form in which calls are compared.
    pub(crate) fn call(&self, sequence: u64) -> &[u8; CALL_BYTES] {
        let index = (sequence - self.oldest()) as usize;
        self.0[16 + index * CALL_BYTES..].first_chunk().expect("a digest is whole")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nccl::call::Kind;
    use syncbn_core::DType;

    const LONG: Duration = Duration::from_secs(60);

    fn gather(count: usize) -> Call {
        Call { kind: Kind::AllGather, dtype: DType::F32, count, parts: 0 }
    }

    #[test]
    fn a_digest_shows_the_last_calls_under_their_numbers() {
        let (journal, mut bytes) = (Journal::default(), vec![1; DIGEST_BYTES]);
        for (calls, oldest) in [(0, 1), (1, 1), (SHOWN, 1), (SHOWN + 3, 4)] {
            while journal.entries().issued < calls as u64 {
                let next = journal.entries().issued + 1;
                assert_eq!(journal.begin("g", gather(next as usize), LONG).unwrap(), next);
            }
            journal.digest(&mut bytes);
            let shown = Shown::new(&bytes);
            assert_eq!((shown.issued(), shown.oldest(), shown.leaving()), (calls as u64, oldest, Leaving::No));
            for sequence in shown.oldest()..=shown.issued() {
                assert_eq!(Call::decode(shown.call(sequence)), Some(gather(sequence as usize)));
            }
        }
    }

    #[test]
    fn the_first_caller_gets_the_error_and_later_ones_that_there_was_one() {
        let journal = Journal::default();
        assert!(journal.fail(&Error::new(Code::PeerLost, "rank 1 was lost").with_peer(1)).is_some());
        assert!(journal.fail(&Error::new(Code::Timeout, "later")).is_none());
        assert_eq!(journal.begin("g", gather(1), LONG).unwrap_err().code(), Code::PeerLost);
        let second = journal.begin("g", gather(1), LONG).unwrap_err();
        assert_eq!((second.code(), second.peer()), (Code::GroupPoisoned, Some(1)));
        assert!(second.message().contains("rank 1 was lost"));
    }

    #[test]
    fn a_call_is_late_while_it_is_made_too() {
        let journal = Journal::default();
        journal.begin("g", gather(1), Duration::ZERO).unwrap();
        assert_eq!(journal.late(LONG).map(|(sequence, ..)| sequence), Some(1));
        journal.returned();
        assert!(journal.late(LONG).is_none());
    }

    #[test]
    fn calls_that_need_a_rank_that_left_are_refused_and_poison_nothing() {
        let journal = Journal::default();
        journal.begin("g", gather(1), LONG).unwrap();
        journal.depart(3, 2);
        journal.begin("g", gather(1), LONG).unwrap();
        for _ in 0..2 {
            let error = journal.begin("g", gather(7), LONG).unwrap_err();
            assert_eq!((error.code(), error.peer()), (Code::PeerLost, Some(3)));
        }
        assert!(journal.error().is_none());
        assert_eq!(journal.issued(), 2);
    }

    #[test]
    fn what_is_closed_does_not_fail() {
        let journal = Journal::default();
        let closed = Error::new(Code::Aborted, "destroyed");
        assert!(journal.close(&closed).is_empty());
        assert!(journal.fail(&Error::new(Code::Timeout, "late")).is_none());
        assert_eq!(journal.begin("g", gather(1), LONG).unwrap_err().code(), Code::Aborted);
    }
}
