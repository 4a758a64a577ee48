//! The control connections of a world: one for each pair of ranks, for what must arrive while the groups' own sockets
//! are busy: the error that poisoned a group, and goodbyes. Their end tells that a process is gone.

use crate::exchange::timespec;
use crate::group::Group;
use crate::handshake::is_pause;
use crate::mesh::Lane;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use syncbn_core::error::{Code, Error, Result};

const MAGIC: u32 = 0x5bae_00c1;
const HEAD_BYTES: usize = 28;
const MAX_TEXT_BYTES: usize = 4096;
/// How long a peer that reads nothing may hold up a notice.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// What one rank tells another.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    /// The group is poisoned.
    Poison { group: u64, error: Error },
    /// The sender leaves the group after `completed` calls.
    Left { group: u64, completed: u64 },
    /// The sender leaves the world.
    Bye,
}

/// What became of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Alive,
    /// It said goodbye.
    Left,
    /// Its connection ended without one.
    Lost,
}

/// This rank's control connections.
pub(crate) struct Control {
    me: usize,
    /// By global rank.
    streams: Lane,
    /// Held while a notice is written.
    writers: Vec<Mutex<()>>,
    state: Mutex<State>,
    stop: AtomicBool,
}

struct State {
    fates: Vec<Fate>,
    groups: Vec<Weak<Group>>,
}

