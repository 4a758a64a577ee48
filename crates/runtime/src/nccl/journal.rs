//! What a rank has asked of its communicator, and how that ended: shared by the callers and the watchdog.

use crate::nccl::call::{CALL_BYTES, Call};
use crate::work::Work;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use syncbn_core::{Code, Error, Result};
use syncbn_cuda::Event;

/// Calls a digest shows: those before were compared when they were new, unless a rank ran ahead by more.
pub(crate) const SHOWN: usize = 128;
/// Bytes of a digest: calls made, whether the rank leaves, and the last calls.
pub(crate) const DIGEST_BYTES: usize = 16 + SHOWN * CALL_BYTES;

/// A collective that was enqueued and is not known to be done.
pub(crate) struct Pending {
    pub(crate) sequence: u64,
    pub(crate) call: Call,
    pub(crate) since: Instant,
    pub(crate) event: Arc<Event>,
    /// Who is told.
    pub(crate) work: Option<Work>,
}

#[derive(Default)]
pub(crate) struct Entries {
    /// Calls made so far.
    issued: u64,
    /// The last calls, the newest at the back.
    shown: VecDeque<Call>,
    pub(crate) pending: VecDeque<Pending>,
    error: Option<Error>,
    /// Whether a call has returned `error`.
    reported: bool,
    pub(crate) leaving: bool,
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
        if !entries.leaving && entries.error.is_none() {
            drop(self.changed.wait_timeout(entries, period));
        }
    }

    /// Notes a call before it is enqueued; its number, from 1.
    ///
    /// # Errors
    /// What ended the communicator: as it was to the first caller, as [`Code::GroupPoisoned`] to later ones.
    pub(crate) fn begin(&self, group: &str, call: Call) -> Result<u64> {
        let mut entries = self.entries();
        entries.check(group, call)?;
        entries.issued += 1;
        if entries.shown.len() == SHOWN {
            entries.shown.pop_front();
        }
        entries.shown.push_back(call);
        Ok(entries.issued)
    }

    /// Notes that a call was enqueued; the watchdog is woken, since there is something to watch.
    pub(crate) fn enqueued(&self, pending: Pending) {
        let mut entries = self.entries();
        if let (Some(error), Some(work)) = (&entries.error, &pending.work) {
            let error = error.clone();
            drop(entries);
            work.complete(Err(error));
            return;
        }
        entries.pending.push_back(pending);
        drop(entries);
        self.changed.notify_all();
    }

    /// Ends every pending call with `error`; false if the communicator had failed before.
    pub(crate) fn fail(&self, error: &Error) -> bool {
        let mut entries = self.entries();
        if entries.error.is_some() {
            return false;
        }
        entries.error = Some(error.clone());
        let pending = std::mem::take(&mut entries.pending);
        drop(entries);
        self.changed.notify_all();
        pending.into_iter().filter_map(|pending| pending.work).for_each(|work| work.complete(Err(error.clone())));
        true
    }

    /// What ended the communicator.
    pub(crate) fn error(&self) -> Option<Error> {
        self.entries().error.clone()
    }

    /// This rank makes no more calls.
    pub(crate) fn leave(&self) {
        self.entries().leaving = true;
        self.changed.notify_all();
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
        bytes[8] = u8::from(entries.leaving);
        for (slot, call) in bytes[16..].chunks_exact_mut(CALL_BYTES).zip(&entries.shown) {
            slot.copy_from_slice(&call.encode());
        }
    }
}

impl Entries {
    fn check(&mut self, group: &str, call: Call) -> Result<()> {
        let Some(error) = &self.error else { return Ok(()) };
        if !std::mem::replace(&mut self.reported, true) {
            return Err(error.clone());
        }
        let text = format!("{call}: the group '{group}' is unusable since: {}", error.message());
        let poisoned = Error::new(Code::GroupPoisoned, text).with_group(group);
        Err(error.peer().map_or(poisoned.clone(), |peer| poisoned.with_peer(peer)))
    }
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
    pub(crate) fn is_leaving(&self) -> bool {
        self.0[8] != 0
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

    fn gather(count: usize) -> Call {
        Call { kind: Kind::AllGather, dtype: DType::F32, count }
    }

    #[test]
    fn a_digest_shows_the_last_calls_under_their_numbers() {
        let (journal, mut bytes) = (Journal::default(), vec![1; DIGEST_BYTES]);
        for (calls, oldest) in [(0, 1), (1, 1), (SHOWN, 1), (SHOWN + 3, 4)] {
            while journal.entries().issued < calls as u64 {
                let next = journal.entries().issued + 1;
                assert_eq!(journal.begin("g", gather(next as usize)).unwrap(), next);
            }
            journal.digest(&mut bytes);
            let shown = Shown::new(&bytes);
            assert_eq!((shown.issued(), shown.oldest(), shown.is_leaving()), (calls as u64, oldest, false));
            for sequence in shown.oldest()..=shown.issued() {
                assert_eq!(Call::decode(shown.call(sequence)), Some(gather(sequence as usize)));
            }
        }
    }

    #[test]
    fn the_first_caller_gets_the_error_and_later_ones_that_there_was_one() {
        let journal = Journal::default();
        assert!(journal.fail(&Error::new(Code::PeerLost, "rank 1 was lost").with_peer(1)));
        assert!(!journal.fail(&Error::new(Code::Timeout, "later")));
        assert_eq!(journal.begin("g", gather(1)).unwrap_err().code(), Code::PeerLost);
        let second = journal.begin("g", gather(1)).unwrap_err();
        assert_eq!((second.code(), second.peer()), (Code::GroupPoisoned, Some(1)));
        assert!(second.message().contains("rank 1 was lost"));
    }
}
