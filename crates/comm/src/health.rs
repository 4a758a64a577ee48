//! Whether a group can still be used: its first error, the ranks that are gone, and the call that is running.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use syncbn_core::error::Error;

/// A rank that takes no further part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    /// Global rank.
    pub(crate) rank: usize,
    /// Calls of the group it completed before it said goodbye; `None` if it vanished.
    pub(crate) completed: Option<u64>,
}

impl Gone {
    /// Whether call `sequence` cannot succeed without the rank.
    fn prevents(self, sequence: u64) -> bool {
        self.completed.is_none_or(|completed| sequence > completed)
    }
}

/// What a rank says when it leaves.
pub(crate) struct Farewell {
    /// Calls it completed.
    pub(crate) completed: u64,
    /// Why the group was unusable already.
    pub(crate) error: Option<Error>,
}

/// Why a call cannot start.
pub(crate) enum Refusal {
    /// An error that no call of this rank has returned yet.
    Fresh(Error),
    /// The error that an earlier call returned.
    Poisoned(Error),
    /// A rank is gone.
    Gone(Gone),
    /// This rank closed the group.
    Closed,
}

#[derive(Default)]
pub(crate) struct Health {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    error: Option<Error>,
    /// Whether a call has returned `error`.
    reported: bool,
    closed: bool,
    active: Option<u64>,
    completed: u64,
    gone: Vec<Gone>,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Call `sequence` starts.
    pub(crate) fn begin(&self, sequence: u64) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        if let Some(error) = state.error.clone() {
            let fresh = !std::mem::replace(&mut state.reported, true);
            return Err(if fresh { Refusal::Fresh(error) } else { Refusal::Poisoned(error) });
        }
        if let Some(gone) = state.gone.iter().find(|gone| gone.prevents(sequence)) {
            return Err(Refusal::Gone(*gone));
        }
        state.active = Some(sequence);
        Ok(())
    }

    /// The running call succeeded.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        state.completed = state.active.take().unwrap_or(state.completed);
    }

    /// A call failed: returns the error to report, which is an earlier one if there is one, and whether it is this.
    pub(crate) fn fail(&self, error: Error) -> (Error, bool) {
        let mut state = self.lock();
        state.active = None;
        state.reported = true;
        let first = state.error.is_none();
        (state.error.get_or_insert(error).clone(), first)
    }

    /// Somebody else found `error`; whether it is the group's first.
    pub(crate) fn poison(&self, error: Error) -> bool {
        let mut state = self.lock();
        let first = state.error.is_none() && !state.closed;
        if first {
            state.error = Some(error);
        }
        self.changed.notify_all();
        first
    }

    /// This rank leaves; `aborted` is what a running call returns. The first time, what to tell the others.
    pub(crate) fn close(&self, aborted: Error) -> Option<Farewell> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.closed, true) {
            return None;
        }
        let farewell = Farewell { completed: state.completed, error: state.error.clone() };
        state.error.get_or_insert(aborted);
        self.changed.notify_all();
        Some(farewell)
    }

    /// A rank is gone; the running call, if it cannot succeed without it.
    pub(crate) fn gone(&self, gone: Gone) -> Option<u64> {
        let mut state = self.lock();
        // Who said goodbye first and then vanished has said goodbye.
        if state.gone.iter().all(|known| known.rank != gone.rank) {
            state.gone.push(gone);
        }
        self.changed.notify_all();
        state.active.filter(|&sequence| gone.prevents(sequence))
    }

    /// Whether a rank said goodbye.
    pub(crate) fn has_left(&self, rank: usize) -> bool {
        self.lock().gone.iter().any(|gone| gone.rank == rank && gone.completed.is_some())
    }

    /// Whether call `sequence` is still running.
    pub(crate) fn is_active(&self, sequence: u64) -> bool {
        self.lock().active == Some(sequence)
    }

    /// Whether the group cannot be used any more.
    pub(crate) fn is_poisoned(&self) -> bool {
        let state = self.lock();
        state.closed || state.error.is_some()
    }

    /// What is known about the end of the connection to `rank`; waits up to `patience` for news.
    pub(crate) fn explain(&self, rank: usize, patience: Duration) -> Option<Gone> {
        let at = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            let gone = state.gone.iter().find(|gone| gone.rank == rank).copied();
            let left = at.saturating_duration_since(Instant::now());
            if gone.is_some() || state.error.is_some() || left.is_zero() {
                return gone;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
