//! All ranks of a job: how they come together, the groups they make, and how they part.

use crate::acceptor::spawn;
use crate::control::Control;
use crate::environment::Environment;
use crate::group::{Group, Parts};
use crate::liveness;
use crate::mesh::{Lane, Mesh};
use crate::options::{CancelToken, InitOptions};
use crate::plan::Plan;
use crate::rendezvous::{Gathering, Meeting, WORLD_PREFIX, join};
use crate::store::{PrefixStore, Store};
use crate::wait::Wait;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use syncbn_core::error::{Code, Error, Result};

/// The default group's number; the others count on from it.
const DEFAULT_GROUP: u64 = 0;
/// How long rank 0 keeps the store of a failed rendezvous, so that the others learn why.
const LINGER: Duration = Duration::from_millis(500);

/// The ranks of a job, connected. [`destroy`](Self::destroy) says goodbye; dropping does the same.
pub struct World {
    rank: usize,
    size: usize,
    local_rank: Option<usize>,
    timeout: Duration,
    token: Arc<[u8]>,
    ip: IpAddr,
    cancel: CancelToken,
    /// Ends a `new_group` that runs while the world is destroyed or aborted.
    leaving: CancelToken,
    control: Arc<Control>,
    group: Arc<Group>,
    /// Numbers the groups; held while one is made.
    made: Mutex<u64>,
    store: Mutex<Option<Arc<dyn Store>>>,
    liveness: Mutex<Option<JoinHandle<()>>>,
}

/// Brings the ranks together: the rendezvous, then the connections of the default group.
///
/// Blocks until every rank has come. Errors: `ERR_ARGUMENT` and `ERR_ENVIRONMENT` for settings, before anything is
/// opened; `ERR_TOKEN_REQUIRED` for a meeting point that is not loopback without a token; `ERR_TOKEN_REJECTED` if this
/// rank's token is not rank 0's; `ERR_ADDRESS_IN_USE`; `ERR_RENDEZVOUS` for a rank that comes twice or another world
/// size; `ERR_TIMEOUT` naming the ranks that did not come; `ERR_PEER_LOST`; `ERR_ABORTED` after a cancellation.
pub fn init(options: &InitOptions, env: &Environment) -> Result<World> {
    let plan = Plan::new(options, env)?;
    let control = OnceLock::<Arc<Control>>::new();
    let interrupt = || {
        check_cancelled(&options.cancel)?;
        control.get().map_or(Ok(()), |control| control.check_alive())
    };
    let wait = Wait::new(options.timeout, &interrupt);
    wait.check()?;
    let meeting = Meeting::open(&plan, &wait).map_err(|error| error.with_rank(plan.rank))?;
    let strangers = || meeting.tcp.as_ref().map_or(0, |tcp| tcp.strangers());
    let gathering = Gathering {
        store: &*meeting.store,
        prefix: WORLD_PREFIX.into(),
        rank: plan.rank,
        wait: &wait,
        strangers: &strangers,
    };
    let world = connect(&plan, options, &meeting, &gathering, &control);
    world.map_err(|error| {
        gathering.fail(&error);
        if let Some(tcp) = &meeting.tcp {
            tcp.linger(LINGER);
        }
        error.with_rank(plan.rank)
    })
}

fn check_cancelled(cancel: &CancelToken) -> Result<()> {
    if cancel.is_cancelled() { Err(Error::new(Code::Aborted, "rendezvous: cancelled")) } else { Ok(()) }
}

fn connect(
    plan: &Plan,
    options: &InitOptions,
    meeting: &Meeting,
    gathering: &Gathering<'_>,
    slot: &OnceLock<Arc<Control>>,
) -> Result<World> {
    join(gathering, plan.world_size)?;
    let ranks: Vec<_> = (0..plan.world_size).collect();
    let mesh = Mesh { group: DEFAULT_GROUP, ranks: &ranks, lanes: 2, ip: meeting.ip, token: &plan.token };
    let [control, peers] = two(mesh.connect(gathering)?);
    let control = Arc::new(Control::new(plan.rank, control));
    let parts = Parts {
        name: "default".into(),
        id: DEFAULT_GROUP,
        ranks: ranks.clone(),
        me: plan.rank,
        timeout: options.timeout,
        peers,
        control: Arc::clone(&control),
    };
    let world = World {
        rank: plan.rank,
        size: plan.world_size,
        local_rank: plan.local_rank,
        timeout: options.timeout,
        token: Arc::clone(&plan.token),
        ip: meeting.ip,
        cancel: options.cancel.clone(),
        leaving: CancelToken::default(),
        group: Group::new(parts),
        made: Mutex::new(DEFAULT_GROUP),
        store: Mutex::new(Some(Arc::clone(&meeting.store))),
        liveness: Mutex::new(listen(&control)?),
        control: Arc::clone(slot.get_or_init(|| control)),
    };
    gathering.finish(&ranks)?;
    meeting.complete.store(true, Ordering::SeqCst);
    Ok(world)
}

fn two(lanes: Vec<Lane>) -> [Lane; 2] {
    lanes.try_into().expect("the mesh returns as many lanes as it was asked for")
}

fn listen(control: &Arc<Control>) -> Result<Option<JoinHandle<()>>> {
    if control.world_size() == 1 {
        return Ok(None);
    }
    let control = Arc::clone(control);
    spawn("syncbn-liveness", move || liveness::watch(&control)).map(Some)
}

