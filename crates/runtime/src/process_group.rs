//! Process groups as the bindings see them: a group of ranks and the one thread its asynchronous calls run on.
//!
//! A group with backend nccl has a communicator beside its connections: tensors on its GPU take that way, those on the
//! CPU the connections. In a group with backend tcp tensors on a GPU go through host memory.
//!
//! Calls keep program order: a blocking call first waits for what is queued and then runs on the caller, which saves
//! the two thread switches that would cost more than a small exchange itself.

use crate::device::{Device, expect_one_device};
use crate::nccl::setup::{self, Means};
use crate::nccl::turn::{Ticket, Turn};
use crate::nccl::{Members, NcclGroup};
use crate::staging::Staging;
use crate::tensor::Tensor;
use crate::work::Work;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use syncbn_comm::{CancelToken, Environment, Group, InitOptions, World};
use syncbn_core::{Code, Collective, DType, Error, ReduceOp, Result};
use syncbn_cuda::{Cuda, CudaBuffer, abandon_captures_of_this_thread, refuse_while_recording};

pub use crate::nccl::setup::Backend;

type Job = Box<dyn FnOnce(&Group) + Send>;

/// What a recording refuses.
const HOST_EXCHANGE: &str = "an exchange between hosts";

/// The thread of a group, started by the first asynchronous call, and the last call it was given.
#[derive(Default)]
struct Queue {
    sender: Option<Sender<Job>>,
    last: Option<Work>,
}

struct Inner {
    world: Arc<World>,
    group: Arc<Group>,
    queue: Mutex<Queue>,
    /// Present with backend nccl, on members.
    nccl: Option<NcclGroup>,
    backend: Backend,
    reason: String,
    staging: Staging,
    /// Groups made from this one, which end with it.
    made: Mutex<Vec<Weak<Inner>>>,
    /// The order in which groups are made, without nccl; with it, that is the order of its calls.
    making: Turn,
}

impl Inner {
    /// This group and those made from it.
    fn collect(self: &Arc<Self>, groups: &mut Vec<Arc<Self>>) {
        groups.push(self.clone());
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.iter().filter_map(Weak::upgrade).for_each(|inner| inner.collect(groups));
    }
}

/// A handle on a group; clones share it.
#[derive(Clone)]
pub struct ProcessGroup(Arc<Inner>);

impl std::fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProcessGroup({}, ranks {:?})", self.name(), self.ranks())
    }
}

/// A group that is to be made; see [`ProcessGroup::start_new_group`].
pub struct NewGroup {
    parent: ProcessGroup,
    ranks: Vec<usize>,
    timeout: Option<Duration>,
    ticket: Ticket,
}

impl std::fmt::Debug for NewGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewGroup(ranks {:?} of {:?})", self.ranks, self.parent)
    }
}

impl NewGroup {
    /// Makes it, together with the other ranks.
    pub fn finish(self) -> Result<ProcessGroup> {
        let Self { parent, ranks, timeout, ticket } = self;
        let inner = &parent.0;
        ticket.wait("new_group", timeout.unwrap_or(parent.timeout()))?;
        parent.wait_idle();
        let group = inner.world.new_group(&ranks, timeout)?;
        let nccl = match &inner.nccl {
            Some(nccl) => split_nccl(&inner.world, nccl, &group)?,
            None => None,
        };
        let made = ProcessGroup::new(inner.world.clone(), group, inner.backend, inner.reason.clone(), nccl);
        inner.made.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&made.0));
        Ok(made)
    }
}

