//! What every store does, and what only some of them can get wrong.

mod common;

use common::{expect, within};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use syncbn_comm::{FileStore, HashStore, PrefixStore, Store, TcpStore};
use syncbn_core::error::Code;

const SHORT: Duration = Duration::from_millis(60);
const LONG: Duration = Duration::from_secs(10);

/// A directory that is removed with its owner.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("syncbn-{name}-{}-{}", std::process::id(), common::free_port()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// The same test for two handles of one store.
fn check_store(a: &dyn Store, b: &Arc<dyn Store>) {
    assert!(!a.check(&["x"]).unwrap());
    a.set("x", b"1").unwrap();
    a.set("x", &[0, 255]).unwrap();
    assert_eq!(b.get("x", SHORT).unwrap(), [0, 255]);
    assert!(b.check(&["x"]).unwrap() && !b.check(&["x", "y"]).unwrap());

    assert_eq!(a.add("n", 5).unwrap(), 5);
    assert_eq!(b.add("n", -7).unwrap(), -2);
    assert_eq!(a.get("n", SHORT).unwrap(), b"-2");
    expect(a.add("x", 1), Code::Argument);

    let start = Instant::now();
    let error = expect(a.wait(&["x", "late/key", "other"], SHORT), Code::Timeout);
    assert!(
        start.elapsed() >= SHORT && error.message().contains("late/key', '") && error.message().ends_with("other'"),
        "{error}"
    );
    let late = Arc::clone(b);
    let setter = thread::spawn(move || {
        thread::sleep(SHORT);
        late.set("late/key", b"here").unwrap();
    });
    assert_eq!(a.get("late/key", LONG).unwrap(), b"here");
    setter.join().unwrap();

    assert!(b.delete_key("x").unwrap() && !a.delete_key("x").unwrap());
    expect(a.get("x", SHORT), Code::Timeout);
    expect(a.set("", b""), Code::Argument);
    expect(a.set(&"k".repeat(5000), b""), Code::Argument);
    a.set("../up", b"inside").unwrap();
    assert_eq!(b.get("../up", SHORT).unwrap(), b"inside");

    let workers: Vec<_> = (0..3).map(|_| Arc::clone(b)).map(|b| thread::spawn(move || count(&*b))).collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert_eq!(a.add("many", 0).unwrap(), 60);
}

fn count(store: &dyn Store) {
    (0..20).for_each(|_| assert!(store.add("many", 1).unwrap() > 0));
}

#[test]
fn hash_store() {
    let store = HashStore::new();
    check_store(&store, &(Arc::new(store.clone()) as _));
}

#[test]
fn prefix_store() {
    let store: Arc<dyn Store> = Arc::new(HashStore::new());
    let inside = PrefixStore::new("p", Arc::clone(&store));
    check_store(&inside, &(Arc::new(inside.clone()) as _));
    inside.set("k", b"v").unwrap();
    assert!(store.check(&["p/k"]).unwrap());
}

#[test]
fn file_store() {
    let directory = Directory::new("store");
    let open = || FileStore::new(directory.0.join("run")).unwrap();
    check_store(&open(), &(Arc::new(open()) as _));
    assert!(!directory.0.join("up").exists(), "a key cannot leave the directory");
    // A temporary file that exists already is as good a path.
    let file = directory.0.join("temporary");
    fs::write(&file, "").unwrap();
    assert_eq!(FileStore::new(&file).unwrap().directory(), directory.0.join("temporary.store"));
}

#[test]
fn tcp_store_between_a_server_and_clients() {
    let server = TcpStore::serve(loopback(), b"t").unwrap();
    let address = server.address().unwrap();
    let client = || TcpStore::connect(address, b"t", LONG).unwrap();
    check_store(&client(), &(Arc::new(client()) as _));
    ["n", "many", "late/key", "../up"].into_iter().for_each(|key| assert!(server.delete_key(key).unwrap()));
    check_store(&server, &(Arc::new(client()) as _));
}

#[test]
fn tcp_store_ends_with_its_server() {
    let server = TcpStore::serve(loopback(), b"").unwrap();
    let client = TcpStore::connect(server.address().unwrap(), b"", LONG).unwrap();
    let start = Instant::now();
    let waiter = thread::spawn(move || client.get("never", LONG).map(drop).and_then(|()| client.get("x", LONG)));
    thread::sleep(SHORT);
    drop(server);
    let error = waiter.join().unwrap().unwrap_err();
    assert!(matches!(error.code(), Code::PeerLost | Code::Aborted), "{error:?}");
    within(start, Duration::from_secs(2));
}

#[test]
fn tcp_store_needs_the_token() {
    let server = TcpStore::serve(loopback(), b"right").unwrap();
    let address = server.address().unwrap();
    for wrong in [&b"wrong"[..], b""] {
        let start = Instant::now();
        expect(TcpStore::connect(address, wrong, LONG), Code::TokenRejected);
        within(start, Duration::from_secs(2));
    }
    let outside: SocketAddr = ([192, 0, 2, 1], 9).into();
    expect(TcpStore::connect(outside, b"", LONG), Code::TokenRequired);
    expect(TcpStore::serve(outside, b""), Code::TokenRequired);
    // A server that cannot prove the token either: it says yes to everything.
    let start = Instant::now();
    let liar = std::net::TcpListener::bind(loopback()).unwrap();
    let target = liar.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = liar.accept().unwrap();
        stream.write_all(&[&b"sBN1"[..], &[7; 32], &[1; 33]].concat()).unwrap();
        thread::sleep(SHORT);
    });
    expect(TcpStore::connect(target, b"right", LONG), Code::TokenRejected);
    within(start, Duration::from_secs(2));
    thread.join().unwrap();
}

#[test]
fn tcp_store_survives_noise() {
    let server = TcpStore::serve(loopback(), b"t").unwrap();
    let address = server.address().unwrap();
    let mut noise: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    for (i, stream) in noise.iter_mut().enumerate() {
        // Some say nothing, some a lot, some stop in the middle of a hello.
        let _ = stream.write_all(&vec![b's'; [0, 10_000, 10][i % 3]]);
    }
    let _ = noise[0].write_all(b"sBN1\x01\0\0\0 and then nothing");
    let start = Instant::now();
    let client = TcpStore::connect(address, b"t", LONG).unwrap();
    client.set("a", b"b").unwrap();
    within(start, Duration::from_secs(1));
}

#[test]
fn tcp_store_port_in_use() {
    let server = TcpStore::serve(loopback(), b"").unwrap();
    let address = server.address().unwrap();
    let error = expect(TcpStore::serve(address, b""), Code::AddressInUse);
    assert!(error.message().contains(&address.port().to_string()), "{error}");
    drop(server);
    TcpStore::serve(address, b"").unwrap();
}
