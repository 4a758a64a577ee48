//! A store that one process serves and the others reach over TCP.

use super::server::{OnLost, Server};
use super::wire::{Reply, Request, body_length, decode_reply, write_message};
use super::{HashStore, Store, check_sizes};
use crate::acceptor::io_error;
use crate::handshake::{Hello, NO_RANK, Refusal, Service, dial, is_pause};
use crate::wait::{TICK, Wait, deadline, words};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use syncbn_core::error::{Code, Error, Result};

/// How long the server may take to answer, beyond the time the request itself waits.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A store over TCP. The serving end keeps the map; it ends when that end is dropped.
///
/// A client has one connection: its calls run one after the other, and a waiting one holds up the rest.
pub struct TcpStore(End);

enum End {
    Server { store: HashStore, server: Server },
    Client(Mutex<Client>),
}

struct Client {
    stream: TcpStream,
    server: u32,
    broken: bool,
}

impl TcpStore {
    /// Serves a store at `address` (port 0: any). `token` may be empty on a loopback address only.
    pub fn serve(address: SocketAddr, token: &[u8]) -> Result<Self> {
        check_token(&[address], token)?;
        Self::serve_ranks(address, token.into(), HashStore::new(), Box::new(|_| {}))
    }

    /// A client of the store at `address`, tried until `timeout`.
    pub fn connect(address: SocketAddr, token: &[u8], timeout: Duration) -> Result<Self> {
        check_token(&[address], token)?;
        Self::connect_rank(&[address], token, NO_RANK, &Wait::new(timeout, &|| Ok(()))).map(|(store, _)| store)
    }

    /// Where the serving end listens; `None` for a client.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            End::Server { server, .. } => Some(server.address()),
            End::Client(_) => None,
        }
    }

    /// Connections that came to the serving end with another token.
    pub(crate) fn strangers(&self) -> usize {
        match &self.0 {
            End::Server { server, .. } => server.strangers(),
            End::Client(_) => 0,
        }
    }

    /// Keeps serving until the clients have gone, `limit` at most.
    pub(crate) fn linger(&self, limit: Duration) {
        let at = Instant::now() + limit;
        if let End::Server { server, .. } = &self.0 {
            while server.clients() > 0 && Instant::now() < at {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    pub(crate) fn serve_ranks(
        address: SocketAddr,
        token: Arc<[u8]>,
        store: HashStore,
        on_lost: Box<OnLost>,
    ) -> Result<Self> {
        let server = Server::bind(address, token, store.clone(), on_lost)?;
        Ok(Self(End::Server { store, server }))
    }

    /// Tries the addresses in turn until one answers. Returns this end's address too.
    pub(crate) fn connect_rank(
        addresses: &[SocketAddr],
        token: &[u8],
        rank: u32,
        wait: &Wait<'_>,
    ) -> Result<(Self, SocketAddr)> {
        let server = if rank == NO_RANK { NO_RANK } else { 0 };
        let hello = Hello { service: Service::Store, lane: 0, group: 0, client: rank, server };
        let stream = dial_until(addresses, token, hello, wait, "the store of rank 0")?;
        let local = stream.local_addr().map_err(|e| io_error("read this end's address", &e))?;
        Ok((Self(End::Client(Mutex::new(Client { stream, server, broken: false }))), local))
    }

    fn ask(client: &Mutex<Client>, request: &Request, patience: Duration) -> Reply {
        let mut client = client.lock().unwrap_or_else(PoisonError::into_inner);
        if client.broken {
            return Err(client.lost("an earlier request failed"));
        }
        let reply = client.exchange(&request.encode(), patience.saturating_add(REPLY_TIMEOUT));
        client.broken = reply.is_err();
        decode_reply(&reply?)
    }
}

/// Connects and shakes hands with one of `addresses`, again and again until the deadline.
pub(crate) fn dial_until(
    addresses: &[SocketAddr],
    token: &[u8],
    hello: Hello,
    wait: &Wait<'_>,
    whom: &str,
) -> Result<TcpStream> {
    let mut pause = Duration::from_millis(1);
    let mut last = io::Error::other("no address");
    loop {
        for address in addresses {
            wait.check()?;
            match attempt(address, token, hello, wait) {
                Ok(stream) => return Ok(stream),
                Err(Refusal::Unanswered(error)) => last = error,
                Err(Refusal::Interrupted(error)) => return Err(error),
                Err(Refusal::Token) => return Err(token_rejected(whom, address)),
            }
        }
        if wait.expired() {
            let at: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
            let text = format!("init: waited {} for {whom} at {}; last attempt: {last}", wait.total(), at.join(" or "));
            return Err(Error::new(Code::Timeout, text));
        }
        thread::sleep(wait.slice(pause));
        pause = (2 * pause).min(TICK);
    }
}

fn attempt(address: &SocketAddr, token: &[u8], hello: Hello, wait: &Wait<'_>) -> Result<TcpStream, Refusal> {
    let stream = TcpStream::connect_timeout(address, wait.slice(CONNECT_TIMEOUT)).map_err(Refusal::Unanswered)?;
    // A connect to a free loopback port of the ephemeral range can meet itself.
    if stream.local_addr().ok() == stream.peer_addr().ok() {
        return Err(Refusal::Unanswered(io::ErrorKind::ConnectionRefused.into()));
    }
    stream.set_nodelay(true).map_err(Refusal::Unanswered)?;
    dial(&stream, token, hello, wait)?;
    Ok(stream)
}

#[cold]
fn token_rejected(whom: &str, address: &SocketAddr) -> Error {
    let text = format!("init: {whom} at {address} has another token; SYNCBN_TOKEN must be the same on every rank");
    Error::new(Code::TokenRejected, text)
}

/// `ERR_TOKEN_REQUIRED` unless there is a token or every address is loopback.
pub(crate) fn check_token(addresses: &[SocketAddr], token: &[u8]) -> Result<()> {
    match addresses.iter().find(|address| !address.ip().is_loopback()) {
        Some(address) if token.is_empty() => Err(Error::new(
            Code::TokenRequired,
            format!(
                "init: {} is not a loopback address: ranks on other machines need a shared SYNCBN_TOKEN",
                address.ip()
            ),
        )),
        _ => Ok(()),
    }
}

impl Client {
    fn exchange(&mut self, body: &[u8], patience: Duration) -> Result<Vec<u8>> {
        let at = deadline(patience);
        let sent = self.stream.set_write_timeout(Some(REPLY_TIMEOUT)).and_then(|()| write_message(&self.stream, body));
        sent.map_err(|e| self.lost(&e.to_string()))?;
        let mut head = [0; 4];
        self.read(&mut head, at, patience)?;
        let length = body_length(head).map_err(|e| self.lost(&e.to_string()))?;
        let mut reply = vec![0; length];
        self.read(&mut reply, at, patience)?;
        Ok(reply)
    }

    fn read(&self, mut bytes: &mut [u8], at: Instant, patience: Duration) -> Result<()> {
        while !bytes.is_empty() {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = format!("store: rank 0 has not answered for {}", words(patience));
                return Err(Error::new(Code::Timeout, text).with_peer(0));
            }
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| (&self.stream).read(bytes));
            match read {
                Ok(0) => return Err(self.lost("it closed the connection")),
                Ok(n) => bytes = &mut bytes[n..],
                Err(e) if is_pause(&e) => {}
                Err(e) => return Err(self.lost(&e.to_string())),
            }
        }
        Ok(())
    }

    #[cold]
    fn lost(&self, why: &str) -> Error {
        let error = Error::new(Code::PeerLost, format!("store: rank 0, which serves the store, was lost: {why}"));
        if self.server == NO_RANK { error } else { error.with_peer(self.server as usize) }
    }
}