/// What [`ProcessGroup::init`] needs; see [`InitOptions`].
#[derive(Clone, Debug)]
pub struct ProcessGroupOptions {
    /// `env://`, `tcp://host:port` or `file:///path`.
    pub init_method: String,
    /// This rank; from the environment if absent.
    pub rank: Option<usize>,
    /// Ranks in all; from the environment if absent.
    pub world_size: Option<usize>,
    /// Deadline of the rendezvous and of every operation.
    pub timeout: Duration,
    /// Shared secret; from the environment if absent.
    pub token: Option<String>,
    /// How tensors on GPUs are exchanged; if absent nccl where every rank has the means, else tcp.
    pub backend: Option<Backend>,
    /// The GPU backend nccl works on; that of the local rank if absent.
    pub device: Option<Device>,
}

impl ProcessGroup {
    /// Meets the other ranks; blocks until all have come, the deadline passes or `cancel` is used.
    pub fn init(options: &ProcessGroupOptions, cancel: CancelToken) -> Result<Self> {
        let environment = Environment::from_process();
        let init = InitOptions {
            init_method: options.init_method.clone(),
            rank: options.rank,
            world_size: options.world_size,
            timeout: options.timeout,
            token: options.token.clone().map(String::into_bytes),
            cancel: cancel.clone(),
        };
        let world = Arc::new(syncbn_comm::init(&init, &environment)?);
        let group = world.default_group();
        let (wish, device) = (options.backend, options.device.as_ref());
        let (choice, nccl) = setup::cancellable(&world, &cancel, || {
            let choice = setup::agree(&group, wish, device, &environment, world.local_rank())?;
            let nccl = match &choice.means {
                Some(means) => Some(start_nccl(&world, &group, means, &environment, &cancel)?),
                None => None,
            };
            Ok((choice, nccl))
        })?;
        let backend = if nccl.is_some() { Backend::Nccl } else { Backend::Tcp };
        Ok(Self::new(world, group, backend, choice.reason, nccl))
    }

    fn new(world: Arc<World>, group: Arc<Group>, backend: Backend, reason: String, nccl: Option<NcclGroup>) -> Self {
        let (queue, staging, made, making) = (Mutex::default(), Staging::default(), Mutex::default(), Turn::default());
        Self(Arc::new(Inner { world, group, queue, nccl, backend, reason, staging, made, making }))
    }

    /// A group of some global ranks; every rank of the world calls it. Members are numbered in ascending order of their
    /// global ranks, as `torch.distributed.new_group` does.
    pub fn new_group(&self, ranks: &[usize], timeout: Option<Duration>) -> Result<Self> {
        self.start_new_group(ranks, timeout)?.finish()
    }

    /// [`new_group`](Self::new_group) in two parts: this one fixes its place among the calls of this group, and the
    /// other, on whichever thread, makes it. Later calls wait for that.
    ///
    /// # Errors
    /// [`Code::Capture`] in a recording, which would wait for the group's earlier calls as they for it.
    pub fn start_new_group(&self, ranks: &[usize], timeout: Option<Duration>) -> Result<NewGroup> {
        refuse_while_recording("newGroup")?;
        let turn = self.0.nccl.as_ref().map_or(&self.0.making, NcclGroup::turn);
        let mut ranks = ranks.to_vec();
        ranks.sort_unstable();
        Ok(NewGroup { parent: self.clone(), ranks, timeout, ticket: turn.take() })
    }

    /// How tensors on GPUs are exchanged.
    pub fn backend(&self) -> Backend {
        self.0.backend
    }

    /// Why it is that backend, in a sentence.
    pub fn backend_reason(&self) -> &str {
        &self.0.reason
    }

    /// The GPU of backend nccl.
    pub fn device(&self) -> Option<&Cuda> {
        self.0.nccl.as_ref().map(NcclGroup::cuda)
    }

    /// Fails unless the group takes tensors on `cuda`.
    pub fn expect_device(&self, op: &str, cuda: &Cuda) -> Result<()> {
        match self.device() {
            Some(own) if own != cuda => {
                let expected = format!("a tensor on {own}, the device of group '{}'", self.name());
                let error = Error::expected(Code::Device, op, expected, format!("one on {cuda}"));
                Err(error.with_group(self.name()).with_operation(op))
            }
            _ => Ok(()),
        }
    }