impl Control {
    pub(crate) fn new(me: usize, streams: Lane) -> Self {
        let writers = streams.iter().map(|_| Mutex::new(())).collect();
        let state = State { fates: vec![Fate::Alive; streams.len()], groups: vec![] };
        Self { me, streams, writers, state: Mutex::new(state), stop: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to a rank; `None` for this one.
    pub(crate) fn stream(&self, rank: usize) -> Option<&TcpStream> {
        self.streams[rank].as_ref()
    }

    /// Ranks in the world.
    pub(crate) fn world_size(&self) -> usize {
        self.streams.len()
    }

    /// From now on `group` hears of notices and of lost ranks.
    pub(crate) fn register(&self, group: &Arc<Group>) {
        let mut state = self.lock();
        state.groups.retain(|group| group.strong_count() > 0);
        state.groups.push(Arc::downgrade(group));
    }

    /// The groups that are in use.
    pub(crate) fn groups(&self) -> Vec<Arc<Group>> {
        self.lock().groups.iter().filter_map(Weak::upgrade).collect()
    }

    /// Notes the fate of a rank; the first one stands.
    pub(crate) fn set_fate(&self, rank: usize, fate: Fate) -> Fate {
        let fates = &mut self.lock().fates;
        if fates[rank] == Fate::Alive {
            fates[rank] = fate;
        }
        fates[rank]
    }

    pub(crate) fn fate(&self, rank: usize) -> Fate {
        self.lock().fates[rank]
    }

    /// `ERR_PEER_LOST` naming a rank of the world that is gone: one that was lost rather than one that left, perhaps
    /// because of the first.
    pub(crate) fn check_alive(&self) -> Result<()> {
        let state = self.lock();
        let first = |fate| state.fates.iter().position(|&other| other == fate);
        let (rank, how) = match (first(Fate::Lost), first(Fate::Left)) {
            (Some(rank), _) => (rank, "was lost: its connection ended"),
            (None, Some(rank)) => (rank, "left the world"),
            (None, None) => return Ok(()),
        };
        let error = Error::new(Code::PeerLost, format!("rank {rank} {how}"));
        Err(error.with_rank(self.me).with_peer(rank))
    }

    /// Tells the other ranks among `ranks`, as far as they still listen.
    pub(crate) fn send(&self, ranks: impl IntoIterator<Item = usize>, notice: &Notice) {
        let bytes = encode(notice);
        for rank in ranks {
            if let (Some(stream), Fate::Alive) = (self.stream(rank), self.fate(rank)) {
                let _turn = self.writers[rank].lock().unwrap_or_else(PoisonError::into_inner);
                write(stream, &bytes);
            }
        }
    }

    /// Says goodbye to the world and ends the liveness thread.
    pub(crate) fn stop(&self) {
        if !self.stop.swap(true, Ordering::SeqCst) {
            self.send(0..self.world_size(), &Notice::Bye);
            self.streams.iter().flatten().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Writes to a non-blocking socket; a peer that is gone or reads nothing misses the notice and sees the end of the
/// connection, or its own deadline, instead.
fn write(mut stream: &TcpStream, mut bytes: &[u8]) {
    let at = Instant::now() + SEND_TIMEOUT;
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if is_pause(&e) => {
                let left = at.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    // Half a notice would garble the next one.
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
                let _ = poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&timespec(left)));
            }
            Err(_) => return,
        }
    }
}

fn encode(notice: &Notice) -> Vec<u8> {
    let (kind, code, group, number, text) = match notice {
        Notice::Poison { group, error } => {
            let code = Code::ALL.iter().position(|&code| code == error.code()).unwrap_or_default();
            (1_u8, code as u8, *group, error.peer().map_or(0, |peer| peer as u64 + 1), error.message())
        }
        Notice::Left { group, completed } => (2, 0, *group, *completed, ""),
        Notice::Bye => (3, 0, 0, 0, ""),
    };
    let text = &text.as_bytes()[..text.len().min(MAX_TEXT_BYTES)];
    let mut bytes = MAGIC.to_ne_bytes().to_vec();
    bytes.extend([kind, code, 0, 0]);
    bytes.extend(group.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text);
    bytes
}

/// Bytes that have come from one peer and are not a whole notice yet.
#[derive(Default)]
pub(crate) struct Inbox(Vec<u8>);

impl Inbox {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole notice; `Err` if the peer speaks nonsense.
    pub(crate) fn next(&mut self) -> Result<Option<Notice>, ()> {
        let Some(head) = self.0.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        let (kind, code, group, number) = (head[4], head[5], word(8), word(16));
        let length = u32::from_le_bytes(head[24..28].try_into().expect("4 bytes")) as usize;
        if head[..4] != MAGIC.to_ne_bytes() || length > MAX_TEXT_BYTES {
            return Err(());
        }
        let Some(text) = self.0.get(HEAD_BYTES..HEAD_BYTES + length) else { return Ok(None) };
        let notice = match kind {
            1 => {
                let code = *Code::ALL.get(usize::from(code)).ok_or(())?;
                let error = Error::new(code, String::from_utf8_lossy(text));
                let peer = number.checked_sub(1).and_then(|peer| usize::try_from(peer).ok());
                Notice::Poison { group, error: peer.map_or(error.clone(), |peer| error.with_peer(peer)) }
            }
            2 => Notice::Left { group, completed: number },
            3 => Notice::Bye,
            _ => return Err(()),
        };
        self.0.drain(..HEAD_BYTES + length);
        Ok(Some(notice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_arrive_whole_however_they_are_cut() {
        let error = Error::new(Code::Mismatch, "rank 1 called x").with_peer(0);
        let mut bytes = encode(&Notice::Poison { group: 7, error });
        bytes.extend(encode(&Notice::Left { group: 8, completed: 9 }));
        bytes.extend(encode(&Notice::Bye));
        let (mut inbox, mut notices) = (Inbox::default(), vec![]);
        for byte in bytes {
            inbox.push(&[byte]);
            notices.extend(inbox.next().unwrap());
        }
        let [Notice::Poison { group: 7, error }, Notice::Left { group: 8, completed: 9 }, Notice::Bye] = &notices[..]
        else {
            panic!("{notices:?}")
        };
        assert_eq!((error.code(), error.message(), error.peer()), (Code::Mismatch, "rank 1 called x", Some(0)));
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut inbox = Inbox::default();
        inbox.push(&[1; HEAD_BYTES]);
        assert!(inbox.next().is_err());
    }
}
