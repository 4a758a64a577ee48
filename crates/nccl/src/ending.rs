//! The calls that end a communicator, on threads of their own: NCCL may stay inside them for ever.
//!
//! `ncclCommAbort` and `ncclCommDestroy` wait for the device, which may wait for something that never comes: a graph
//! that was recorded with the communicator and is not destroyed, another communicator's kernel before theirs. A thread
//! that does not come back in time is left behind with what it works on. NCCL makes the communicator's device current on
//! it.

use crate::error::{ErrorCode, NcclError, Result};
use crate::result::{self, Status};
use crate::state::{Core, Handle};
use crate::wait::{Clock, Wait};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{TryRecvError, channel};
use std::time::Duration;

/// What a thread may take longer than the caller, who stops it.
const MARGIN: Duration = Duration::from_secs(5);

/// Runs `call` on a thread of its own and waits for what it returns, as long as `clock` allows.
fn run<T: Send + 'static>(
    function: &'static str,
    clock: &mut Clock<'_>,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = channel();
    // Nobody listens any more if the wait was given up.
    let body = move || drop(sender.send(call()));
    std::thread::Builder::new()
        .name("syncbn-nccl-end".into())
        .spawn(body)
        .map_err(|cause| no_thread(function, &format!("cannot start a thread: {cause}")))?;
    loop {
        match receiver.try_recv() {
            Ok(returned) => return Ok(returned),
            Err(TryRecvError::Disconnected) => return Err(no_thread(function, "its thread panicked")),
            Err(TryRecvError::Empty) => clock.pause(function)?,
        }
    }
}

#[cold]
fn no_thread(function: &'static str, message: &str) -> NcclError {
    let (code, message) = (ErrorCode::SystemError, message.into());
    NcclError::Call { function, code, message, last_error: String::new() }
}

/// Aborts what `take_…` of `core` gave.
pub(crate) fn abort(core: &Arc<Core>, handle: Handle, clock: &mut Clock<'_>) -> Result<()> {
    let core = core.clone();
    run("ncclCommAbort", clock, move || abort_here(&core, handle))?
}

fn abort_here(core: &Core, handle: Handle) -> Result<()> {
    // SAFETY: the handle was taken out of `core`: no call is or will be made with it, but for one that this ends.
    let aborted = unsafe { result::comm_abort(core.functions(), handle.as_raw()) };
    core.aborted();
    aborted.map(drop)
}

/// Finalizes and destroys. Whatever is in progress is waited for on the thread that began it, see [`Core::settle`]; so
/// that thread also aborts what cannot be finalized.
pub(crate) fn close(core: &Arc<Core>, clock: &mut Clock<'_>) -> Result<()> {
    let (function, stop) = ("ncclCommFinalize", Arc::new(AtomicBool::new(false)));
    // The caller's clock is what counts; this one is only there so that no thread is without.
    let patience = clock.left() + MARGIN;
    let body = {
        let (core, stop) = (core.clone(), stop.clone());
        move || {
            let keep_waiting = || !stop.load(Ordering::Relaxed);
            let mut clock = Clock::start(Wait::at_most(patience).while_true(&keep_waiting));
            let handle = finalize(&core, function, &mut clock).and_then(|()| core.take_to_close(function, &mut clock));
            let handle = match handle {
                Ok(handle) => handle,
                Err(error) => {
                    core.fail(&error);
                    // Either way, what failed before is what the caller is to know.
                    let _ = match core.take_at_once() {
                        Some(handle) => abort_here(&core, handle),
                        // Another thread was faster. It puts away what this one began, which is not to end before.
                        None => core.wait_for_abort(function, &mut Clock::start(Wait::at_most(patience))),
                    };
                    return Err(error);
                }
            };
            // SAFETY: finalized; and the handle was taken out of `core`, so that no call is or will be made with it.
            unsafe { result::comm_destroy(core.functions(), handle.as_raw()) }.map(drop)
        }
    };
    let closed = run(function, clock, body);
    stop.store(true, Ordering::Relaxed);
    closed?
}

fn finalize(core: &Core, function: &'static str, clock: &mut Clock<'_>) -> Result<()> {
    let inside = core.enter(function, clock)?;
    // SAFETY: the handle is ready, and nobody else is inside a call.
    let status = core.call(&inside, function, |handle| unsafe { result::comm_finalize(core.functions(), handle) })?;
    drop(inside);
    if status == Status::InProgress { core.settle_finalized(function, clock) } else { Ok(()) }
}
