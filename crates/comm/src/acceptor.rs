//! A listening socket that hands out authenticated connections; strangers never disturb it.
//!
//! Each connection has its own short-lived thread for the handshake, so that a silent one holds up nobody; their
//! number is bounded, and clients that find no room try again.

use crate::handshake::{Hello, Service, Visitor, answer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use syncbn_core::error::{Code, Error, Result};

/// Connections that may be in their handshake at a time.
const MAX_PENDING: usize = 256;
const STACK_BYTES: usize = 256 << 10;

/// Takes over an authenticated connection, on its own thread.
pub(crate) type Serve = dyn Fn(TcpStream, Hello) + Send + Sync;

/// A listener and its thread; dropping it closes the port.
pub(crate) struct Acceptor {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    service: Service,
    token: Arc<[u8]>,
    serve: Box<Serve>,
    stop: AtomicBool,
    pending: AtomicUsize,
    strangers: AtomicUsize,
}

impl Acceptor {
    /// Accepts connections for `service` until dropped.
    pub(crate) fn spawn(listener: TcpListener, service: Service, token: Arc<[u8]>, serve: Box<Serve>) -> Result<Self> {
        let address = listener.local_addr().map_err(|e| io_error("read the listener's address", &e))?;
        let (stop, pending, strangers) = Default::default();
        let shared = Arc::new(Shared { service, token, serve, stop, pending, strangers });
        let worker = Arc::clone(&shared);
        let thread = spawn("syncbn-accept", move || accept_loop(&listener, &worker))?;
        Ok(Self { shared, address, thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that came with another token.
    pub(crate) fn strangers(&self) -> usize {
        self.shared.strangers.load(Ordering::Relaxed)
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Ends the blocking accept. If it cannot be reached the thread is left to the process' end.
        let woken = TcpStream::connect_timeout(&reachable(self.address), Duration::from_secs(1));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// A socket bound to no particular address is reached over loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

fn accept_loop(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let accepted = listener.accept();
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => admit(stream, shared),
            // Out of descriptors, most likely: give others time to return some.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn admit(stream: TcpStream, shared: &Arc<Shared>) {
    if shared.pending.fetch_add(1, Ordering::SeqCst) >= MAX_PENDING {
        shared.pending.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let worker = Arc::clone(shared);
    if spawn("syncbn-serve", move || welcome(stream, &worker)).is_err() {
        shared.pending.fetch_sub(1, Ordering::SeqCst);
    }
}

fn welcome(stream: TcpStream, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let visitor = answer(&stream, &shared.token);
    shared.pending.fetch_sub(1, Ordering::SeqCst);
    match visitor {
        Visitor::Known(hello) if hello.service == shared.service && !shared.stop.load(Ordering::SeqCst) => {
            (shared.serve)(stream, hello);
        }
        Visitor::Stranger => {
            shared.strangers.fetch_add(1, Ordering::Relaxed);
        }
        _ => {}
    }
}

/// A named thread with a small stack.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
        .spawn(body)
        .map_err(|e| io_error("start a thread", &e))
}

/// [`Code::Io`] for something the system refused.
#[cold]
pub(crate) fn io_error(what: &str, error: &std::io::Error) -> Error {
    Error::new(Code::Io, format!("cannot {what}: {error}"))
}
