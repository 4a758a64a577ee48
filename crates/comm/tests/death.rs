//! Real processes that die: the survivors are threads of the test, the victim is the test binary started again.

mod common;

use common::{TIMEOUT, expect, free_port, join, options, threads, within};
use std::env;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use syncbn_comm::World;
use syncbn_core::collective::ReduceOp;
use syncbn_core::dtype::DType;
use syncbn_core::error::{Code, Error};

const SOON: Duration = Duration::from_secs(1);
const ROLE: &str = "SYNCBN_TEST_VICTIM";

/// A process that is killed when the test ends, whatever happens.
struct Victim(Child);

impl Victim {
    /// Starts `victim` below as the last rank of a world of `world_size`.
    fn start(role: &str, world_size: usize, port: u16) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "victim", "--nocapture"]).env(ROLE, format!("{role} {world_size} {port}"));
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: what the victim does. Without its variable it does nothing.
#[test]
fn victim() {
    let Ok(role) = env::var(ROLE) else { return };
    let [role, world_size, port] = role.split(' ').collect::<Vec<_>>()[..] else { panic!("{role}") };
    let (world_size, port) = (world_size.parse::<usize>().unwrap(), port.parse().unwrap());
    let world = join(&options(world_size - 1, world_size, port)).unwrap();
    let group = world.default_group();
    group.barrier().unwrap();
    match role {
        "sleep" => thread::sleep(TIMEOUT),
        "reduce" => while group.all_reduce(&mut vec![0; 4 << 20], DType::F32, ReduceOp::Sum).is_ok() {},
        // The end of the program without a goodbye, right after the last call.
        "exit" => {
            group.all_gather(&mut vec![1; world_size * 500_000]).unwrap();
            std::process::exit(0);
        }
        _ => panic!("{role}"),
    }
}

/// Survivors of a world of `survivors` + 1 run `body`; the victim is killed 200 ms after all have met. Each survivor's
/// error must come within a second after the kill.
fn killed(role: &str, survivors: usize, body: impl Fn(&World) -> Error + Send + Sync + 'static) -> Vec<Error> {
    let port = free_port();
    let mut victim = Victim::start(role, survivors + 1, port);
    let met = Arc::new(Barrier::new(survivors + 1));
    let meet = Arc::clone(&met);
    let ranks = thread::spawn(move || {
        threads(survivors, move |rank| {
            let world = join(&options(rank, survivors + 1, port)).unwrap();
            world.default_group().barrier().unwrap();
            meet.wait();
            (body(&world), Instant::now())
        })
    });
    met.wait();
    thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    victim.kill();
    let results = ranks.join().unwrap();
    for (error, at) in &results {
        assert!(*at >= start, "before the kill: {error:?}");
        assert!(at.duration_since(start) < SOON, "{:?} after the kill", at.duration_since(start));
        assert_eq!(error.peer(), Some(survivors), "{error:?}");
    }
    results.into_iter().map(|(error, _)| error).collect()
}

#[test]
fn killed_while_the_others_wait_in_all_gather() {
    for survivors in 1..=3 {
        killed("sleep", survivors, move |world| {
            let group = world.default_group();
            let error = expect(group.all_gather(&mut vec![0; 6144 * (survivors + 1)]), Code::PeerLost);
            let later = expect(group.barrier(), Code::GroupPoisoned);
            assert!(later.message().contains(error.message()), "{later}");
            error
        });
    }
}

#[test]
fn killed_in_the_middle_of_large_all_reduces() {
    killed("reduce", 3, |world| {
        let group = world.default_group();
        loop {
            if let Err(error) = group.all_reduce(&mut vec![0; 4 << 20], DType::F32, ReduceOp::Sum) {
                assert_eq!(error.code(), Code::PeerLost, "{error:?}");
                return error;
            }
        }
    });
}

#[test]
fn a_death_is_noticed_while_another_rank_hangs() {
    killed("sleep", 2, |world| {
        let group = world.default_group();
        if world.rank() == 1 {
            // Computes, far from any socket; learns of it at its next call.
            thread::sleep(Duration::from_millis(600));
        }
        expect(group.all_reduce(&mut [0; 64], DType::F32, ReduceOp::Sum), Code::PeerLost)
    });
}

#[test]
fn a_death_ends_the_making_of_a_group() {
    killed("sleep", 2, |world| expect(world.new_group(&[0, 1], None), Code::PeerLost));
}

#[test]
fn groups_without_the_dead_rank_live_on() {
    let port = free_port();
    let mut victim = Victim::start("exit", 3, port);
    threads(2, move |rank| {
        let world = join(&options(rank, 3, port)).unwrap();
        let group = world.default_group();
        group.barrier().unwrap();
        // The victim completes this call and exits; what it sent still arrives, on every rank.
        if rank == 1 {
            thread::sleep(Duration::from_millis(20));
        }
        let mut slots = vec![1; 3 * 500_000];
        group.all_gather(&mut slots).unwrap();
        let start = Instant::now();
        let error = expect(group.barrier(), Code::PeerLost);
        within(start, SOON);
        assert_eq!(error.peer(), Some(2));
    });
    victim.0.wait().unwrap();
}

#[test]
fn killed_while_the_ranks_meet() {
    let port = free_port();
    // Four ranks are expected, three come: the victim is rank 3, rank 2 is missing.
    let waiting =
        thread::spawn(move || threads(2, move |rank| (join(&options(rank, 4, port)).map(drop), Instant::now())));
    let mut victim = Victim::start("sleep", 4, port);
    thread::sleep(SOON);
    let start = Instant::now();
    victim.kill();
    for (result, at) in waiting.join().unwrap() {
        let error = expect(result, Code::PeerLost);
        assert_eq!(error.peer(), Some(3), "{error}");
        assert!(at >= start && at.duration_since(start) < SOON);
    }
}
