//! One communicator: enqueuing, ordering against the compute stream, and its end.

use crate::nccl::call::{Call, Kind};
use crate::nccl::enqueue::{self, to_error};
use crate::nccl::journal::{Journal, Pending};
use crate::nccl::replay::{Graphs, Replays};
use crate::nccl::watchdog;
use crate::storage::OwnedCudaWriting;
use crate::work::Work;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use syncbn_comm::Group;
use syncbn_comm::interrupt::is_interrupted;
use syncbn_core::{Code, DType, Error, ReduceOp, Result};
use syncbn_cuda::{Cuda, CudaBuffer, Event, Participant, Stream};
use syncbn_nccl::{Communicator, NcclError, Wait};

/// How long an abort may take before the group is given up without it.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

static GROUPS: AtomicU64 = AtomicU64::new(0);
static STREAMS: Mutex<Vec<(usize, Arc<Stream>)>> = Mutex::new(Vec::new());

/// The communication stream of a device.
fn communication_stream(cuda: &Cuda) -> Result<Arc<Stream>> {
    let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, stream)) = streams.iter().find(|(ordinal, _)| *ordinal == cuda.ordinal()) {
        return Ok(stream.clone());
    }
    let stream = Arc::new(cuda.new_stream()?);
    streams.push((cuda.ordinal(), stream.clone()));
    Ok(stream)
}

/// The compute stream waits for the collectives of the device's groups so far.
pub(crate) fn join_communication(cuda: &Cuda) -> Result<()> {
    let streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let stream = streams.iter().find(|(ordinal, _)| *ordinal == cuda.ordinal()).map(|(_, stream)| stream.clone());
    drop(streams);
    stream.map_or(Ok(()), |stream| cuda.order(&stream, cuda.stream()))
}

/// Who is in a group, and how long they wait for each other.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    /// The group's name in messages.
    pub(crate) name: String,
    /// This rank's index in the group.
    pub(crate) index: usize,
    /// Global ranks.
    pub(crate) ranks: Vec<usize>,
    /// Deadline of every operation.
    pub(crate) timeout: Duration,
}

/// What callers and the watchdog share.
pub(crate) struct Shared {
    pub(crate) members: Members,
    pub(crate) cuda: Cuda,
    pub(crate) communicator: Communicator,
    pub(crate) journal: Journal,
    pub(crate) graphs: Graphs,
    /// The watchdogs' own connections.
    pub(crate) watch: Arc<Group>,
    /// By what the device knows who reported a fault.
    reporter: u64,
}

impl Shared {
    /// Ends the communicator with `error`: its kernels stop, pending calls and the device's next waits fail.
    pub(crate) fn fail(&self, error: Error) {
        let error = error.with_group(self.members.name.clone()).with_rank(self.members.ranks[self.members.index]);
        if self.journal.fail(&error) {
            self.graphs.retire(&error);
            self.cuda.report_fault(self.reporter, error);
            // Where even this fails, the kernels that hang are NCCL's; the calls and waits that depend on them have
            // their error.
            let _ = self.communicator.abort(Wait::at_most(ABORT_TIMEOUT));
        }
    }
}

/// See the [module documentation](crate::nccl).
pub(crate) struct NcclGroup {
    shared: Arc<Shared>,
    stream: Arc<Stream>,
    /// What graphs with calls of this group are given.
    replays: Arc<dyn Participant>,
    /// The order of calls is that of their numbers.
    turn: Mutex<()>,
    watchdog: Mutex<Option<JoinHandle<()>>>,
    /// Where calls are compared before they are made, if asked for.
    compare_first: Option<Arc<Group>>,
}