    /// Leaves the group; the default group stands for the whole world. Queued calls are finished first.
    pub fn destroy(&self) {
        let made = std::mem::take(&mut *self.0.made.lock().unwrap_or_else(PoisonError::into_inner));
        made.iter().filter_map(Weak::upgrade).for_each(|inner| Self(inner).destroy());
        self.wait_idle();
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).sender = None;
        self.0.nccl.iter().for_each(NcclGroup::close);
        if self.is_default() { self.0.world.destroy() } else { self.0.group.close() }
    }

    /// Ends every wait of this rank on the group, or on all groups of the world through the default group. What has been
    /// destroyed stays as it is.
    ///
    /// The connections come first: the other ranks must not have to wait. Then all communicators at once: they share a
    /// stream, and one whose kernel hangs holds up the abort of another whose kernel is behind it.
    ///
    /// A recording of this thread ends: it may hold work of the communicators, which could not be aborted before it.
    pub fn abort(&self, reason: &str) {
        abandon_captures_of_this_thread();
        if self.is_default() {
            self.0.world.abort(reason)
        } else {
            self.0.group.abort(reason)
        }
        let mut groups = vec![];
        self.0.collect(&mut groups);
        std::thread::scope(|scope| {
            for nccl in groups.iter().filter_map(|group| group.nccl.as_ref()) {
                let builder = std::thread::Builder::new().name("syncbn-abort".into());
                if builder.spawn_scoped(scope, || nccl.abort(reason)).is_err() {
                    nccl.abort(reason);
                }
            }
        });
    }

    /// Whether this group ends when `other` does.
    pub fn ends_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (other.is_default() && Arc::ptr_eq(&self.0.world, &other.0.world))
    }

    fn is_default(&self) -> bool {
        Arc::ptr_eq(&self.0.group, &self.0.world.default_group())
    }

    /// This rank's index in the group, if it is a member.
    pub fn member_rank(&self) -> Option<usize> {
        self.0.group.rank()
    }

    /// Number of members.
    pub fn size(&self) -> usize {
        self.0.group.size()
    }

    /// Global ranks of the members.
    pub fn ranks(&self) -> &[usize] {
        self.0.group.ranks()
    }

    /// Deadline of every operation.
    pub fn timeout(&self) -> Duration {
        self.0.group.timeout()
    }

    /// Name in messages.
    pub fn name(&self) -> &str {
        self.0.group.name()
    }

    /// Fails unless this rank is a member.
    pub fn expect_member(&self, op: &str) -> Result<()> {
        if self.member_rank().is_some() {
            return Ok(());
        }
        let message = format!("{op}: this rank is not in group {} of ranks {:?}", self.name(), self.ranks());
        Err(Error::new(Code::NotInGroup, message).with_group(self.name()).with_operation(op))
    }

    /// The group's index of global rank `rank`.
    pub fn index_of(&self, op: &str, rank: usize) -> Result<usize> {
        self.ranks().iter().position(|&member| member == rank).ok_or_else(|| {
            Error::expected(Code::Argument, op, format!("src among the group's ranks {:?}", self.ranks()), rank)
        })
    }

    fn wait_idle(&self) {
        // Not taken: another thread that waits for it must find it, too.
        let last = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        if let Some(last) = last {
            // Its error belongs to whoever holds the Work, and poisons the group for the next call anyway.
            let _ = last.wait();
        }
    }

    /// Runs `call` here, after everything queued.
    ///
    /// # Errors
    /// Its own; [`Code::Capture`] in a recording, which what hosts exchange is no part of.
    pub fn run<T>(&self, call: impl FnOnce(&Group) -> Result<T>) -> Result<T> {
        refuse_while_recording(HOST_EXCHANGE)?;
        self.wait_idle();
        call(&self.0.group)
    }

    /// Runs `call` on the group's thread, after everything queued.
    ///
    /// # Errors
    /// [`Code::Capture`] in a recording; what `call` says is in the work.
    pub fn submit(&self, call: impl FnOnce(&Group) -> Result<()> + Send + 'static) -> Result<Work> {
        refuse_while_recording(HOST_EXCHANGE)?;
        let work = Work::default();
        let job: Job = Box::new({
            let work = work.clone();
            move |group| {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call(group)));
                work.complete(outcome.unwrap_or_else(|_| Err(Error::internal("a collective panicked"))));
            }
        });
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = queue.sender.get_or_insert_with(|| start_thread(self.0.group.clone()));
        if sender.send(job).is_err() {
            work.complete(Err(Error::internal("the group's thread is gone")));
        }
        queue.last = Some(work.clone());
        Ok(work)
    }
}

