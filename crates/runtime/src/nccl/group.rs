//! One communicator: enqueuing, ordering against the compute stream, and its end.

use crate::nccl::call::{Call, Kind, parts};
use crate::nccl::enqueue::{self, to_error};
use crate::nccl::journal::{Guards, Journal, Leaving, Parting, Pending};
use crate::nccl::replay::{Graphs, Replays};
use crate::nccl::turn::Turn;
use crate::nccl::watchdog;
use crate::storage::OwnedCudaWriting;
use crate::work::Work;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use syncbn_comm::Group;
use syncbn_comm::interrupt::is_interrupted;
use syncbn_core::{Code, DType, Error, ReduceOp, Result};
use syncbn_cuda::{Cuda, CudaBuffer, Event, Participant, Stream};
use syncbn_nccl::{Communicator, NcclError, Wait};

/// How long an abort may take before the group is given up without it.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a rank that leaves waits for the others to do so, at most; and half of the group's timeout at most.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the others have to hear that it does not wait any more: many comparisons.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often a wait of this file looks.
const LOOK: Duration = Duration::from_millis(1);

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
    /// An abort did not come back: kernels may run for ever.
    lost: AtomicBool,
}

impl Shared {
    /// Ends the communicator with `error`: its kernels stop, pending calls and the device's next waits fail. Not once
    /// the group is closed.
    ///
    /// The other ranks are told before the abort, for which they must not have to wait.
    pub(crate) fn fail(&self, error: Error) {
        let error = error.with_group(self.members.name.clone()).with_rank(self.me());
        let Some(guards) = self.journal.fail(&error) else { return };
        self.tell(&error);
        // NCCL cannot end a communicator that a graph holds work of.
        self.graphs.retire(&error);
        // A rank that leaves reads nothing that the group has touched.
        if self.journal.entries().leaving == Leaving::No {
            self.cuda.report_fault(self.reporter, error);
            // Closed meanwhile: nobody would clear it any more.
            if self.journal.is_closed() {
                self.cuda.clear_fault(self.reporter);
            }
        }
        self.end(guards);
    }

    /// Aborts the communicator, if it is there, and only then gives up what keeps the tensors that its kernels write.
    fn end(&self, guards: Vec<Arc<Guards>>) {
        // A recording of this thread holds work of the communicator, too, and cannot come to anything now.
        if self.cuda.is_capturing() {
            self.cuda.abandon_capture();
        }
        if self.lost.load(Ordering::SeqCst) || self.communicator.abort(Wait::at_most(ABORT_TIMEOUT)).is_err() {
            // The kernels that hang are NCCL's, and what they may yet write to must never be used again.
            if !self.lost.swap(true, Ordering::SeqCst) {
                let text = format!("a kernel of NCCL could not be ended (group '{}')", self.members.name);
                self.cuda
                    .report_fault(self.reporter, Error::new(Code::Nccl, text).with_group(self.members.name.clone()));
            }
            guards.into_iter().for_each(std::mem::forget);
        }
    }

    /// Drops what a call that failed would have kept, unless a kernel may still write to it.
    fn give_up<T>(&self, guards: T) {
        if self.lost.load(Ordering::SeqCst) {
            std::mem::forget(guards);
        }
    }

    fn tell(&self, error: &Error) {
        let told = match error.code() {
            // As true for the others as for this rank, and says who is meant.
            Code::Mismatch | Code::Timeout | Code::PeerLost => error.clone(),
            _ => {
                let (me, name) = (self.me(), &self.members.name);
                let text = format!("rank {me} aborted the group '{name}': {}", error.message());
                Error::new(Code::Aborted, text).with_peer(me)
            }
        };
        self.watch.poison(told);
    }

    /// This rank's global number.
    fn me(&self) -> usize {
        self.members.ranks[self.members.index]
    }
}

