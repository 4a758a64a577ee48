//! A group of ranks and its collectives.

use crate::control::{Control, Fate, Notice};
use crate::exchange::{Failure, Patience};
use crate::frame::{Call, Op};
use crate::health::{Farewell, Gone, Health, Refusal};
use crate::mesh::Lane;
use crate::reduce;
use crate::session::{Engine, Session, one_round};
use crate::wait::{deadline, rank_list, words};
use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use syncbn_core::collective::{Collective, ReduceOp};
use syncbn_core::dtype::DType;
use syncbn_core::error::{Code, Error, Result};

/// How long a broken connection may stay unexplained before it counts as the peer's end.
const EXPLAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// About one sleep and wake-up by the scheduler: longer than ranks in step come apart, and little lost if they are not.
const SPIN: Duration = Duration::from_micros(20);

/// A group of ranks with its own sockets and order of calls.
///
/// Every rank of the group makes the same calls in the same order; calls of several threads run one after the other.
/// After an error the group is poisoned: see [`is_poisoned`](Self::is_poisoned). The contents of a buffer whose
/// collective failed are undefined.
pub struct Group {
    name: String,
    id: u64,
    /// Global ranks, in the group's order.
    ranks: Vec<usize>,
    /// This rank's position among them; `None` if it is no member.
    position: Option<usize>,
    /// This rank's global number.
    me: usize,
    timeout: Duration,
    spin: Duration,
    peers: Lane,
    engine: Mutex<Engine>,
    health: Health,
    control: Arc<Control>,
}

/// What a new group is made of.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) id: u64,
    pub(crate) ranks: Vec<usize>,
    pub(crate) me: usize,
    pub(crate) timeout: Duration,
    pub(crate) peers: Lane,
    pub(crate) control: Arc<Control>,
}

