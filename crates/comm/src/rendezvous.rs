//! How the ranks find each other: the store they share, and the gatherings they hold in it.

use crate::handshake::NO_RANK;
use crate::plan::{Method, Plan};
use crate::store::{FileStore, HashStore, Store, TcpStore, check_token};
use crate::wait::{Wait, rank_list};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use syncbn_core::error::{Code, Error, Result};

/// The prefix of the keys of the world's own gathering.
pub(crate) const WORLD_PREFIX: &str = "syncbn/world";

/// How often a rank that waits for others looks whether one of them has given up.
const LOOK_ROUND: Duration = Duration::from_millis(100);

/// The store all ranks share and this rank's address on their network.
pub(crate) struct Meeting {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tcp: Option<Arc<TcpStore>>,
    pub(crate) ip: IpAddr,
    /// Set once all ranks are connected: from then on a lost client of the store is liveness' business.
    pub(crate) complete: Arc<AtomicBool>,
}

impl Meeting {
    /// Serves, reaches or opens the store of the plan.
    pub(crate) fn open(plan: &Plan, wait: &Wait<'_>) -> Result<Self> {
        let complete = Arc::new(AtomicBool::new(false));
        match &plan.method {
            Method::Alone => {
                let store = Arc::new(HashStore::new());
                Ok(Self { store, tcp: None, ip: Ipv4Addr::LOCALHOST.into(), complete })
            }
            Method::File { path, interface } => {
                let ip = interface.as_deref().map_or(Ok(Ipv4Addr::LOCALHOST.into()), local_address)?;
                check_token(&[SocketAddr::new(ip, 0)], &plan.token)?;
                Ok(Self { store: Arc::new(FileStore::new(path)?), tcp: None, ip, complete })
            }
            Method::Tcp { host, port } => {
                let addresses = resolve(host, *port)?;
                check_token(&addresses, &plan.token)?;
                let (tcp, ip) = if plan.rank == 0 {
                    serve(&addresses, plan, &complete)?
                } else {
                    let (tcp, local) = TcpStore::connect_rank(&addresses, &plan.token, wire_rank(plan.rank), wait)?;
                    (Arc::new(tcp), local.ip())
                };
                Ok(Self { store: tcp.clone(), tcp: Some(tcp), ip, complete })
            }
        }
    }
}

/// Ranks fit the wire's 32 bits: the world's size is bounded.
pub(crate) fn wire_rank(rank: usize) -> u32 {
    u32::try_from(rank).expect("a rank below MAX_WORLD_SIZE")
}

fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let unknown =
        |why: String| Error::new(Code::Rendezvous, format!("init: cannot resolve MASTER_ADDR '{host}': {why}"));
    let mut addresses: Vec<_> = (host, port).to_socket_addrs().map_err(|e| unknown(e.to_string()))?.collect();
    addresses.dedup();
    match addresses.iter().find(|address| address.ip().is_unspecified() || address.ip().is_multicast()) {
        Some(_) => {
            Err(Error::expected(Code::Argument, "init: MASTER_ADDR", "an address of rank 0", format!("'{host}'")))
        }
        None if addresses.is_empty() => Err(unknown("no address".into())),
        None => Ok(addresses),
    }
}

/// This machine's address on the network that `host` is on.
fn local_address(host: &str) -> Result<IpAddr> {
    let target = resolve(host, 9)?[0]; // The discard port: connecting a UDP socket sends nothing.
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let local = UdpSocket::bind(any).and_then(|socket| socket.connect(target).and_then(|()| socket.local_addr()));
    local
        .map(|address| address.ip())
        .map_err(|e| Error::new(Code::Rendezvous, format!("init: no network reaches MASTER_ADDR '{host}': {e}")))
}

