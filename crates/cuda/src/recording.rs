//! Who else is concerned when a recording is replayed: those whose work it holds and who must see replays, or end them.
//!
//! A communicator is one: its kernels in a graph must stay in order with its other calls, other ranks' watchdogs must
//! see replays, and it cannot be ended while a graph holds work of it.

use crate::capture::Graph;
use crate::device::{Cuda, lock};
use crate::stream::Event;
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::{Duration, Instant};
use syncbn_core::{Error, Result};

/// How long [`GraphHandle::retire`] waits for a launch that is under way.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(1);

/// Somebody whose calls a recording holds.
pub trait Participant: Send + Sync {
    /// The graph was made; keeps `graph` to end it with.
    fn recorded(&self, graph: GraphHandle);

    /// Whether a replay may be enqueued.
    ///
    /// # Errors
    /// Why it may not.
    fn check(&self) -> Result<()>;

    /// A replay of `calls` of this participant's calls is about to be enqueued on the compute stream, which is made to
    /// wait for what must come first. Answers with a number that `replayed` is given.
    fn begin_replay(&self, calls: usize) -> Result<u64>;

    /// What `begin_replay` announced was not enqueued, because of `error`.
    fn replay_failed(&self, error: &Error);

    /// The replay was enqueued, and is over when `done` is.
    fn replayed(&self, number: u64, calls: usize, done: &Arc<Event>);
}

/// A participant and how many of its calls are recorded.
pub(crate) type Party = (Arc<dyn Participant>, usize);

/// Who takes part in the recording under way.
#[derive(Default)]
pub(crate) struct Parties(Mutex<Vec<Party>>);

impl Parties {
    pub(crate) fn take(&self) -> Vec<Party> {
        std::mem::take(&mut *lock(&self.0))
    }
}

impl Cuda {
    /// One call of `participant` was recorded by this thread; nothing happens if it does not record.
    pub fn take_part(&self, participant: &Arc<dyn Participant>) {
        if self.recording().is_none() {
            return;
        }
        let mut parties = lock(&self.0.parties.0);
        match parties.iter_mut().find(|(known, _)| Arc::ptr_eq(known, participant)) {
            Some((_, calls)) => *calls += 1,
            None => parties.push((participant.clone(), 1)),
        }
    }
}

/// A way to end a graph that somebody else owns.
#[derive(Clone, Debug)]
pub struct GraphHandle(pub(crate) Weak<Graph>);

impl GraphHandle {
    /// The graph is never launched again: replays fail with `error`. One that runs is not ended by this. Nothing happens
    /// if the graph is gone. A launch under way is waited for, for a second; after that it is the launch that destroys
    /// what it launched.
    pub fn retire(&self, error: &Error) {
        let Some(graph) = self.0.upgrade() else { return };
        graph.retired.get_or_init(|| error.clone());
        let start = Instant::now();
        loop {
            match graph.executable.try_lock() {
                Ok(executable) => return graph.settle(executable),
                Err(TryLockError::Poisoned(poisoned)) => return graph.settle(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if start.elapsed() < LAUNCH_TIMEOUT => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return,
            }
        }
    }

    /// Whether the graph is still there.
    pub fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}