impl World {
    /// This process' rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in the world.
    pub fn size(&self) -> usize {
        self.size
    }

    /// This process' rank on its machine: `LOCAL_RANK`, else `SLURM_LOCALID`.
    pub fn local_rank(&self) -> Option<usize> {
        self.local_rank
    }

    /// The group of all ranks.
    pub fn default_group(&self) -> Arc<Group> {
        Arc::clone(&self.group)
    }

    /// The store the ranks met in, for values of the caller's own; `ERR_NOT_INITIALIZED` after
    /// [`destroy`](Self::destroy). It ends when rank 0 leaves.
    pub fn store(&self) -> Result<Arc<dyn Store>> {
        Ok(Arc::new(PrefixStore::new("user", self.shared_store()?)))
    }

    /// Makes a group of `ranks` (global, in the group's order) with its own connections.
    ///
    /// Every rank of the world calls it, with the same list, in the same order; `ERR_MISMATCH` on all of them if the
    /// lists differ, `ERR_TIMEOUT` naming the ranks that did not come. A rank that is not in the list gets a handle
    /// whose use is `ERR_NOT_IN_GROUP`. `timeout` is the deadline of this call and of the group's operations; default
    /// the world's. The list is checked (`ERR_ARGUMENT`) before anything is sent.
    pub fn new_group(&self, ranks: &[usize], timeout: Option<Duration>) -> Result<Arc<Group>> {
        self.check_ranks(ranks)?;
        let timeout = timeout.unwrap_or(self.timeout);
        if timeout.is_zero() {
            return Err(Error::expected(Code::Argument, "new_group: timeout", "more than 0 ms", "0 ms"));
        }
        let mut made = self.made();
        let store = self.shared_store()?;
        *made += 1;
        let interrupt = || {
            check_cancelled(&self.cancel).and_then(|()| check_cancelled(&self.leaving))?;
            self.control.check_alive()
        };
        let wait = Wait::new(timeout, &interrupt);
        let prefix = format!("syncbn/group/{}", *made);
        let gathering = Gathering { store: &*store, prefix, rank: self.rank, wait: &wait, strangers: &|| 0 };
        let group = self.gather_group(*made, ranks, timeout, &gathering);
        group.map_err(|error| {
            gathering.fail(&error);
            error.with_rank(self.rank).with_operation("new_group")
        })
    }

    fn gather_group(
        &self,
        id: u64,
        ranks: &[usize],
        timeout: Duration,
        gathering: &Gathering<'_>,
    ) -> Result<Arc<Group>> {
        let everybody: Vec<_> = (0..self.size).collect();
        let list = format!("{ranks:?}");
        gathering.publish("ranks", list.as_bytes())?;
        let lists = gathering.collect("ranks", &everybody)?;
        if let Some((other, theirs)) = lists.iter().enumerate().find(|(_, theirs)| **theirs != list.as_bytes()) {
            return Err(self.different_lists(&list, other, &String::from_utf8_lossy(theirs)));
        }
        let peers = if ranks.contains(&self.rank) {
            let mesh = Mesh { group: id, ranks, lanes: 1, ip: self.ip, token: &self.token };
            mesh.connect(gathering)?.into_iter().flatten().collect()
        } else {
            vec![]
        };
        let (name, control) = (format!("group-{id}"), Arc::clone(&self.control));
        let group = Group::new(Parts { name, id, ranks: ranks.into(), me: self.rank, timeout, peers, control });
        gathering.finish(&everybody)?;
        Ok(group)
    }

    /// Aborts every group: running calls, here and on the other ranks, end with `ERR_ABORTED`.
    pub fn abort(&self, reason: &str) {
        self.leaving.cancel();
        self.control.groups().iter().for_each(|group| group.abort(reason));
    }

    /// Leaves: closes every group, says goodbye to the other ranks and ends the threads of this world. Ranks that use
    /// a shared group further get `ERR_PEER_LOST`; those that leave too get no error.
    pub fn destroy(&self) {
        self.leaving.cancel();
        self.control.groups().iter().for_each(|group| group.close());
        self.group.close();
        self.control.stop();
        let thread = self.liveness.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        self.store.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn made(&self) -> MutexGuard<'_, u64> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared_store(&self) -> Result<Arc<dyn Store>> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        store.ok_or_else(|| Error::new(Code::NotInitialized, "the world was destroyed"))
    }

    fn check_ranks(&self, ranks: &[usize]) -> Result<()> {
        let twice = |i: usize| ranks[..i].contains(&ranks[i]);
        let wrong = |&i: &usize| ranks[i] >= self.size || twice(i);
        if ranks.is_empty() || (0..ranks.len()).any(|i| wrong(&i)) {
            let expected = format!("one or more different ranks from 0 to {}", self.size - 1);
            return Err(Error::expected(Code::Argument, "new_group: ranks", expected, format!("{ranks:?}")));
        }
        Ok(())
    }

    #[cold]
    fn different_lists(&self, mine: &str, other: usize, theirs: &str) -> Error {
        let mut calls = [(self.rank, mine), (other, theirs)];
        calls.sort_by_key(|&(rank, _)| rank);
        let [(a, first), (b, second)] = calls;
        let text = format!("rank {a} called new_group({first}); rank {b} called new_group({second})");
        Error::new(Code::Mismatch, text).with_peer(other)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.destroy();
    }
}