fn owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.into()).collect()
}

fn flag(reply: &[u8]) -> bool {
    reply == [1]
}

impl Store for TcpStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        match &self.0 {
            End::Server { store, .. } => store.set(key, value),
            End::Client(client) => {
                check_sizes(key, value)?;
                Self::ask(client, &Request::Set(key.into(), value.into()), Duration::ZERO).map(drop)
            }
        }
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        match &self.0 {
            End::Server { store, .. } => store.get(key, timeout),
            End::Client(client) => {
                check_sizes(key, &[])?;
                Self::ask(client, &Request::Get(key.into(), timeout), timeout)
            }
        }
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        match &self.0 {
            End::Server { store, .. } => store.wait(keys, timeout),
            End::Client(client) => {
                keys.iter().try_for_each(|key| check_sizes(key, &[]))?;
                Self::ask(client, &Request::Wait(owned(keys), timeout), timeout).map(drop)
            }
        }
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64> {
        match &self.0 {
            End::Server { store, .. } => store.add(key, delta),
            End::Client(client) => {
                check_sizes(key, &[])?;
                let reply = Self::ask(client, &Request::Add(key.into(), delta), Duration::ZERO)?;
                let sum = reply.try_into().map_err(|_| Error::new(Code::Io, "store: malformed reply"))?;
                Ok(i64::from_le_bytes(sum))
            }
        }
    }

    fn check(&self, keys: &[&str]) -> Result<bool> {
        match &self.0 {
            End::Server { store, .. } => store.check(keys),
            End::Client(client) => {
                keys.iter().try_for_each(|key| check_sizes(key, &[]))?;
                Self::ask(client, &Request::Check(owned(keys)), Duration::ZERO).map(|reply| flag(&reply))
            }
        }
    }

    fn delete_key(&self, key: &str) -> Result<bool> {
        match &self.0 {
            End::Server { store, .. } => store.delete_key(key),
            End::Client(client) => {
                check_sizes(key, &[])?;
                Self::ask(client, &Request::Delete(key.into()), Duration::ZERO).map(|reply| flag(&reply))
            }
        }
    }
}
