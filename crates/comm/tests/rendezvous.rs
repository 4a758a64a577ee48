//! How ranks meet, and every way in which they fail to.

mod common;

use common::{TIMEOUT, expect, free_port, join, options, threads, within};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use syncbn_comm::{CancelToken, Environment, InitOptions, Store, TcpStore, World, init};
use syncbn_core::error::{Code, Result};

const DEADLINE: Duration = Duration::from_millis(1500);

fn meet(options: &InitOptions) -> Result<World> {
    let world = join(options)?;
    world.default_group().barrier()?;
    Ok(world)
}

#[test]
fn the_environment_is_enough_on_loopback() {
    let port = free_port().to_string();
    threads(3, move |rank| {
        let variables = [("RANK", rank.to_string()), ("WORLD_SIZE", "3".into())];
        let meeting = [("MASTER_ADDR", "localhost".to_string()), ("MASTER_PORT", port.clone())];
        let local = [("LOCAL_RANK", (rank + 1).to_string())];
        let env: Environment = variables.into_iter().chain(meeting).chain(local).collect();
        let world = init(&InitOptions { timeout: TIMEOUT, ..InitOptions::default() }, &env).unwrap();
        assert_eq!((world.rank(), world.size(), world.local_rank()), (rank, 3, Some(rank + 1)));
        world.default_group().barrier().unwrap();
        world.store().unwrap().set(&rank.to_string(), b"here").unwrap();
        world.store().unwrap().wait(&["0", "1", "2"], TIMEOUT).unwrap();
        world.default_group().barrier().unwrap();
        world.destroy();
        expect(world.store().map(drop), Code::NotInitialized);
    });
}

#[test]
fn one_rank_needs_no_network() {
    let options = InitOptions { world_size: Some(1), ..InitOptions::default() };
    let world = init(&options, &Environment::default()).unwrap();
    let mut slots = [7; 5];
    world.default_group().all_gather(&mut slots).unwrap();
    assert_eq!(slots, [7; 5]);
    let group = world.new_group(&[0], None).unwrap();
    group.barrier().unwrap();
    world.store().unwrap().set("k", b"v").unwrap();
}

#[test]
fn a_path_is_enough() {
    let path = std::env::temp_dir().join(format!("syncbn-meet-{}-{}", std::process::id(), free_port()));
    let method = format!("file://{}", path.display());
    let at_path = move |rank| InitOptions { init_method: method.clone(), ..options(rank, 3, 1) };
    let again = at_path.clone();
    threads(3, move |rank| drop(meet(&at_path(rank)).unwrap()));
    let start = Instant::now();
    let errors = threads(3, move |rank| expect(meet(&again(rank)), Code::Rendezvous));
    within(start, TIMEOUT / 2);
    assert!(errors.iter().all(|error| error.message().contains("earlier run")), "{errors:?}");
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_missing_rank_is_named_by_all_others() {
    let port = free_port();
    let start = Instant::now();
    let errors = threads(2, move |rank| {
        expect(meet(&InitOptions { timeout: DEADLINE, ..options(rank, 3, port) }), Code::Timeout)
    });
    within(start, 2 * DEADLINE);
    for error in errors {
        assert_eq!(error.peer(), Some(2), "{error}");
        assert!(error.message().contains("waited 1500 ms for rank 2"), "{error}");
    }
}

#[test]
fn without_rank_0_the_meeting_point_is_named() {
    let port = free_port();
    let start = Instant::now();
    let error = expect(meet(&InitOptions { timeout: DEADLINE, ..options(1, 2, port) }), Code::Timeout);
    within(start, 2 * DEADLINE);
    assert!(error.message().contains(&format!("the store of rank 0 at 127.0.0.1:{port}")), "{error}");
}

#[test]
fn a_rank_that_comes_twice_fails_everybody() {
    let port = free_port();
    let start = Instant::now();
    let errors =
        threads(3, move |i| expect(meet(&options([0, 1, 1][i], 3, port)), Code::Rendezvous).message().to_owned());
    within(start, TIMEOUT / 2);
    assert!(errors.iter().all(|text| text.contains("rank 1 has joined already")), "{errors:?}");
}

#[test]
fn another_world_size_fails_everybody() {
    let port = free_port();
    let start = Instant::now();
    let errors = threads(3, move |rank| expect(meet(&options(rank, [3, 4, 3][rank], port)), Code::Rendezvous));
    within(start, TIMEOUT / 2);
    let text = "rank 1 has world size 4, rank 0 has world size 3";
    assert!(errors.iter().all(|error| error.message().contains(text)), "{errors:?}");
}

#[test]
fn a_wrong_token_is_refused_and_the_others_wait_for_the_right_one() {
    let port = free_port();
    let start = Instant::now();
    let wrong = InitOptions { token: Some(b"guess".to_vec()), ..options(1, 2, port) };
    let rank_0 = thread::spawn(move || meet(&options(0, 2, port)).map(drop));
    expect(meet(&wrong), Code::TokenRejected);
    expect(meet(&InitOptions { token: None, ..wrong }), Code::TokenRejected);
    within(start, TIMEOUT / 2);
    drop(meet(&options(1, 2, port)).unwrap());
    rank_0.join().unwrap().unwrap();
}

#[test]
fn a_wrong_token_on_rank_0_is_told_at_its_deadline() {
    let port = free_port();
    let rank_0 = InitOptions { token: Some(b"guess".to_vec()), timeout: DEADLINE, ..options(0, 2, port) };
    let rank_0 = thread::spawn(move || expect(meet(&rank_0), Code::Timeout));
    expect(meet(&options(1, 2, port)), Code::TokenRejected);
    let error = rank_0.join().unwrap();
    assert!(error.message().contains("1 connections with another token were refused"), "{error}");
}

#[test]
fn other_machines_need_a_token() {
    for rank in 0..2 {
        let open = InitOptions { token: None, init_method: "tcp://192.0.2.1:9".into(), ..options(rank, 2, 9) };
        let start = Instant::now();
        expect(meet(&open), Code::TokenRequired);
        within(start, Duration::from_secs(1));
    }
}

#[test]
fn the_whole_network_is_no_meeting_point() {
    let everywhere = InitOptions { init_method: "tcp://0.0.0.0:9".into(), ..options(0, 2, 9) };
    expect(meet(&everywhere), Code::Argument);
    // An address of documentation: not one of this machine, so rank 0 cannot be here.
    let elsewhere = InitOptions { init_method: "tcp://192.0.2.1:9".into(), ..options(0, 2, 9) };
    expect(meet(&elsewhere), Code::Rendezvous);
}

#[test]
fn a_taken_port_is_named_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let start = Instant::now();
    let error = expect(meet(&options(0, 2, port)), Code::AddressInUse);
    within(start, Duration::from_secs(1));
    assert!(error.message().contains(&format!("port {port}")), "{error}");
}

