//! Waiting with a deadline and a way out.

use crate::error::{NcclError, Result};
use std::fmt;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a wait only yields before it sleeps between two looks: most calls of NCCL are done within microseconds, less
/// than the shortest sleep.
const SPIN: Duration = Duration::from_micros(100);
/// The first and the longest sleep between two looks. A long wait must not take a core from the thread that it waits for.
const PAUSE: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// How long a call may take, and who may end it earlier.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use std::time::Duration;
/// use syncbn_nccl::Wait;
///
/// let stop = AtomicBool::new(false);
/// let keep_waiting = || !stop.load(Ordering::Relaxed);
/// let wait = Wait::at_most(Duration::from_secs(60)).while_true(&keep_waiting);
/// # assert_eq!(wait.timeout(), Duration::from_secs(60));
/// ```
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    timeout: Duration,
    keep_waiting: Option<&'a dyn Fn() -> bool>,
}

impl<'a> Wait<'a> {
    /// A call that takes longer than `timeout`, counted from when it is made, fails with [`NcclError::Timeout`].
    pub const fn at_most(timeout: Duration) -> Self {
        Self { timeout, keep_waiting: None }
    }

    /// Also asks `keep_waiting` before every pause while the call waits, for long waits about once a millisecond, and fails
    /// with [`NcclError::Cancelled`] once it says no. It must be quick.
    #[must_use]
    pub const fn while_true(self, keep_waiting: &'a dyn Fn() -> bool) -> Self {
        Self { keep_waiting: Some(keep_waiting), ..self }
    }

    /// How long a call may take.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cancellable = if self.keep_waiting.is_some() { ", cancellable" } else { "" };
        write!(f, "Wait({:?}{cancellable})", self.timeout)
    }
}

/// The clock of one call: everything that it waits for takes from the same time.
pub(crate) struct Clock<'a> {
    wait: Wait<'a>,
    start: Instant,
    pause: Duration,
}

impl<'a> Clock<'a> {
    pub(crate) fn start(wait: Wait<'a>) -> Self {
        Self { wait, start: Instant::now(), pause: PAUSE.0 }
    }

    /// The same call's clock for a part that may take half of the time that is left.
    pub(crate) fn half(&self) -> Self {
        let timeout = self.left() / 2;
        Self::start(Wait { timeout, ..self.wait })
    }

    /// What is left of the time.
    pub(crate) fn left(&self) -> Duration {
        self.wait.timeout.saturating_sub(self.start.elapsed())
    }

    /// Waits until it is time to look again; an error once `function` is to be waited for no longer.
    pub(crate) fn pause(&mut self, function: &'static str) -> Result<()> {
        if self.wait.keep_waiting.is_some_and(|keep_waiting| !keep_waiting()) {
            return Err(NcclError::Cancelled { function });
        }
        let (timeout, left) = (self.wait.timeout, self.left());
        if left.is_zero() {
            return Err(NcclError::Timeout { function, timeout });
        }
        if timeout - left < SPIN {
            thread::yield_now();
            return Ok(());
        }
        thread::sleep(self.pause.min(left));
        self.pause = (self.pause * 2).min(PAUSE.1);
        Ok(())
    }

    /// Takes a lock that other threads hold for as long as NCCL takes.
    pub(crate) fn lock<'m, T>(&mut self, mutex: &'m Mutex<T>, function: &'static str) -> Result<MutexGuard<'m, T>> {
        loop {
            match mutex.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => self.pause(function)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const FUNCTION: &str = "ncclAllReduce";

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let timeout = Duration::from_millis(30);
        let start = Instant::now();
        let mut clock = Clock::start(Wait::at_most(timeout));
        let error = loop {
            if let Err(error) = clock.pause(FUNCTION) {
                break error;
            }
        };
        assert_eq!(error, NcclError::Timeout { function: FUNCTION, timeout });
        assert!(start.elapsed() >= timeout);
    }

    #[test]
    fn half_of_a_wait_ends_first_and_asks_the_same_caller() {
        let stop = Cell::new(false);
        let keep_waiting = || !stop.get();
        let clock = Clock::start(Wait::at_most(Duration::from_secs(60)).while_true(&keep_waiting));
        let mut half = clock.half();
        assert!(half.left() <= Duration::from_secs(30) && clock.left() > Duration::from_secs(50));
        stop.set(true);
        assert_eq!(half.pause(FUNCTION), Err(NcclError::Cancelled { function: FUNCTION }));
    }

    #[test]
    fn a_wait_ends_when_the_caller_says_so() {
        let left = Cell::new(3);
        let keep_waiting = || left.replace(left.get() - 1) > 0;
        let mut clock = Clock::start(Wait::at_most(Duration::from_secs(60)).while_true(&keep_waiting));
        for _ in 0..3 {
            clock.pause(FUNCTION).unwrap();
        }
        assert_eq!(clock.pause(FUNCTION), Err(NcclError::Cancelled { function: FUNCTION }));
    }

    #[test]
    fn a_lock_that_is_not_given_back_times_out() {
        let mutex = Mutex::new(());
        let held = mutex.lock().unwrap();
        let timeout = Duration::from_millis(5);
        let error = Clock::start(Wait::at_most(timeout)).lock(&mutex, FUNCTION).unwrap_err();
        assert_eq!(error, NcclError::Timeout { function: FUNCTION, timeout });
        drop(held);
        assert!(Clock::start(Wait::at_most(timeout)).lock(&mutex, FUNCTION).is_ok());
    }
}