/// See the [module documentation](crate::nccl).
pub(crate) struct NcclGroup {
    shared: Arc<Shared>,
    stream: Arc<Stream>,
    /// What graphs with calls of this group are given.
    replays: Arc<dyn Participant>,
    /// The order of calls is that of their numbers.
    turn: Turn,
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
        let (graphs, lost, turn) = (Graphs::default(), AtomicBool::new(false), Turn::default());
        let shared = Arc::new(Shared { members, cuda, communicator, journal, graphs, watch, reporter, lost });
        let replays = Arc::new(Replays { shared: shared.clone(), stream: stream.clone(), turn: turn.clone() });
        let watchdog = Mutex::new(Some(watchdog::start(shared.clone())?));
        Ok(Self { shared, stream, replays, turn, watchdog, compare_first })
    }

    /// The device it works on.
    pub(crate) fn cuda(&self) -> &Cuda {
        &self.shared.cuda
    }

    /// The order of calls, for one that another thread is to carry out.
    pub(crate) fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Whether calls are compared before they are made.
    pub(crate) fn compares_first(&self) -> bool {
        self.compare_first.is_some()
    }

    /// The communicator of the members of `group`, if this rank is one. Every rank calls it, having waited for the turn
    /// that it took when the program asked for the group.
    pub(crate) fn split(&self, group: &Group) -> Result<Option<Communicator>> {
        let Shared { members, cuda, journal, .. } = &*self.shared;
        cuda.refuse_in_capture("newGroup")?;
        let (ranks, timeout) = (group.ranks(), group.timeout());
        let call =
            Call { kind: Kind::Split, dtype: DType::I32, count: ranks.len(), parts: parts(ranks.iter().copied()) };
        journal.check(&members.name, call)?;
        self.compare(call)?;
        // For the wait for the stream, and for the split.
        journal.begin(&members.name, call, timeout * 2)?;
        let split = self.split_idle(group, timeout).map_err(|error| self.failed(call, error));
        journal.returned();
        split
    }

    /// NCCL connects the ranks anew, which is not to wait, out of sight, for kernels that may hang.
    fn split_idle(&self, group: &Group, timeout: Duration) -> Result<Option<Communicator>> {
        let Shared { cuda, communicator, .. } = &*self.shared;
        if !self.drain(timeout)? {
            let text = format!("new_group waited {timeout:?} for this rank's earlier calls");
            return Err(Error::new(Code::Timeout, text));
        }
        cuda.bind()?;
        let keep_waiting = || !is_interrupted();
        let (color, key) = (group.rank().map(|_| 0), group.rank().unwrap_or(0) as i32);
        communicator.split(color, key, Wait::at_most(timeout).while_true(&keep_waiting)).map_err(to_error)
    }

    /// Waits until what is enqueued is done; false if it is not in time, or for other reasons not waited for any more.
    fn drain(&self, timeout: Duration) -> Result<bool> {
        // Replays run on the compute stream.
        self.cuda().order(self.cuda().stream(), &self.stream)?;
        let (start, done) = (Instant::now(), self.cuda().record(&self.stream)?);
        while !done.is_done()? {
            if start.elapsed() >= timeout || is_interrupted() || self.shared.journal.error().is_some() {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        Ok(true)
    }

    /// Fills `slots`, whose own part is written, with every rank's. The compute stream waits.
    pub(crate) fn all_gather(&self, slots: &CudaBuffer) -> Result<()> {
        let data = slots.slice_mut(DType::I32);
        let count = data.len() / self.shared.members.ranks.len();
        let call = Call { kind: Kind::AllGather, dtype: DType::I32, count, parts: 0 };
        self.in_line(call, |communicator, wait| enqueue::all_gather(communicator, &data, &self.stream, wait))
    }

    /// Combines `data` in place. The compute stream waits.
    pub(crate) fn all_reduce(&self, data: &CudaBuffer, dtype: DType, op: ReduceOp) -> Result<()> {
        let data = data.slice_mut(dtype);
        let call = Call { kind: Kind::AllReduce(op), dtype, count: data.len(), parts: 0 };
        self.in_line(call, |communicator, wait| enqueue::all_reduce(communicator, &data, op, &self.stream, wait))
    }

    /// Replaces `data` by that of the rank of index `root`. The compute stream waits.
    pub(crate) fn broadcast(&self, data: &CudaBuffer, root: usize) -> Result<()> {
        let views = [(data.slice_mut(DType::I32), root)];
        let call = Call { kind: Kind::Broadcast(root), dtype: DType::I32, count: views[0].0.len(), parts: 0 };
        self.in_line(call, |communicator, wait| enqueue::broadcast(communicator, &views, &self.stream, wait))
    }

    /// Combines `data` in place; the compute stream waits when the work is waited for.
    pub(crate) fn start_all_reduce(&self, mut data: OwnedCudaWriting, op: ReduceOp) -> Result<Work> {
        let view = data.slice();
        let dtype = view.dtype();
        if op == ReduceOp::Avg && !dtype.is_float() {
            return Err(Error::expected(Code::DType, "all_reduce", "a floating-point type for avg", dtype));
        }
        let call = Call { kind: Kind::AllReduce(op), dtype, count: view.len(), parts: 0 };
        let enqueued =
            self.enqueue(call, |communicator, wait| enqueue::all_reduce(communicator, &view, op, &self.stream, wait));
        self.work(enqueued, data)
    }

    /// Replaces each tensor by that of the rank of its index.
    pub(crate) fn start_broadcast(&self, mut data: Vec<(OwnedCudaWriting, usize)>) -> Result<Work> {
        let views: Vec<_> = data.iter_mut().map(|(guard, root)| (guard.slice(), *root)).collect();
        let Some((first, root)) = views.first() else { return Ok(Work::done()) };
        let (dtype, kind) = (first.dtype(), Kind::Broadcast(*root));
        let list = views.iter().flat_map(|(view, root)| [view.dtype() as usize, view.len(), *root]);
        let parts = if views.len() == 1 { 0 } else { parts(list) };
        let call = Call { kind, dtype, count: views.iter().map(|(view, _)| view.len()).sum(), parts };
        let enqueued =
            self.enqueue(call, |communicator, wait| enqueue::broadcast(communicator, &views, &self.stream, wait));
        drop(views);
        self.work(enqueued, data)
    }

    /// A call whose result the compute stream waits for.
    fn in_line(&self, call: Call, run: impl FnOnce(&Communicator, Wait<'_>) -> Result<(), NcclError>) -> Result<()> {
        let event = self.enqueue(call, run)?;
        self.cuda().wait_in_stream(&event.event)?;
        self.watch(event, None, None);
        Ok(())
    }

    /// The work of a call, which keeps `guards` until it is waited for or done.
    fn work(&self, enqueued: Result<Enqueued>, guards: impl Send + Sync + 'static) -> Result<Work> {
        let enqueued = match enqueued {
            Ok(enqueued) => enqueued,
            Err(error) => {
                self.shared.give_up(guards);
                return Err(error);
            }
        };
        let guards = Arc::new(guards);
        let kept: Arc<Guards> = guards.clone();
        let work = Work::on_device(self.cuda().clone(), enqueued.event.clone(), Box::new(guards));
        self.watch(enqueued, Some(work.clone()), Some(Arc::downgrade(&kept)));
        Ok(work)
    }

    fn watch(&self, enqueued: Enqueued, work: Option<Work>, guards: Option<Weak<Guards>>) {
        // What is recorded runs at every replay and is never done before: there is nothing to look at.
        if !self.cuda().is_capturing() {
            let Enqueued { sequence, call, event } = enqueued;
            let since = Instant::now();
            let pending = Pending { sequence, call, since, event, work, guards };
            if let Some(kept) = self.shared.journal.enqueued(pending) {
                // The communicator failed meanwhile; its kernels may be on their way all the same.
                self.shared.end(vec![kept]);
            }
        }
    }

    /// Enqueues one call behind the compute stream's work so far.
    fn enqueue(
        &self,
        call: Call,
        run: impl FnOnce(&Communicator, Wait<'_>) -> Result<(), NcclError>,
    ) -> Result<Enqueued> {
        let Shared { members, cuda, communicator, journal, .. } = &*self.shared;
        let turn = self.turn.take();
        turn.wait(call, members.timeout).inspect_err(|error| self.shared.fail(error.clone()))?;
        journal.check(&members.name, call)?;
        self.compare(call)?;
        cuda.order(cuda.stream(), &self.stream)?;
        cuda.bind()?;
        // Before NCCL is called, which may wait inside for ranks that do not come: the watchdog sees it and ends it.
        let sequence = journal.begin(&members.name, call, members.timeout)?;
        let keep_waiting = || !is_interrupted();
        let wait = Wait::at_most(members.timeout).while_true(&keep_waiting);
        let made = run(communicator, wait).map_err(|error| self.failed(call, to_error(error)));
        journal.returned();
        made?;
        cuda.take_part(&self.replays);
        Ok(Enqueued { sequence, call, event: Arc::new(cuda.record(&self.stream)?) })
    }

    /// With `SYNCBN_DEBUG=detail`, fails before a call that other ranks do not make.
    fn compare(&self, call: Call) -> Result<()> {
        let Some(group) = &self.compare_first else { return Ok(()) };
        watchdog::compare_calls(group, &self.shared.members, call).inspect_err(|error| self.shared.fail(error.clone()))
    }

    #[cold]
    fn failed(&self, call: Call, error: Error) -> Error {
        // Somebody else ended the communicator while this call waited, and knows why.
        if let Some(first) = self.shared.journal.error() {
            // What the call leaves behind is given up by this thread, so the abort is waited for, as it would be below.
            self.shared.end(Vec::new());
            return first.with_operation(call.to_string());
        }
        let error = error.with_operation(call.to_string());
        self.shared.fail(error.clone());
        error
    }

    /// Ends the communicator, on this rank, with `reason`.
    pub(crate) fn abort(&self, reason: &str) {
        self.shared
            .fail(Error::new(Code::Aborted, format!("the group '{}' was aborted: {reason}", self.shared.members.name)));
    }

    /// Leaves: what is enqueued is finished first, at most until the deadline.
    ///
    /// Where the other ranks leave too the communicator is finalized, which newer versions of NCCL do together. Where
    /// they stay it is aborted once its work is done, and they notice only if they need this rank again.
    pub(crate) fn close(&self) {
        let Shared { members, cuda, communicator, journal, watch, .. } = &*self.shared;
        journal.leave(Leaving::Waits);
        let text = format!("this capture holds collectives of the group '{}', which was destroyed", members.name);
        self.shared.graphs.retire(&Error::new(Code::Aborted, text).with_group(members.name.clone()));
        let parting = self.part();
        if journal.error().is_none() && cuda.bind().is_ok() {
            let keep_waiting = || !is_interrupted();
            let wait = Wait::at_most(members.timeout).while_true(&keep_waiting);
            // There is nobody to tell: what was lost is only what nobody waited for. Both failures end in the abort.
            let _ = match parting {
                Parting::Together => communicator.close(wait).map_err(to_error),
                Parting::Alone => self.drain(LEAVE_TIMEOUT.min(members.timeout)).map(drop),
            };
            let _ = journal.settle();
        }
        // Ends the watchdog's wait for the others, if it is in one.
        watch.close();
        self.compare_first.iter().for_each(|group| group.close());
        let text = format!("the group '{}' was destroyed", members.name);
        let guards = journal.close(&Error::new(Code::Aborted, text));
        self.shared.end(guards);
        self.join_watchdog();
        // Kernels that could not be ended may be in the way of the device's streams for ever: waits for it go on to fail.
        if !self.shared.lost.load(Ordering::SeqCst) {
            cuda.clear_fault(self.shared.reporter);
        }
    }

    /// Waits for all ranks to leave: until this rank's calls are done, and a while longer.
    fn part(&self) -> Parting {
        let Shared { members, journal, .. } = &*self.shared;
        let patience = LEAVE_TIMEOUT.min(members.timeout / 2);
        let (start, mut idle, mut going) = (Instant::now(), None, None);
        loop {
            if let Some(parting) = journal.parting(LOOK) {
                return parting;
            }
            if journal.error().is_some() || is_interrupted() {
                return Parting::Alone;
            }
            if idle.is_none() && (journal.entries().pending.is_empty() || start.elapsed() >= members.timeout) {
                idle = Some(Instant::now());
            }
            if going.is_none() && idle.is_some_and(|since: Instant| since.elapsed() >= patience) {
                journal.leave(Leaving::Goes);
                going = Some(Instant::now());
            }
            if going.is_some_and(|since: Instant| since.elapsed() >= FAREWELL) {
                return Parting::Alone;
            }
        }
    }

    /// Waits for the watchdog's end, which is near: nothing it waits for is left.
    fn join_watchdog(&self) {
        let watchdog = self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = watchdog else { return };
        let start = Instant::now();
        while !thread.is_finished() && start.elapsed() < ABORT_TIMEOUT {
            std::thread::sleep(LOOK);
        }
        if thread.is_finished() {
            // A watchdog that panicked has nothing more to say.
            drop(thread.join());
        }
        // Else it is inside a driver that does not answer. It is left behind with what it holds on to, on purpose: to
        // wait for it would be to hang with it.
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