fn serve(addresses: &[SocketAddr], plan: &Plan, complete: &Arc<AtomicBool>) -> Result<(Arc<TcpStore>, IpAddr)> {
    let mut failure = Error::internal("no address to serve at");
    for &address in addresses {
        let store = HashStore::new();
        let (seen, done) = (store.clone(), Arc::clone(complete));
        let on_lost = Box::new(move |rank: u32| {
            if rank != NO_RANK && !done.load(Ordering::SeqCst) {
                let text = format!("init: rank {rank} was lost before all ranks had met");
                let _ = report(&seen, WORLD_PREFIX, &Error::new(Code::PeerLost, text).with_peer(rank as usize));
            }
        });
        match TcpStore::serve_ranks(address, Arc::clone(&plan.token), store, on_lost) {
            Ok(tcp) => return Ok((Arc::new(tcp), address.ip())),
            Err(error) if error.code() == Code::AddressInUse => return Err(error),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Ranks that leave values for each other under one prefix of the store, and learn of each other's failures.
pub(crate) struct Gathering<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) prefix: String,
    pub(crate) rank: usize,
    pub(crate) wait: &'a Wait<'a>,
    /// Connections that brought another token; told when a rank is missing.
    pub(crate) strangers: &'a dyn Fn() -> usize,
}

impl Gathering<'_> {
    /// Leaves this rank's value for `topic`.
    pub(crate) fn publish(&self, topic: &str, value: &[u8]) -> Result<()> {
        self.store.set(&self.key(topic, self.rank), value)
    }

    /// The values of `ranks` for `topic`, once all are there.
    pub(crate) fn collect(&self, topic: &str, ranks: &[usize]) -> Result<Vec<Vec<u8>>> {
        let keys: Vec<_> = ranks.iter().map(|&rank| self.key(topic, rank)).collect();
        let views: Vec<_> = keys.iter().map(String::as_str).collect();
        loop {
            match self.store.wait(&views, self.wait.slice(LOOK_ROUND)) {
                Ok(()) => break,
                Err(error) if error.code() == Code::Timeout && error.peer().is_none() => {}
                // A rank that died explains more than the store that ended because of it.
                Err(error) => return self.wait.check().and(Err(error)),
            }
            self.look_round()?;
            if self.wait.expired() {
                return Err(self.missing(topic, ranks));
            }
        }
        views.iter().map(|key| self.store.get(key, LOOK_ROUND)).collect()
    }

    /// The error that another rank has reported, or that ends this rank's wait.
    pub(crate) fn look_round(&self) -> Result<()> {
        self.wait.check()?;
        let key = failure_key(&self.prefix);
        if self.store.check(&[&key])? {
            return Err(decode_failure(&self.store.get(&key, LOOK_ROUND)?));
        }
        Ok(())
    }

    /// Returns when all `ranks` have come here; afterwards rank 0 may take the store away.
    pub(crate) fn finish(&self, ranks: &[usize]) -> Result<()> {
        self.publish("ready", &[])?;
        self.collect("ready", ranks)?;
        // Without rank 0 nobody could have come here; whether it is still there does not matter any more.
        let _ = self.publish("done", &[]);
        if self.rank == 0 {
            let _ = self.collect("done", ranks);
        }
        Ok(())
    }

    /// Tells the others why this rank gives up. A cancellation is this rank's own; the others lose a peer.
    pub(crate) fn fail(&self, error: &Error) {
        let error = if error.code() == Code::Aborted {
            let text = format!("rendezvous: rank {} gave up: {error}", self.rank);
            Error::new(Code::PeerLost, text).with_peer(self.rank)
        } else {
            error.clone()
        };
        let _ = report(self.store, &self.prefix, &error);
    }

    fn key(&self, topic: &str, rank: usize) -> String {
        format!("{}/{topic}/{rank}", self.prefix)
    }

    #[cold]
    fn missing(&self, topic: &str, ranks: &[usize]) -> Error {
        let absent = |&&rank: &&usize| !self.store.check(&[&self.key(topic, rank)]).unwrap_or(false);
        let missing: Vec<_> = ranks.iter().filter(absent).copied().collect();
        let strangers = match (self.strangers)() {
            0 => String::new(),
            n => format!("; {n} connections with another token were refused"),
        };
        let (me, total) = (self.rank, self.wait.total());
        let text = format!("rendezvous: rank {me} waited {total} for {}{strangers}", rank_list(&missing));
        let error = Error::new(Code::Timeout, text).with_rank(me);
        missing.first().map_or_else(|| error.clone(), |&peer| error.clone().with_peer(peer))
    }
}

fn failure_key(prefix: &str) -> String {
    format!("{prefix}/failed")
}

/// The first report stands.
fn report(store: &dyn Store, prefix: &str, error: &Error) -> Result<()> {
    if store.add(&format!("{prefix}/failures"), 1)? > 1 {
        return Ok(());
    }
    let peer = error.peer().map_or("-".into(), |peer| peer.to_string());
    store.set(&failure_key(prefix), format!("{} {peer} {}", error.code().as_str(), error.message()).as_bytes())
}

fn decode_failure(bytes: &[u8]) -> Error {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, ' ');
    let (code, peer, message) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
    let code = Code::ALL.iter().copied().find(|c| Some(c.as_str()) == code).unwrap_or(Code::Rendezvous);
    let error = Error::new(code, message);
    peer.and_then(|peer| peer.parse().ok()).map_or(error.clone(), |peer| error.with_peer(peer))
}

/// Enters the world's gathering: refuses a rank that is there already and another world size.
pub(crate) fn join(gathering: &Gathering<'_>, world_size: usize) -> Result<()> {
    let rank = gathering.rank;
    if gathering.store.add(&gathering.key("joined", rank), 1)? > 1 {
        let text = format!(
            "rendezvous: rank {rank} has joined already: two processes have the same rank, or the meeting point was \
             used by an earlier run"
        );
        return Err(Error::new(Code::Rendezvous, text).with_rank(rank));
    }
    if rank == 0 {
        return gathering.publish("world_size", world_size.to_string().as_bytes());
    }
    let theirs = gathering.collect("world_size", &[0])?.concat();
    if theirs == world_size.to_string().as_bytes() {
        return Ok(());
    }
    let theirs = String::from_utf8_lossy(&theirs);
    let text = format!("rendezvous: rank {rank} has world size {world_size}, rank 0 has world size {theirs}");
    Err(Error::new(Code::Rendezvous, text).with_rank(rank).with_peer(0))
}
