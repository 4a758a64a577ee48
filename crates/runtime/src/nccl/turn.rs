//! Whose turn it is: calls in the order in which they were made, whichever thread carries them out.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use syncbn_comm::interrupt::{CHECK_INTERVAL, is_interrupted};
use syncbn_core::{Code, Error, Result};

#[derive(Default)]
struct State {
    next: u64,
    /// Tickets that are out, the one whose turn it is in front.
    waiting: VecDeque<u64>,
}

/// Hands out [`Ticket`]s. Clones are the same queue.
#[derive(Clone, Default)]
pub(crate) struct Turn(Arc<(Mutex<State>, Condvar)>);

/// A place in the queue, from when it was taken until it is dropped, on whichever thread.
pub(crate) struct Ticket {
    turn: Turn,
    number: u64,
}

impl Turn {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last place in the queue.
    pub(crate) fn take(&self) -> Ticket {
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        state.waiting.push_back(number);
        Ticket { turn: self.clone(), number }
    }
}

impl Ticket {
    /// Waits until all earlier tickets are gone.
    ///
    /// # Errors
    /// [`Code::Timeout`], and [`Code::Aborted`] if this thread is ending; `what` begins the message.
    pub(crate) fn wait(&self, what: impl Display, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        let mut state = self.turn.state();
        while state.waiting.front() != Some(&self.number) {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                let text = format!("{what} waited {timeout:?} for an earlier call of this rank");
                return Err(Error::new(Code::Timeout, text));
            }
            if is_interrupted() {
                return Err(Error::new(Code::Aborted, format!("{what}: this thread is ending")));
            }
            let pause = left.min(CHECK_INTERVAL);
            state = self.turn.0.1.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.turn.state().waiting.retain(|number| *number != self.number);
        self.turn.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn tickets_are_served_in_the_order_they_were_taken() {
        let turn = Turn::default();
        let (first, second, third) = (turn.take(), turn.take(), turn.take());
        first.wait("first", LONG).unwrap();
        let late = third.wait("third", Duration::from_millis(5)).unwrap_err();
        assert_eq!(late.code(), Code::Timeout);
        // Given up before its turn came.
        drop(second);
        let waiting = std::thread::spawn(move || third.wait("third", LONG));
        drop(first);
        waiting.join().unwrap().unwrap();
        turn.take().wait("fourth", LONG).unwrap();
    }
}
