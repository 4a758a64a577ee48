//! One round of a collective: this rank sends every peer a frame and receives one from each, all at the same time.
//!
//! Sockets are non-blocking and one poll waits for all of them, so that payloads larger than the sockets' buffers
//! cannot lock two ranks that both write, and no helper thread is in the path of a small message.

use crate::frame::{Call, HEADER_BYTES};
use crate::handshake::is_pause;
use crate::interrupt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The most bytes moved for one peer before the others have their turn.
const TURN_BYTES: usize = 1 << 20;

/// Why a round failed; peers are positions in the group.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The deadline passed; who has not sent, or taken, everything.
    Timeout(Vec<usize>),
    /// The connection to a peer ended.
    Closed(usize, io::Error),
    /// A peer made another call.
    Mismatch(usize, Call),
    /// A peer sent something that is no header.
    Garbage(usize),
    /// The system refused to wait.
    Poll(io::Error),
    /// This thread is to stop; see [`interrupt`].
    Interrupted,
}

/// What passes between this rank and one peer in a round.
pub(crate) struct Transfer<'a> {
    peer: usize,
    stream: &'a TcpStream,
    /// Two parts, so that a large payload need not be copied behind its header.
    out: [&'a [u8]; 2],
    sent: usize,
    head: [u8; HEADER_BYTES],
    body: &'a mut [u8],
    received: usize,
    checked: bool,
}

impl<'a> Transfer<'a> {
    /// Sends `out` and receives a frame with `body` as its payload.
    pub(crate) fn new(peer: usize, stream: &'a TcpStream, out: [&'a [u8]; 2], body: &'a mut [u8]) -> Self {
        Self { peer, stream, out, sent: 0, head: [0; HEADER_BYTES], body, received: 0, checked: false }
    }

    fn all_sent(&self) -> bool {
        self.sent == self.out[0].len() + self.out[1].len()
    }

    fn all_received(&self) -> bool {
        self.checked && self.received == HEADER_BYTES + self.body.len()
    }

    fn done(&self) -> bool {
        self.all_sent() && self.all_received()
    }

    /// Writes until the socket is full, the frame is out or the turn is over.
    fn send(&mut self) -> Result<(), Failure> {
        let mut turn = TURN_BYTES;
        while !self.all_sent() && turn > 0 {
            let first = self.out[0].len();
            let rest = if self.sent < first { &self.out[0][self.sent..] } else { &self.out[1][self.sent - first..] };
            match (&mut &*self.stream).write(&rest[..rest.len().min(turn)]) {
                Ok(n) => (self.sent, turn) = (self.sent + n, turn - n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_pause(&e) => return Ok(()),
                Err(e) => return Err(Failure::Closed(self.peer, e)),
            }
        }
        Ok(())
    }

    /// Reads until the socket is empty, the frame is in or the turn is over. Never reads beyond this round's frame.
    fn receive(&mut self, call: &Call, header: &[u8; HEADER_BYTES]) -> Result<(), Failure> {
        let mut turn = TURN_BYTES;
        while !self.all_received() && turn > 0 {
            let read = match self.received.checked_sub(HEADER_BYTES) {
                None => {
                    let head = IoSliceMut::new(&mut self.head[self.received..]);
                    (&mut &*self.stream).read_vectored(&mut [head, IoSliceMut::new(self.body)])
                }
                Some(at) => {
                    let end = self.body.len().min(at + turn);
                    (&mut &*self.stream).read(&mut self.body[at..end])
                }
            };
            match read {
                Ok(0) => return Err(Failure::Closed(self.peer, io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => (self.received, turn) = (self.received + n, turn.saturating_sub(n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_pause(&e) => return Ok(()),
                Err(e) => return Err(Failure::Closed(self.peer, e)),
            }
            self.check(call, header)?;
        }
        Ok(())
    }

    fn check(&mut self, call: &Call, header: &[u8; HEADER_BYTES]) -> Result<(), Failure> {
        if self.checked || self.received < HEADER_BYTES {
            return Ok(());
        }
        self.checked = self.head == *header;
        match (self.checked, Call::decode(&self.head)) {
            (true, _) => Ok(()),
            (false, Some(theirs)) if theirs != *call => Err(Failure::Mismatch(self.peer, theirs)),
            _ => Err(Failure::Garbage(self.peer)),
        }
    }

    fn advance(&mut self, call: &Call, header: &[u8; HEADER_BYTES]) -> Result<(), Failure> {
        let sent = self.send();
        // A peer that made another call may have closed already; its header explains more than the broken pipe.
        self.receive(call, header).and(sent)
    }

    fn events(&self) -> PollFlags {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, !self.all_received());
        events.set(PollFlags::OUT, !self.all_sent());
        events
    }
}

/// How long a round may take: looking for the others' frames without sleeping first, then asleep to the deadline.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// Zero where ranks share cores: looking would take the time of the very rank that is waited for.
    pub(crate) spin: Duration,
    pub(crate) deadline: Instant,
}

/// Runs a round to its end or to its deadline.
pub(crate) fn exchange(call: &Call, transfers: &mut [Transfer<'_>], patience: Patience) -> Result<(), Failure> {
    let header = call.encode();
    // Everybody's message is on its way before this rank looks for theirs.
    let sent: Vec<_> = transfers.iter_mut().map(Transfer::send).collect();
    for (transfer, sent) in transfers.iter_mut().zip(sent) {
        transfer.receive(call, &header).and(sent)?;
    }
    let start = Instant::now();
    while transfers.iter().any(|transfer| !transfer.done()) {
        if patience.spin.is_zero() || start.elapsed() >= patience.spin {
            wait(transfers, patience.deadline)?;
        }
        transfers.iter_mut().filter(|transfer| !transfer.done()).try_for_each(|t| t.advance(call, &header))?;
    }
    Ok(())
}

/// Waits until a socket is ready.
fn wait(transfers: &[Transfer<'_>], deadline: Instant) -> Result<(), Failure> {
    let pending = || transfers.iter().filter(|transfer| !transfer.done());
    let mut sockets: Vec<_> = pending().map(|transfer| PollFd::new(transfer.stream, transfer.events())).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let longest = if interrupt::is_interruptible() { interrupt::CHECK_INTERVAL } else { Duration::MAX };
        match poll(&mut sockets, Some(&timespec(left.min(longest)))) {
            Ok(0) if left.is_zero() => return Err(Failure::Timeout(pending().map(|transfer| transfer.peer).collect())),
            Ok(0) if interrupt::is_interrupted() => return Err(Failure::Interrupted),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(Failure::Poll(e.into())),
        }
    }
}

/// A poll's timeout, rounded up to at most a day.
pub(crate) fn timespec(left: Duration) -> Timespec {
    let left = left.min(Duration::from_secs(86_400));
    Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
}