fn start_thread(group: Arc<Group>) -> Sender<Job> {
    let (sender, receiver) = channel::<Job>();
    let run = move || receiver.into_iter().for_each(|job| job(&group));
    // Without a thread the sender's channel is closed, which `submit` reports.
    let _ = std::thread::Builder::new().name("syncbn-group".into()).spawn(run);
    sender
}

/// The communicator of a world's default group, and its watchdog.
fn start_nccl(
    world: &World,
    group: &Arc<Group>,
    means: &Means,
    environment: &Environment,
    cancel: &CancelToken,
) -> Result<NcclGroup> {
    let everybody: Vec<usize> = (0..world.size()).collect();
    let watch = world.new_group(&everybody, None)?;
    let compare_first = match environment.get("SYNCBN_DEBUG") {
        Some("detail") => Some(world.new_group(&everybody, None)?),
        _ => None,
    };
    let communicator = setup::meet(group, means, group.timeout(), cancel)?;
    NcclGroup::new(members(group)?, &means.cuda, communicator, watch, compare_first)
}

/// The communicator of the members of `group`, made from that of the world; every rank of the world calls it.
fn split_nccl(world: &World, nccl: &NcclGroup, group: &Arc<Group>) -> Result<Option<NcclGroup>> {
    let (ranks, timeout) = (group.ranks(), Some(group.timeout()));
    let watch = world.new_group(ranks, timeout)?;
    let compare_first = if nccl.compares_first() { Some(world.new_group(ranks, timeout)?) } else { None };
    let communicator = nccl.split(group)?;
    let start = |communicator| NcclGroup::new(members(group)?, nccl.cuda(), communicator, watch, compare_first);
    communicator.map(start).transpose()
}

fn members(group: &Group) -> Result<Members> {
    let index = group.rank().ok_or_else(|| Error::internal("a rank that is no member has no communicator"))?;
    let (name, ranks, timeout) = (group.name().to_string(), group.ranks().to_vec(), group.timeout());
    Ok(Members { name, index, ranks, timeout })
}

/// Combines `data` over the ranks, in place.
pub fn all_reduce(group: &ProcessGroup, data: &Tensor, op: ReduceOp) -> Result<Work> {
    const OP: &str = "all_reduce";
    group.expect_member(OP)?;
    let dtype = data.dtype();
    let Device::Cuda(cuda) = data.device() else {
        let mut guard = data.storage().write_owned()?;
        let work = group.submit(move |group| group.all_reduce(guard.bytes(), dtype, op))?;
        data.storage().bump_version();
        return Ok(work);
    };
    group.expect_device(OP, &cuda)?;
    let guard = data.storage().cuda()?.write_owned()?;
    let work = match &group.0.nccl {
        Some(nccl) => nccl.start_all_reduce(guard, op)?,
        None => {
            let staged = group.0.staging.start(guard)?;
            group.submit(move |group| staged.finish(|bytes| group.all_reduce(bytes, dtype, op)))?
        }
    };
    data.storage().bump_version();
    Ok(work)
}