impl NcclGroup {
    /// Starts the watchdog. `watch` is the watchdogs' own group; `compare_first` another to compare calls on before
    /// they are made.
    pub(crate) fn new(
        members: Members,
        cuda: &Cuda,
        communicator: Communicator,
        watch: Arc<Group>,
        compare_first: Option<Arc<Group>>,
    ) -> Result<Self> {
        let stream = communication_stream(cuda)?;
        let reporter = GROUPS.fetch_add(1, Ordering::Relaxed) + 1;
        let (cuda, journal) = (cuda.clone(), Journal::default());
        let graphs = Graphs::default();
        let shared = Arc::new(Shared { members, cuda, communicator, journal, graphs, watch, reporter });
        let replays = Arc::new(Replays { shared: shared.clone(), stream: stream.clone() });
        let watchdog = Mutex::new(Some(watchdog::start(shared.clone())?));
        Ok(Self { shared, stream, replays, turn: Mutex::new(()), watchdog, compare_first })
    }

    /// The device it works on.
    pub(crate) fn cuda(&self) -> &Cuda {
        &self.shared.cuda
    }

    /// The communicator, to split.
    pub(crate) fn communicator(&self) -> &Communicator {
        &self.shared.communicator
    }

    /// Fills `slots`, whose own part is written, with every rank's. The compute stream waits.
    pub(crate) fn all_gather(&self, slots: &CudaBuffer) -> Result<()> {
        let data = slots.slice_mut(DType::I32);
        let call =
            Call { kind: Kind::AllGather, dtype: DType::I32, count: data.len() / self.shared.members.ranks.len() };
        self.in_line(call, |communicator, wait| enqueue::all_gather(communicator, &data, &self.stream, wait))
    }

    /// Combines `data` in place. The compute stream waits.
    pub(crate) fn all_reduce(&self, data: &CudaBuffer, dtype: DType, op: ReduceOp) -> Result<()> {
        let data = data.slice_mut(dtype);
        let call = Call { kind: Kind::AllReduce(op), dtype, count: data.len() };
        self.in_line(call, |communicator, wait| enqueue::all_reduce(communicator, &data, op, &self.stream, wait))
    }

    /// Replaces `data` by that of the rank of index `root`. The compute stream waits.
    pub(crate) fn broadcast(&self, data: &CudaBuffer, root: usize) -> Result<()> {
        let views = [(data.slice_mut(DType::I32), root)];
        let call = Call { kind: Kind::Broadcast(root), dtype: DType::I32, count: views[0].0.len() };
        self.in_line(call, |communicator, wait| enqueue::broadcast(communicator, &views, &self.stream, wait))
    }

    /// Combines `data` in place; the compute stream waits when the work is waited for.
    pub(crate) fn start_all_reduce(&self, mut data: OwnedCudaWriting, op: ReduceOp) -> Result<Work> {
        let view = data.slice();
        let dtype = view.dtype();
        if op == ReduceOp::Avg && !dtype.is_float() {
            return Err(Error::expected(Code::DType, "all_reduce", "a floating-point type for avg", dtype));
        }
        let call = Call { kind: Kind::AllReduce(op), dtype, count: view.len() };
        let event =
            self.enqueue(call, |communicator, wait| enqueue::all_reduce(communicator, &view, op, &self.stream, wait))?;
        Ok(self.work(event, data))
    }

    /// Replaces each tensor by that of the rank of its index.
    pub(crate) fn start_broadcast(&self, mut data: Vec<(OwnedCudaWriting, usize)>) -> Result<Work> {
        let views: Vec<_> = data.iter_mut().map(|(guard, root)| (guard.slice(), *root)).collect();
        let Some((first, root)) = views.first() else { return Ok(Work::done()) };
        let (dtype, kind) = (first.dtype(), Kind::Broadcast(*root));
        let call = Call { kind, dtype, count: views.iter().map(|(view, _)| view.len()).sum() };
        let event =
            self.enqueue(call, |communicator, wait| enqueue::broadcast(communicator, &views, &self.stream, wait))?;
        drop(views);
        Ok(self.work(event, data))
    }

