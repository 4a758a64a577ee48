//! A group's side of graphs that hold collectives of it.
//!
//! A replay enqueues collectives without a call of the group. So the journal is told of it, as one call: the other
//! ranks' watchdogs see ranks that replay differently, and a replay that is not over by the deadline is late like any
//! call. And NCCL cannot end a communicator while a graph holds work of it (its finalize and abort wait for the graph's
//! end), so the group ends the graphs first.

use crate::nccl::call::{Call, Kind};
use crate::nccl::group::Shared;
use crate::nccl::journal::{Leaving, Pending};
use crate::nccl::turn::Turn;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use syncbn_core::{Code, DType, Error, Result};
use syncbn_cuda::{Event, GraphHandle, Participant, Stream};

/// The graphs that hold calls of a group.
#[derive(Default)]
pub(crate) struct Graphs(Mutex<Vec<GraphHandle>>);

impl Graphs {
    fn add(&self, graph: GraphHandle) {
        let mut graphs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        graphs.retain(GraphHandle::is_alive);
        graphs.push(graph);
    }

    /// Ends them; replays fail with `error`.
    pub(crate) fn retire(&self, error: &Error) {
        let graphs = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        graphs.iter().for_each(|graph| graph.retire(error));
    }
}

/// What a graph knows of a group.
pub(crate) struct Replays {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stream: Arc<Stream>,
    /// The order of the group's calls, of which a replay is one.
    pub(crate) turn: Turn,
}

fn call(calls: usize) -> Call {
    Call { kind: Kind::Replay, dtype: DType::I32, count: calls, parts: 0 }
}

impl Participant for Replays {
    fn recorded(&self, graph: GraphHandle) {
        self.shared.graphs.add(graph);
        // The group may have ended since the last call that was recorded.
        if let Err(error) = self.check() {
            self.shared.graphs.retire(&error);
        }
    }

    fn check(&self) -> Result<()> {
        let Shared { journal, members, .. } = &*self.shared;
        if journal.entries().leaving != Leaving::No {
            let text = format!("this capture holds collectives of the group '{}', which was destroyed", members.name);
            return Err(Error::new(Code::Aborted, text).with_group(members.name.clone()));
        }
        journal.error().map_or(Ok(()), Err)
    }

    fn begin_replay(&self, calls: usize) -> Result<u64> {
        let Shared { journal, members, cuda, .. } = &*self.shared;
        let (call, turn) = (call(calls), self.turn.take());
        turn.wait(call, members.timeout)?;
        // No two communicators at work on one device: what runs on the communication stream comes first.
        cuda.order(&self.stream, cuda.stream())?;
        journal.note(&members.name, call)
    }

    fn replay_failed(&self, error: &Error) {
        // The other ranks were shown a replay that does not come.
        self.shared.fail(error.clone());
    }

    fn replayed(&self, number: u64, calls: usize, done: &Arc<Event>) {
        let (call, event) = (call(calls), done.clone());
        let since = Instant::now();
        // A replay keeps no tensors: its graph does.
        self.shared.journal.enqueued(Pending { sequence: number, call, since, event, work: None, guards: None });
    }
}