/// Fills `outputs`, one a rank, with the ranks' `input`.
pub fn all_gather(group: &ProcessGroup, outputs: &[Tensor], input: &Tensor) -> Result<Work> {
    let rank = group.member_rank();
    group.expect_member("all_gather")?;
    if outputs.len() != group.size() {
        return Err(Error::expected(Code::Argument, "all_gather", format!("{} outputs", group.size()), outputs.len()));
    }
    for output in outputs {
        output.expect_shape("all_gather output", input.shape())?;
        output.expect_dtype("all_gather", "outputs", input.dtype())?;
    }
    let all: Vec<&Tensor> = outputs.iter().chain([input]).collect();
    expect_one_device("all_gather", &all)?;
    if let Device::Cuda(cuda) = input.device() {
        return all_gather_on_device(group, &cuda, outputs, input);
    }
    let (input, size) = (input.contiguous()?, input.storage().bytes());
    let contiguous: Vec<Tensor> = outputs
        .iter()
        .map(|output| if output.is_contiguous() { Ok(output.clone()) } else { Err(not_contiguous()) })
        .collect::<Result<_>>()?;
    let mut slots = vec![0; size * group.size()];
    slots[rank.unwrap_or(0) * size..][..size].copy_from_slice(input.read()?.bytes());
    let mut guards = contiguous.iter().map(|output| output.storage().write_owned()).collect::<Result<Vec<_>>>()?;
    let work = group.submit(move |group| {
        group.all_gather(&mut slots)?;
        guards
            .iter_mut()
            .zip(slots.chunks_exact(size.max(1)))
            .for_each(|(guard, slot)| guard.bytes().copy_from_slice(slot));
        Ok(())
    })?;
    contiguous.iter().for_each(|output| output.storage().bump_version());
    Ok(work)
}

#[cold]
fn not_contiguous() -> Error {
    Error::expected(Code::Argument, "all_gather", "contiguous outputs", "a channels-last output")
}

/// [`all_gather`] for tensors on `cuda`: a broadcast from every rank, so that outputs need not lie side by side.
fn all_gather_on_device(group: &ProcessGroup, cuda: &Cuda, outputs: &[Tensor], input: &Tensor) -> Result<Work> {
    group.expect_device("all_gather", cuda)?;
    if outputs.iter().any(|output| !output.is_contiguous()) {
        return Err(not_contiguous());
    }
    // Every output must be free before the first is written.
    outputs.iter().try_for_each(|output| output.storage().cuda()?.write().map(drop))?;
    outputs[group.member_rank().unwrap_or(0)].copy_from(input)?;
    let guards = outputs.iter().map(|output| output.storage().cuda()?.write_owned()).collect::<Result<Vec<_>>>()?;
    outputs.iter().for_each(|output| output.storage().bump_version());
    let rooted = guards.into_iter().zip(0..);
    match &group.0.nccl {
        Some(nccl) => nccl.start_broadcast(rooted.collect()),
        None => start_staged_broadcasts(group, rooted.collect()),
    }
}

/// Broadcasts of a tcp group, one after the other.
fn start_staged_broadcasts(
    group: &ProcessGroup,
    rooted: Vec<(crate::storage::OwnedCudaWriting, usize)>,
) -> Result<Work> {
    let staged = rooted
        .into_iter()
        .map(|(guard, root)| Ok((group.0.staging.start(guard)?, root)))
        .collect::<Result<Vec<_>>>()?;
    group.submit(move |group| {
        staged.into_iter().try_for_each(|(staged, root)| staged.finish(|bytes| group.broadcast(bytes, root)))
    })
}

