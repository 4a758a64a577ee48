//! The TCP store's serving end: a [`HashStore`] and one thread for each client.

use super::wire::{Reply, Request, body_length, encode_reply, write_message};
use super::{HashStore, Store};
use crate::acceptor::Acceptor;
use crate::handshake::{Hello, Service};
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use syncbn_core::error::{Code, Error, Result};

/// Told the rank of a client whose connection ended.
pub(crate) type OnLost = dyn Fn(u32) + Send + Sync;

/// A serving store; dropping it ends all its connections.
pub(super) struct Server {
    acceptor: Acceptor,
    shared: Arc<Shared>,
}

struct Shared {
    store: HashStore,
    clients: Mutex<Clients>,
    on_lost: Box<OnLost>,
}

#[derive(Default)]
struct Clients {
    next: u64,
    open: HashMap<u64, TcpStream>,
    closed: bool,
}

impl Server {
    /// Serves `store` at `address`; `ERR_ADDRESS_IN_USE` if the port is taken.
    pub(super) fn bind(address: SocketAddr, token: Arc<[u8]>, store: HashStore, on_lost: Box<OnLost>) -> Result<Self> {
        let listener = TcpListener::bind(address).map_err(|e| bind_error(address, &e))?;
        let shared = Arc::new(Shared { store, clients: Mutex::default(), on_lost });
        let worker = Arc::clone(&shared);
        let serve = Box::new(move |stream: TcpStream, hello: Hello| worker.client(&stream, hello.client));
        Ok(Self { acceptor: Acceptor::spawn(listener, Service::Store, token, serve)?, shared })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.acceptor.address()
    }

    /// Clients that are connected.
    pub(super) fn clients(&self) -> usize {
        self.shared.clients().open.len()
    }

    pub(super) fn strangers(&self) -> usize {
        self.acceptor.strangers()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.store.close();
        let mut clients = self.shared.clients();
        clients.closed = true;
        clients.open.values().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one client to its end.
    fn client(&self, stream: &TcpStream, rank: u32) {
        let Some(id) = self.enter(stream) else { return };
        // A client may think for as long as it likes between two requests.
        let _ = stream.set_read_timeout(None).and_then(|()| self.serve(stream));
        let mut clients = self.clients();
        clients.open.remove(&id);
        if !clients.closed {
            drop(clients);
            (self.on_lost)(rank);
        }
    }

    fn enter(&self, stream: &TcpStream) -> Option<u64> {
        let copy = stream.try_clone().ok()?;
        let mut clients = self.clients();
        let id = clients.next;
        clients.next += 1;
        clients.open.insert(id, copy);
        (!clients.closed).then_some(id)
    }

    fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        loop {
            let mut head = [0; 4];
            stream.read_exact(&mut head)?;
            let mut body = vec![0; body_length(head)?];
            stream.read_exact(&mut body)?;
            let request = Request::decode(&body).ok_or_else(|| io::Error::other("malformed request"))?;
            write_message(stream, &encode_reply(&self.reply(request)))?;
        }
    }

    fn reply(&self, request: Request) -> Reply {
        let store = &self.store;
        let views =
            |keys: &[String], f: &dyn Fn(&[&str]) -> Reply| f(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        match request {
            Request::Set(key, value) => store.set(&key, &value).map(|()| vec![]),
            Request::Get(key, timeout) => store.get(&key, timeout),
            Request::Wait(keys, timeout) => views(&keys, &|keys| store.wait(keys, timeout).map(|()| vec![])),
            Request::Add(key, delta) => store.add(&key, delta).map(|sum| sum.to_le_bytes().to_vec()),
            Request::Check(keys) => views(&keys, &|keys| store.check(keys).map(|all| vec![all.into()])),
            Request::Delete(key) => store.delete_key(&key).map(|was| vec![was.into()]),
        }
    }
}

#[cold]
fn bind_error(address: SocketAddr, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::AddrInUse {
        let text = format!("store: port {} of {} is in use; choose another MASTER_PORT", address.port(), address.ip());
        return Error::new(Code::AddressInUse, text);
    }
    let text = format!("store: rank 0 cannot listen on {address}: {error}; MASTER_ADDR must be an address of rank 0");
    Error::new(Code::Rendezvous, text)
}
