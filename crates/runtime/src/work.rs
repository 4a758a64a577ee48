//! A collective under way: wait for it, ask whether it is done, or be told.

use std::any::Any;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use syncbn_comm::interrupt::{CHECK_INTERVAL, is_interrupted};
use syncbn_core::{Code, Error, Result};
use syncbn_cuda::{Cuda, Event};

type Callback = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Default)]
struct State {
    result: Option<Result<()>>,
    callbacks: Vec<Callback>,
    /// Work on a GPU, until it is waited for or done.
    device: Option<DeviceWork>,
    /// Whether it was made in a recording: it runs at every replay, and is never done before.
    recorded: bool,
    /// Whether the recording waits for it.
    joined: bool,
}

/// What a device still works on.
struct DeviceWork {
    cuda: Cuda,
    event: Arc<Event>,
    /// What keeps its tensors alive and untouched.
    #[expect(dead_code, reason = "held, not read")]
    guards: Box<dyn Any + Send>,
}

/// One collective's outcome, shared by whoever asks.
#[derive(Clone, Default)]
pub struct Work(Arc<(Mutex<State>, Condvar)>);

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("completed", &self.completed()).finish()
    }
}

impl Work {
    /// Work that is done.
    pub(crate) fn done() -> Self {
        let work = Self::default();
        work.complete(Ok(()));
        work
    }

    /// Work that is on a GPU, and done when `event` is; `guards` are kept until then, or until it is waited for.
    pub(crate) fn on_device(cuda: Cuda, event: Arc<Event>, guards: Box<dyn Any + Send>) -> Self {
        let work = Self::default();
        let recorded = cuda.is_capturing();
        *work.state() = State { recorded, device: Some(DeviceWork { cuda, event, guards }), ..State::default() };
        work
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the outcome and tells everybody; called once.
    pub(crate) fn complete(&self, result: Result<()>) {
        // Before the outcome can be seen: who sees it may use the tensors.
        let device = self.state().device.take();
        drop(device);
        let callbacks = {
            let mut state = self.state();
            state.result = Some(result.clone());
            std::mem::take(&mut state.callbacks)
        };
        self.0.1.notify_all();
        callbacks.into_iter().for_each(|callback| callback(result.clone()));
    }

    /// Blocks until the outcome is there. The operation's own deadline bounds the wait, and so does the end of this
    /// thread (see [`syncbn_comm::interrupt`]), with [`Code::Aborted`].
    ///
    /// Work on a GPU is waited for by its compute stream: this returns at once, and what is enqueued later sees the
    /// result.
    pub fn wait(&self) -> Result<()> {
        let mut state = self.state();
        if let Some(work) = state.device.take() {
            let joined = work.cuda.wait_in_stream(&work.event);
            if let Err(error) = joined {
                // The device may still write to what the guards keep.
                state.device = Some(work);
                return Err(error);
            }
            state.joined = state.recorded;
            drop(state);
            drop(work);
            return Ok(());
        }
        if state.joined {
            return Ok(());
        }
        loop {
            if let Some(result) = &state.result {
                return result.clone();
            }
            if is_interrupted() {
                return Err(Error::new(Code::Aborted, "this thread is ending; the operation was not waited for"));
            }
            state = self.0.1.wait_timeout(state, CHECK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the outcome is there.
    pub fn completed(&self) -> bool {
        self.state().result.is_some()
    }

    /// Calls back with the outcome, at once if it is there, else from the thread that makes it.
    pub fn on_complete(&self, callback: impl FnOnce(Result<()>) + Send + 'static) {
        let mut state = self.state();
        if state.recorded {
            drop(state);
            let message = "a collective inside cuda.capture is not done before a replay: expected wait(), got await";
            return callback(Err(Error::new(Code::Capture, message)));
        }
        match state.result.clone() {
            None => state.callbacks.push(Box::new(callback)),
            Some(result) => {
                drop(state);
                callback(result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn waiters_and_callbacks_before_and_after_see_the_outcome() {
        let (work, (sender, receiver)) = (Work::default(), channel());
        work.on_complete({
            let sender = sender.clone();
            move |result| sender.send(result.is_ok()).unwrap()
        });
        let waiter = std::thread::spawn({
            let work = work.clone();
            move || work.wait().is_ok()
        });
        assert!(!work.completed());
        work.complete(Ok(()));
        work.on_complete(move |result| sender.send(result.is_ok()).unwrap());
        assert!(waiter.join().unwrap() && receiver.recv().unwrap() && receiver.recv().unwrap());
    }
}