/// Replaces `data` by that of global rank `src`.
pub fn broadcast(group: &ProcessGroup, data: &Tensor, src: usize) -> Result<Work> {
    group.expect_member("broadcast")?;
    let src = group.index_of("broadcast", src)?;
    if data.device() == Device::Cpu {
        let mut guard = data.storage().write_owned()?;
        let work = group.submit(move |group| group.broadcast(guard.bytes(), src))?;
        data.storage().bump_version();
        return Ok(work);
    }
    let work = broadcast_on_device(group, std::slice::from_ref(data), src)?;
    data.storage().bump_version();
    Ok(work)
}

/// Replaces tensors on a GPU by those of the rank of index `src`. Versions stay.
pub(crate) fn broadcast_on_device(group: &ProcessGroup, data: &[Tensor], src: usize) -> Result<Work> {
    let mut rooted = Vec::with_capacity(data.len());
    for tensor in data {
        let memory = tensor.storage().cuda()?;
        group.expect_device("broadcast", memory.device())?;
        rooted.push((memory.write_owned()?, src));
    }
    match &group.0.nccl {
        Some(nccl) => nccl.start_broadcast(rooted),
        None => start_staged_broadcasts(group, rooted),
    }
}

/// Completes when every rank has called it.
pub fn barrier(group: &ProcessGroup) -> Result<Work> {
    group.expect_member("barrier")?;
    group.submit(Group::barrier)
}

/// Like [`barrier`], and its error names the ranks that did not come.
pub fn monitored_barrier(group: &ProcessGroup, timeout: Option<Duration>) -> Result<Work> {
    group.expect_member("monitored_barrier")?;
    let timeout = timeout.unwrap_or(group.timeout());
    group.submit(move |group| group.monitored_barrier(timeout))
}

impl Collective<Vec<u8>> for ProcessGroup {
    fn rank(&self) -> usize {
        self.member_rank().unwrap_or(0)
    }

    fn world_size(&self) -> usize {
        self.size()
    }

    fn all_gather(&self, slots: &mut Vec<u8>) -> Result<()> {
        self.run(|group| group.all_gather(slots))
    }

    fn all_reduce(&self, data: &mut Vec<u8>, dtype: DType, op: ReduceOp) -> Result<()> {
        self.run(|group| group.all_reduce(data, dtype, op))
    }

    fn broadcast(&self, data: &mut Vec<u8>, src: usize) -> Result<()> {
        self.run(|group| group.broadcast(data, src))
    }

    fn barrier(&self) -> Result<()> {
        self.run(Group::barrier)
    }
}

impl Collective<CudaBuffer> for ProcessGroup {
    fn rank(&self) -> usize {
        self.member_rank().unwrap_or(0)
    }

    fn world_size(&self) -> usize {
        self.size()
    }

    fn all_gather(&self, slots: &mut CudaBuffer) -> Result<()> {
        match &self.0.nccl {
            Some(nccl) => nccl.all_gather(slots),
            None => self.staged(slots, |group, bytes| group.all_gather(bytes)),
        }
    }

    fn all_reduce(&self, data: &mut CudaBuffer, dtype: DType, op: ReduceOp) -> Result<()> {
        match &self.0.nccl {
            Some(nccl) => nccl.all_reduce(data, dtype, op),
            None => self.staged(data, |group, bytes| group.all_reduce(bytes, dtype, op)),
        }
    }

    fn broadcast(&self, data: &mut CudaBuffer, src: usize) -> Result<()> {
        match &self.0.nccl {
            Some(nccl) => nccl.broadcast(data, src),
            None => self.staged(data, |group, bytes| group.broadcast(bytes, src)),
        }
    }

    fn barrier(&self) -> Result<()> {
        self.run(Group::barrier)
    }
}

impl ProcessGroup {
    /// An exchange of device memory through the host, after everything queued.
    fn staged(&self, data: &CudaBuffer, exchange: impl FnOnce(&Group, &mut [u8]) -> Result<()>) -> Result<()> {
        self.wait_idle();
        let view = data.slice_mut(DType::F32);
        self.0.staging.run(data.device(), view, |bytes| exchange(&self.0.group, bytes))
    }
}
