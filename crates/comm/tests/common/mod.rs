//! Ranks as threads of one process, over real sockets of the loopback interface.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use syncbn_comm::{CancelToken, Environment, InitOptions, World, init};
use syncbn_core::error::{Code, Error, Result};

/// Long enough for a loaded machine; tests of deadlines choose their own.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Where the search for a free port is made.
const FIRST_PORT: u16 = 12_000;
const SPAN: u32 = 20_000;

/// A port that is free, and that no other test of this process was given.
///
/// It lies below the range from which systems choose the ports of connections, one of which could take it before the
/// rendezvous does.
pub fn free_port() -> u16 {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    (0..SPAN)
        .map(|_| start.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)) % SPAN)
        .map(|offset| FIRST_PORT + offset as u16)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port")
}

/// The options of one rank of a world that meets at `port`.
pub fn options(rank: usize, world_size: usize, port: u16) -> InitOptions {
    InitOptions {
        init_method: format!("tcp://127.0.0.1:{port}"),
        rank: Some(rank),
        world_size: Some(world_size),
        timeout: TIMEOUT,
        token: Some(b"secret".to_vec()),
        cancel: CancelToken::default(),
    }
}

/// `init` without environment variables.
pub fn join(options: &InitOptions) -> Result<World> {
    init(options, &Environment::default())
}

/// Runs `body(rank)` on a thread for each rank; the results in rank order.
pub fn threads<T: Send + 'static>(count: usize, body: impl Fn(usize) -> T + Send + Sync + 'static) -> Vec<T> {
    let body = Arc::new(body);
    let spawn = |rank| {
        let body = Arc::clone(&body);
        thread::spawn(move || body(rank))
    };
    let handles: Vec<_> = (0..count).map(spawn).collect();
    handles.into_iter().map(|handle| handle.join().unwrap()).collect()
}

/// Runs `body(world)` on every rank of a fresh world with this timeout.
pub fn world_with<T: Send + 'static>(
    count: usize,
    timeout: Duration,
    body: impl Fn(World) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let port = free_port();
    threads(count, move |rank| body(join(&InitOptions { timeout, ..options(rank, count, port) }).unwrap()))
}

/// Runs `body(world)` on every rank of a fresh world.
pub fn world<T: Send + 'static>(count: usize, body: impl Fn(World) -> T + Send + Sync + 'static) -> Vec<T> {
    world_with(count, TIMEOUT, body)
}

/// Asserts the code of an error and returns it.
#[track_caller]
pub fn expect<T>(result: Result<T>, code: Code) -> Error {
    match result {
        Err(error) if error.code() == code => error,
        Err(error) => panic!("expected {}, got {error:?}", code.as_str()),
        Ok(_) => panic!("expected {}, got success", code.as_str()),
    }
}

/// Asserts that the time since `start` is below `limit`.
#[track_caller]
pub fn within(start: Instant, limit: Duration) {
    let took = start.elapsed();
    assert!(took < limit, "took {took:?}, allowed {limit:?}");
}