/// Connections that say nothing, garbage, or half a hello; kept open.
fn make_noise(address: &str) -> Vec<TcpStream> {
    let mut noise: Vec<_> = (0..12).map(|_| TcpStream::connect(address).unwrap()).collect();
    for (i, stream) in noise.iter_mut().enumerate() {
        let text: &[u8] = [&b""[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"sBN1\x02", &[255; 5000]][i % 4];
        let _ = stream.write_all(text);
    }
    noise
}

#[test]
fn noise_on_both_ports_disturbs_nobody() {
    let port = free_port();
    let ranks: Vec<_> = (0..2).map(|rank| thread::spawn(move || meet(&options(rank, 3, port)))).collect();
    let mut noise = vec![];
    let store = TcpStore::connect(([127, 0, 0, 1], port).into(), b"secret", TIMEOUT).unwrap();
    noise.extend(make_noise(&format!("127.0.0.1:{port}")));
    for rank in 0..2 {
        let address = store.get(&format!("syncbn/world/address/{rank}"), TIMEOUT).unwrap();
        noise.extend(make_noise(&String::from_utf8(address).unwrap()));
    }
    // A visitor of the store that leaves is no lost rank.
    drop(store);
    let start = Instant::now();
    let last = meet(&options(2, 3, port)).unwrap();
    let worlds: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect();
    within(start, Duration::from_secs(3));
    drop((last, worlds, noise));
}

#[test]
fn cancelling_ends_every_wait() {
    for rank in 0..2 {
        let cancel = CancelToken::default();
        let waiting = InitOptions { cancel: cancel.clone(), ..options(rank, 2, free_port()) };
        let waiter = thread::spawn(move || expect(meet(&waiting), Code::Aborted));
        thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        cancel.cancel();
        waiter.join().unwrap();
        within(start, Duration::from_secs(1));
    }
}

#[test]
fn cancelling_after_the_others_have_joined_fails_them_too() {
    let port = free_port();
    let cancel = CancelToken::default();
    let waiting = InitOptions { cancel: cancel.clone(), ..options(1, 3, port) };
    let rank_0 = thread::spawn(move || expect(meet(&options(0, 3, port)), Code::PeerLost));
    let rank_1 = thread::spawn(move || expect(meet(&waiting), Code::Aborted));
    thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    cancel.cancel();
    rank_1.join().unwrap();
    assert_eq!(rank_0.join().unwrap().peer(), Some(1));
    within(start, Duration::from_secs(2));
}

#[test]
fn meeting_again_and_again_leaves_nothing_behind() {
    let port = free_port();
    for _ in 0..10 {
        threads(3, move |rank| drop(meet(&options(rank, 3, port)).unwrap()));
    }
}
