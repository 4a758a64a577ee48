//! One connection for each lane and pair of ranks: a rank connects to the lower ones and accepts the higher ones.

use crate::acceptor::{Acceptor, io_error};
use crate::handshake::{Hello, Service};
use crate::rendezvous::{Gathering, wire_rank};
use crate::store::{check_token, dial_until};
use crate::wait::{TICK, rank_list};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use syncbn_core::error::{Code, Error, Result};

/// Which ranks to connect, for which group.
pub(crate) struct Mesh<'a> {
    pub(crate) group: u64,
    /// Global ranks, this one among them.
    pub(crate) ranks: &'a [usize],
    pub(crate) lanes: u8,
    /// The address to listen on.
    pub(crate) ip: IpAddr,
    pub(crate) token: &'a Arc<[u8]>,
}

/// The streams of one lane by position in the group; `None` at this rank's own. Non-blocking, without Nagle's delay.
pub(crate) type Lane = Vec<Option<TcpStream>>;

type Accepted = (TcpStream, Hello);

impl Mesh<'_> {
    /// Connects everybody; returns the lanes.
    pub(crate) fn connect(&self, gathering: &Gathering<'_>) -> Result<Vec<Lane>> {
        let mut lanes: Vec<Lane> = (0..self.lanes).map(|_| self.ranks.iter().map(|_| None).collect()).collect();
        if self.ranks.len() == 1 {
            return Ok(lanes);
        }
        let listener = TcpListener::bind((self.ip, 0)).map_err(|e| io_error(&format!("listen on {}", self.ip), &e))?;
        let (sender, accepted) = channel();
        let serve = Box::new(move |stream, hello| drop(sender.send((stream, hello))));
        let acceptor = Acceptor::spawn(listener, Service::Mesh, Arc::clone(self.token), serve)?;
        gathering.publish("address", acceptor.address().to_string().as_bytes())?;
        self.dial_lower(gathering, &mut lanes)?;
        self.accept_higher(gathering, &accepted, &mut lanes)?;
        lanes.iter().flatten().flatten().try_for_each(prepare)?;
        Ok(lanes)
    }

    fn dial_lower(&self, gathering: &Gathering<'_>, lanes: &mut [Lane]) -> Result<()> {
        let me = gathering.rank;
        // Everybody's, although only the lower ones are dialled: a missing rank is named by all in the same words.
        let addresses = gathering.collect("address", self.ranks)?;
        for (&rank, address) in self.ranks.iter().zip(&addresses).filter(|&(&rank, _)| rank < me) {
            let address = parse_address(rank, address)?;
            check_token(&[address], self.token)?;
            for (number, lane) in (0..).zip(lanes.iter_mut()) {
                let hello = self.hello(number, me, rank);
                let whom = format!("rank {rank}");
                let stream = dial_until(&[address], self.token, hello, gathering.wait, &whom)?;
                lane[self.position(rank)] = Some(stream);
            }
        }
        Ok(())
    }

    fn accept_higher(
        &self,
        gathering: &Gathering<'_>,
        accepted: &Receiver<Accepted>,
        lanes: &mut [Lane],
    ) -> Result<()> {
        loop {
            let missing = self.missing(gathering.rank, lanes);
            if missing.is_empty() {
                return Ok(());
            }
            match accepted.recv_timeout(gathering.wait.slice(TICK)) {
                Ok((stream, hello)) => self.place(gathering.rank, stream, hello, lanes),
                Err(_) => gathering.look_round()?,
            }
            if gathering.wait.expired() {
                let (me, total) = (gathering.rank, gathering.wait.total());
                let text =
                    format!("rendezvous: rank {me} waited {total} for a connection from {}", rank_list(&missing));
                return Err(Error::new(Code::Timeout, text).with_rank(me).with_peer(missing[0]));
            }
        }
    }

    /// Keeps a connection that is expected; drops any other.
    fn place(&self, me: usize, stream: TcpStream, hello: Hello, lanes: &mut [Lane]) {
        let expected = hello == self.hello(hello.lane, hello.client as usize, me) && hello.client as usize > me;
        let position = self.ranks.iter().position(|&rank| rank == hello.client as usize);
        if let (true, Some(position), Some(lane)) = (expected, position, lanes.get_mut(usize::from(hello.lane))) {
            // The last one counts: a peer whose first attempt broke has come again.
            lane[position] = Some(stream);
        }
    }

    fn hello(&self, lane: u8, client: usize, server: usize) -> Hello {
        let (client, server) = (wire_rank(client), wire_rank(server));
        Hello { service: Service::Mesh, lane, group: self.group, client, server }
    }

    fn position(&self, rank: usize) -> usize {
        self.ranks.iter().position(|&other| other == rank).expect("a rank of the group")
    }

    fn missing(&self, me: usize, lanes: &[Lane]) -> Vec<usize> {
        let absent = |i: usize| lanes.iter().any(|lane| lane[i].is_none());
        self.ranks.iter().enumerate().filter(|&(i, &rank)| rank != me && absent(i)).map(|(_, &rank)| rank).collect()
    }
}

fn parse_address(rank: usize, bytes: &[u8]) -> Result<SocketAddr> {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Error::new(Code::Rendezvous, format!("rendezvous: rank {rank} left no address in the store")).with_peer(rank)
    })
}

fn prepare(stream: &TcpStream) -> Result<()> {
    let set = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
    set.map_err(|e| io_error("set up a connection", &e))
}
