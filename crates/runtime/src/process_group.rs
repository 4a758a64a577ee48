//! Process groups as the bindings see them: a group of ranks and the one thread its asynchronous calls run on.
//!
//! Calls keep program order: a blocking call first waits for what is queued and then runs on the caller, which saves
//! the two thread switches that would cost more than a small exchange itself.

use crate::tensor::Tensor;
use crate::work::Work;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use syncbn_comm::{CancelToken, Environment, Group, InitOptions, World};
use syncbn_core::{Code, Collective, DType, Error, ReduceOp, Result};

type Job = Box<dyn FnOnce(&Group) + Send>;

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
}

/// A handle on a group; clones share it.
#[derive(Clone)]
pub struct ProcessGroup(Arc<Inner>);

impl std::fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProcessGroup({}, ranks {:?})", self.name(), self.ranks())
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
}

impl ProcessGroup {
    /// Meets the other ranks; blocks until all have come, the deadline passes or `cancel` is used.
    pub fn init(options: &ProcessGroupOptions, cancel: CancelToken) -> Result<Self> {
        let options = InitOptions {
            init_method: options.init_method.clone(),
            rank: options.rank,
            world_size: options.world_size,
            timeout: options.timeout,
            token: options.token.clone().map(String::into_bytes),
            cancel,
        };
        let world = Arc::new(syncbn_comm::init(&options, &Environment::from_process())?);
        let group = world.default_group();
        Ok(Self::new(world, group))
    }

    fn new(world: Arc<World>, group: Arc<Group>) -> Self {
        Self(Arc::new(Inner { world, group, queue: Mutex::default() }))
    }

    /// A group of some global ranks; every rank of the world calls it. Members are numbered in ascending order of their
    /// global ranks, as `torch.distributed.new_group` does.
    pub fn new_group(&self, ranks: &[usize], timeout: Option<Duration>) -> Result<Self> {
        self.wait_idle();
        let mut ranks = ranks.to_vec();
        ranks.sort_unstable();
        let group = self.0.world.new_group(&ranks, timeout)?;
        Ok(Self::new(self.0.world.clone(), group))
    }

    /// Leaves the group; the default group stands for the whole world. Queued calls are finished first.
    pub fn destroy(&self) {
        self.wait_idle();
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).sender = None;
        if self.is_default() { self.0.world.destroy() } else { self.0.group.close() }
    }

    /// Ends every wait of this rank on the group, or on all groups of the world through the default group.
    pub fn abort(&self, reason: &str) {
        if self.is_default() { self.0.world.abort(reason) } else { self.0.group.abort(reason) }
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
        let last = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).last.take();
        if let Some(last) = last {
            // Its error belongs to whoever holds the Work, and poisons the group for the next call anyway.
            let _ = last.wait();
        }
    }

    /// Runs `call` here, after everything queued.
    pub fn run<T>(&self, call: impl FnOnce(&Group) -> Result<T>) -> Result<T> {
        self.wait_idle();
        call(&self.0.group)
    }

    /// Runs `call` on the group's thread, after everything queued.
    pub fn submit(&self, call: impl FnOnce(&Group) -> Result<()> + Send + 'static) -> Work {
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
        work
    }
}

fn start_thread(group: Arc<Group>) -> Sender<Job> {
    let (sender, receiver) = channel::<Job>();
    let run = move || receiver.into_iter().for_each(|job| job(&group));
    // Without a thread the sender's channel is closed, which `submit` reports.
    let _ = std::thread::Builder::new().name("syncbn-group".into()).spawn(run);
    sender
}

/// Combines `data` over the ranks, in place.
pub fn all_reduce(group: &ProcessGroup, data: &Tensor, op: ReduceOp) -> Result<Work> {
    group.expect_member("all_reduce")?;
    let (dtype, mut guard) = (data.dtype(), data.storage().write_owned()?);
    data.storage().bump_version();
    Ok(group.submit(move |group| group.all_reduce(guard.bytes(), dtype, op)))
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
    let (input, size) = (input.contiguous()?, input.storage().bytes());
    let contiguous: Vec<Tensor> = outputs
        .iter()
        .map(|output| if output.is_contiguous() { Ok(output.clone()) } else { Err(not_contiguous()) })
        .collect::<Result<_>>()?;
    let mut slots = vec![0; size * group.size()];
    slots[rank.unwrap_or(0) * size..][..size].copy_from_slice(input.read()?.bytes());
    let mut guards = contiguous.iter().map(|output| output.storage().write_owned()).collect::<Result<Vec<_>>>()?;
    contiguous.iter().for_each(|output| output.storage().bump_version());
    Ok(group.submit(move |group| {
        group.all_gather(&mut slots)?;
        guards
            .iter_mut()
            .zip(slots.chunks_exact(size.max(1)))
            .for_each(|(guard, slot)| guard.bytes().copy_from_slice(slot));
        Ok(())
    }))
}

#[cold]
fn not_contiguous() -> Error {
    Error::expected(Code::Argument, "all_gather", "contiguous outputs", "a channels-last output")
}

/// Replaces `data` by that of global rank `src`.
pub fn broadcast(group: &ProcessGroup, data: &Tensor, src: usize) -> Result<Work> {
    group.expect_member("broadcast")?;
    let src = group.index_of("broadcast", src)?;
    let mut guard = data.storage().write_owned()?;
    data.storage().bump_version();
    Ok(group.submit(move |group| group.broadcast(guard.bytes(), src)))
}

/// Completes when every rank has called it.
pub fn barrier(group: &ProcessGroup) -> Result<Work> {
    group.expect_member("barrier")?;
    Ok(group.submit(Group::barrier))
}

/// Like [`barrier`], and its error names the ranks that did not come.
pub fn monitored_barrier(group: &ProcessGroup, timeout: Option<Duration>) -> Result<Work> {
    group.expect_member("monitored_barrier")?;
    let timeout = timeout.unwrap_or(group.timeout());
    Ok(group.submit(move |group| group.monitored_barrier(timeout)))
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