impl Group {
    /// A group that hears of lost ranks from now on.
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { name, id, ranks, me, timeout, peers, control } = parts;
        let position = ranks.iter().position(|&rank| rank == me);
        let (engine, health, spin) = (Mutex::default(), Health::default(), spin(&peers));
        let group = Arc::new(Self { name, id, ranks, position, me, timeout, spin, peers, engine, health, control });
        if position.is_some() {
            group.control.register(&group);
            // A rank that was lost before the group was known to the liveness thread.
            for &rank in &group.ranks {
                if group.control.fate(rank) == Fate::Lost {
                    group.health.gone(Gone { rank, completed: None });
                }
            }
        }
        group
    }

    /// This rank's index in the group; `None` if it is no member.
    pub fn rank(&self) -> Option<usize> {
        self.position
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// The members' global ranks, in the group's order.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// The group's name in messages: `default`, or `group-N` for the N-th one made.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The deadline of every operation.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether an error, [`abort`](Self::abort) or [`close`](Self::close) made the group unusable. The first call
    /// after an error that no call has returned yet returns it; later ones return `ERR_GROUP_POISONED` quoting it.
    pub fn is_poisoned(&self) -> bool {
        self.health.is_poisoned()
    }

    /// `slots` is [`size`](Self::size) equal parts; this rank has filled the one at its index. Fills the others.
    pub fn all_gather(&self, slots: &mut [u8]) -> Result<()> {
        let part = slots.len() / self.size();
        if part * self.size() != slots.len() {
            let expected = format!("a multiple of {} bytes, one slot for each rank", self.size());
            return Err(Error::expected(Code::Argument, "all_gather", expected, format!("{} bytes", slots.len())));
        }
        self.run(Op::AllGather, part, self.timeout, |session, me| {
            let (before, rest) = slots.split_at_mut(me * part);
            let (own, after) = rest.split_at_mut(part);
            session.everywhere(0, own, before, after)
        })
    }

    /// Combines `data`, elements of `dtype`, over all ranks in rank order; every rank gets the same bits.
    ///
    /// float32 and float64 are combined in their own type, the half types in float32 with one rounding at the end;
    /// int32 and int64 wrap and have no average.
    pub fn all_reduce(&self, data: &mut [u8], dtype: DType, op: ReduceOp) -> Result<()> {
        reduce::check(data.len(), dtype, op)?;
        self.run(Op::AllReduce(dtype, op), data.len(), self.timeout, |session, me| {
            if one_round(data.len(), self.size()) {
                session.reduce_at_once(me, data, dtype, op)
            } else {
                session.reduce_in_parts(me, data, dtype, op)
            }
        })
    }

    /// Replaces `data` by that of the group's rank `src`.
    pub fn broadcast(&self, data: &mut [u8], src: usize) -> Result<()> {
        let Some(&root) = self.ranks.get(src) else {
            let expected = format!("0 to {}", self.size() - 1);
            return Err(Error::expected(Code::Argument, "broadcast: src", expected, src));
        };
        self.run(Op::Broadcast(root), data.len(), self.timeout, |session, me| {
            if me == src { session.everywhere(0, data, &mut [], &mut []) } else { session.receive_from(src, data) }
        })
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        self.run(Op::Barrier, 0, self.timeout, |session, _| session.everywhere(0, &[], &mut [], &mut []))
    }

    /// A barrier with a deadline of its own; `ERR_TIMEOUT` names all the ranks that did not come.
    pub fn monitored_barrier(&self, timeout: Duration) -> Result<()> {
        self.run(Op::MonitoredBarrier, 0, timeout, |session, _| session.everywhere(0, &[], &mut [], &mut []))
    }

    /// Ends the running call and all later ones, on every rank, with `ERR_ABORTED`.
    pub fn abort(&self, reason: &str) {
        let text = format!("rank {} aborted the group '{}': {reason}", self.me, self.name);
        self.spread(Error::new(Code::Aborted, text).with_peer(self.me));
    }

    /// As [`abort`](Self::abort), with an error of the caller's own: what it found and the exchange could not.
    pub fn poison(&self, error: Error) {
        self.spread(error);
    }

    /// Whether global rank `rank` said goodbye to the group, and was not lost.
    pub fn has_left(&self, rank: usize) -> bool {
        self.health.has_left(rank)
    }

    /// Leaves the group. Calls return `ERR_ABORTED` from now on; ranks that use it further get `ERR_PEER_LOST`.
    pub fn close(&self) {
        let text = format!("the group '{}' was destroyed", self.name);
        if let Some(Farewell { completed, error }) = self.health.close(self.context(Error::new(Code::Aborted, text))) {
            // Who has not heard of the error yet must not take this goodbye for its cause.
            let poison = error.map(|error| Notice::Poison { group: self.id, error });
            let left = Notice::Left { group: self.id, completed };
            poison.iter().chain([&left]).for_each(|notice| self.control.send(self.ranks.iter().copied(), notice));
            self.hang_up();
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Rank `sender` found the error; if it was about this rank, here it is about the sender.
    pub(crate) fn hear(&self, sender: usize, error: Error) {
        let error = if error.peer() == Some(self.me) { error.with_peer(sender) } else { error };
        if self.health.poison(self.context(error)) {
            self.hang_up();
        }
    }

    /// A rank is gone: the running call, if it cannot succeed any more.
    pub(crate) fn gone(&self, gone: Gone) -> Option<u64> {
        self.ranks.contains(&gone.rank).then(|| self.health.gone(gone)).flatten()
    }

    pub(crate) fn is_active(&self, sequence: u64) -> bool {
        self.health.is_active(sequence)
    }

    /// Ends the running call: it needs a rank that is gone.
    pub(crate) fn give_up(&self, gone: Gone) {
        self.spread(self.lost(gone));
    }

    /// Poisons the group here and, if the error is the first, on the other ranks.
    fn spread(&self, error: Error) {
        if self.health.poison(self.context(error.clone())) {
            self.tell(error);
        }
    }

    fn tell(&self, error: Error) {
        self.control.send(self.ranks.iter().copied(), &Notice::Poison { group: self.id, error });
        self.hang_up();
    }

    /// Ends every wait on the group's sockets. They are closed when the group is dropped.
    fn hang_up(&self) {
        self.peers.iter().flatten().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    fn run(
        &self,
        op: Op,
        length: usize,
        timeout: Duration,
        body: impl FnOnce(&mut Session<'_>, usize) -> Result<(), Failure>,
    ) -> Result<()> {
        let me = self.position.ok_or_else(|| self.not_a_member(op))?;
        let mut engine = self.engine();
        let call = Call { group: self.id, sequence: engine.next(), op, length: length as u64, round: 0 };
        self.health.begin(call.sequence).map_err(|refusal| self.refuse(refusal, &call))?;
        engine.begin();
        let patience = Patience { spin: self.spin, deadline: deadline(timeout) };
        let mut session = Session::new(call, &self.peers, &mut engine, patience);
        match body(&mut session, me) {
            Ok(()) => {
                self.health.finish();
                Ok(())
            }
            Err(failure) => Err(self.fail(failure, &call, timeout)),
        }
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Poisons the group and returns its first error.
    #[cold]
    fn fail(&self, failure: Failure, call: &Call, timeout: Duration) -> Error {
        let found = self.describe(failure, call, timeout);
        let (error, first) = self.health.fail(self.context(found.clone()).with_operation(call.to_string()));
        if first {
            self.tell(found);
        }
        error.with_operation(call.to_string())
    }

    fn describe(&self, failure: Failure, call: &Call, timeout: Duration) -> Error {
        let me = self.me;
        match failure {
            Failure::Timeout(peers) => {
                let missing: Vec<_> = peers.iter().map(|&peer| self.ranks[peer]).collect();
                let (total, who) = (words(timeout), rank_list(&missing));
                let text = format!("{call} on rank {me} waited {total} for {who} (group '{}')", self.name);
                Error::new(Code::Timeout, text).with_peer(missing[0])
            }
            Failure::Closed(peer, cause) => {
                let rank = self.ranks[peer];
                match self.health.explain(rank, EXPLAIN_TIMEOUT) {
                    Some(gone) => self.lost(gone),
                    None => {
                        let text = format!("rank {rank} was lost during {call} (group '{}'): {cause}", self.name);
                        Error::new(Code::PeerLost, text).with_peer(rank)
                    }
                }
            }
            Failure::Mismatch(peer, theirs) => {
                let rank = self.ranks[peer];
                let mut calls = [(rank, theirs), (me, *call)];
                calls.sort_by_key(|&(rank, _)| rank);
                let [(a, first), (b, second)] = calls;
                let text = format!("rank {a} called {first}; rank {b} called {second} (group '{}')", self.name);
                Error::new(Code::Mismatch, text).with_peer(rank)
            }
            Failure::Garbage(peer) => {
                let rank = self.ranks[peer];
                let text = format!("rank {rank} sent no frame of this protocol during {call}: another byte order?");
                Error::new(Code::Mismatch, text).with_peer(rank)
            }
            Failure::Interrupted => Error::new(Code::Aborted, format!("{call} on rank {me}: its thread is ending")),
            Failure::Poll(cause) => Error::new(Code::Io, format!("{call} on rank {me}: cannot wait: {cause}")),
        }
    }

    #[cold]
    fn refuse(&self, refusal: Refusal, call: &Call) -> Error {
        let error = match refusal {
            Refusal::Fresh(error) => error,
            Refusal::Poisoned(first) => {
                let text = format!("{call}: the group '{}' is unusable since: {}", self.name, first.message());
                let error = Error::new(Code::GroupPoisoned, text);
                first.peer().map_or(error.clone(), |peer| error.with_peer(peer))
            }
            Refusal::Gone(gone) => {
                let error = self.lost(gone);
                let (error, first) = self.health.fail(self.context(error));
                if first {
                    self.tell(error.clone());
                }
                error
            }
            Refusal::Closed => Error::new(Code::Aborted, format!("{call}: the group '{}' was destroyed", self.name)),
        };
        self.context(error).with_operation(call.to_string())
    }

    fn lost(&self, gone: Gone) -> Error {
        let how = if gone.completed.is_some() { "left the group" } else { "was lost: its connection ended (group" };
        let text = match gone.completed {
            Some(_) => format!("rank {} {how} '{}'", gone.rank, self.name),
            None => format!("rank {} {how} '{}')", gone.rank, self.name),
        };
        Error::new(Code::PeerLost, text).with_peer(gone.rank)
    }

    fn context(&self, error: Error) -> Error {
        error.with_group(self.name.clone()).with_rank(self.me)
    }

    #[cold]
    fn not_a_member(&self, op: Op) -> Error {
        let text = format!("{op}: rank {} is not in the group '{}' ({})", self.me, self.name, rank_list(&self.ranks));
        self.context(Error::new(Code::NotInGroup, text))
    }
}

/// How long a call looks for the others' frames before it sleeps: not at all if ranks share this machine's cores.
fn spin(peers: &Lane) -> Duration {
    let here = |stream: &TcpStream| {
        let (own, other) = (stream.local_addr(), stream.peer_addr());
        own.is_ok_and(|own| other.is_ok_and(|other| own.ip() == other.ip()))
    };
    let local = 1 + peers.iter().flatten().filter(|stream| here(stream)).count();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if local <= cores { SPIN } else { Duration::ZERO }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("name", &self.name).field("ranks", &self.ranks).finish_non_exhaustive()
    }
}

impl Collective<Vec<u8>> for Group {
    /// The index in the group; `usize::MAX` for a rank that is no member, whose calls are all `ERR_NOT_IN_GROUP`.
    fn rank(&self) -> usize {
        self.position.unwrap_or(usize::MAX)
    }

    fn world_size(&self) -> usize {
        self.size()
    }

    fn all_gather(&self, slots: &mut Vec<u8>) -> Result<()> {
        Self::all_gather(self, slots)
    }

    fn all_reduce(&self, data: &mut Vec<u8>, dtype: DType, op: ReduceOp) -> Result<()> {
        Self::all_reduce(self, data, dtype, op)
    }

    fn broadcast(&self, data: &mut Vec<u8>, src: usize) -> Result<()> {
        Self::broadcast(self, data, src)
    }

    fn barrier(&self) -> Result<()> {
        Self::barrier(self)
    }
}
