//! Waiting with a deadline and a way out.

use crate::error::{NcclError, Result};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// The first and the longest pause between two looks. Most waits end within the first few; a long one must not take a
/// core from the thread that it waits for.
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

    /// Also asks `keep_waiting` about once a millisecond while the call waits, and fails with [`NcclError::Cancelled`]
    /// once it says no. It must be quick.
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

    /// Sleeps until it is time to look again; an error once `function` is to be waited for no longer.
    pub(crate) fn pause(&mut self, function: &'static str) -> Result<()> {
        if self.wait.keep_waiting.is_some_and(|keep_waiting| !keep_waiting()) {
            return Err(NcclError::Cancelled { function });
        }
        let timeout = self.wait.timeout;
        let left = timeout.saturating_sub(self.start.elapsed());
        if left.is_zero() {
            return Err(NcclError::Timeout { function, timeout });
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

/// What is behind a lock that nobody else can hold, whatever happened to those who held it.
pub(crate) fn unlocked<T>(mutex: &mut Mutex<T>) -> &mut T {
    mutex.get_mut().unwrap_or_else(PoisonError::into_inner)
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
