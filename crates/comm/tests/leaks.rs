//! Worlds that end leave no thread and no descriptor behind, whether they met, failed or were just dropped.

#![cfg(target_os = "linux")]

mod common;

use common::{expect, free_port, join, options, threads, world};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};
use syncbn_comm::InitOptions;
use syncbn_core::error::Code;

fn count(of: &str) -> usize {
    fs::read_dir(format!("/proc/self/{of}")).unwrap().count()
}

fn held() -> (usize, usize) {
    (count("fd"), count("task"))
}

fn use_worlds() {
    world(3, |world| {
        world.new_group(&[1, 2], None).unwrap();
        world.default_group().barrier().unwrap();
        if world.rank() == 1 {
            world.destroy();
        }
    });
    let port = free_port();
    threads(2, move |rank| {
        let short = InitOptions { timeout: Duration::from_millis(100), ..options(rank, 3, port) };
        expect(join(&short), Code::Timeout);
    });
}

#[test]
fn nothing_is_left() {
    use_worlds();
    thread::sleep(Duration::from_millis(200));
    let before = held();
    (0..10).for_each(|_| use_worlds());
    let start = Instant::now();
    // Threads that were told to end may need a moment; handshakes that nobody answers end after 5 s.
    while held() > before && start.elapsed() < Duration::from_secs(8) {
        thread::sleep(Duration::from_millis(20));
    }
    let after = held();
    assert!(after.0 <= before.0 && after.1 <= before.1, "descriptors and threads: {before:?} before, {after:?} after");
}