    /// A call whose result the compute stream waits for.
    fn in_line(&self, call: Call, run: impl FnOnce(&Communicator, Wait<'_>) -> Result<(), NcclError>) -> Result<()> {
        let event = self.enqueue(call, run)?;
        self.cuda().wait_in_stream(&event.event)?;
        self.watch(event, None);
        Ok(())
    }

    fn work(&self, enqueued: Enqueued, guards: impl Send + 'static) -> Work {
        let work = Work::on_device(self.cuda().clone(), enqueued.event.clone(), Box::new(guards));
        self.watch(enqueued, Some(work.clone()));
        work
    }

    fn watch(&self, enqueued: Enqueued, work: Option<Work>) {
        // What is recorded runs at every replay and is never done before: there is nothing to look at.
        if !self.cuda().is_capturing() {
            let Enqueued { sequence, call, event } = enqueued;
            self.shared.journal.enqueued(Pending { sequence, call, since: Instant::now(), event, work });
        }
    }

    /// Enqueues one call behind the compute stream's work so far.
    fn enqueue(
        &self,
        call: Call,
        run: impl FnOnce(&Communicator, Wait<'_>) -> Result<(), NcclError>,
    ) -> Result<Enqueued> {
        let Shared { members, cuda, communicator, journal, .. } = &*self.shared;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.compare(call)?;
        let sequence = journal.begin(&members.name, call)?;
        cuda.order(cuda.stream(), &self.stream)?;
        cuda.bind()?;
        let keep_waiting = || !is_interrupted();
        let wait = Wait::at_most(members.timeout).while_true(&keep_waiting);
        run(communicator, wait).map_err(|error| self.failed(call, error))?;
        cuda.take_part(&self.replays);
        Ok(Enqueued { sequence, call, event: Arc::new(cuda.record(&self.stream)?) })
    }

    /// With `SYNCBN_DEBUG=detail`, fails before a call that other ranks do not make.
    fn compare(&self, call: Call) -> Result<()> {
        let Some(group) = &self.compare_first else { return Ok(()) };
        watchdog::compare_calls(group, &self.shared.members, call).inspect_err(|error| self.shared.fail(error.clone()))
    }

    #[cold]
    fn failed(&self, call: Call, error: NcclError) -> Error {
        let ended = matches!(error, NcclError::Aborted { .. } | NcclError::Failed { .. });
        // Somebody else ended the communicator while this call waited, and knows why.
        if let Some(first) = self.shared.journal.error().filter(|_| ended) {
            return first.with_operation(call.to_string());
        }
        let error = to_error(error).with_operation(call.to_string());
        self.shared.fail(error.clone());
        self.shared.watch.abort(error.message());
        error
    }

    /// Ends the communicator, on this rank, with `reason`.
    pub(crate) fn abort(&self, reason: &str) {
        self.shared
            .fail(Error::new(Code::Aborted, format!("the group '{}' was aborted: {reason}", self.shared.members.name)));
        self.shared.watch.abort(reason);
    }

    /// Leaves: what is enqueued is finished first, at most until the deadline.
    pub(crate) fn close(&self) {
        let Shared { members, cuda, communicator, journal, watch, .. } = &*self.shared;
        let keep_waiting = || !is_interrupted();
        let text = format!("this capture holds collectives of the group '{}', which was destroyed", members.name);
        self.shared.graphs.retire(&Error::new(Code::Aborted, text).with_group(members.name.clone()));
        if journal.error().is_none() && cuda.bind().is_ok() {
            let closed = communicator.close(Wait::at_most(members.timeout).while_true(&keep_waiting));
            if let Err(error) = closed {
                self.shared.fail(to_error(error));
            }
        }
        journal.leave();
        let watchdog = self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = watchdog {
            // A watchdog that panicked has nothing more to say.
            drop(thread.join());
        }
        watch.close();
        cuda.clear_fault(self.shared.reporter);
    }
}

impl Drop for NcclGroup {
    fn drop(&mut self) {
        if self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.close();
        }
    }
}

/// A call that is on the stream.
struct Enqueued {
    sequence: u64,
    call: Call,
    event: Arc<Event>,
}
