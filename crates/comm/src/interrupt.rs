//! Ending a blocked thread's waits from outside its job: a host language's thread that is being terminated.

use std::cell::Cell;
use std::time::Duration;

/// How often a blocked call asks whether its thread is to stop.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(100);

thread_local! {
    static ASK: Cell<Option<fn() -> bool>> = const { Cell::new(None) };
}

/// From now on, calls that block this thread ask `ask` every [`CHECK_INTERVAL`] and fail with `ERR_ABORTED` once it says
/// true. It must be cheap and must not block.
pub fn set_interrupt(ask: fn() -> bool) {
    ASK.set(Some(ask));
}

/// Whether this thread's waits can be interrupted, and so must not be longer than [`CHECK_INTERVAL`].
pub fn is_interruptible() -> bool {
    ASK.get().is_some()
}

/// Whether this thread is to stop waiting.
pub fn is_interrupted() -> bool {
    ASK.get().is_some_and(|ask| ask())
}
