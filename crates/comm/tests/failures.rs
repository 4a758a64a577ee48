//! What a group answers when ranks disagree, hang, leave or abort: the typed error, on every rank, in time.

mod common;

use common::{TIMEOUT, expect, within, world, world_with};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};
use syncbn_comm::{Group, World};
use syncbn_core::collective::ReduceOp;
use syncbn_core::dtype::DType;
use syncbn_core::error::{Code, Error, Result};

const DEADLINE: Duration = Duration::from_millis(800);
/// Errors that are found, not waited for.
const SOON: Duration = Duration::from_secs(1);

/// Waits until `ranks` ranks have come here; not for one that has failed.
fn wait_until_seen(world: &World, ranks: i64) {
    let (start, store) = (Instant::now(), world.store().unwrap());
    store.add("seen", 1).unwrap();
    while store.add("seen", 0).is_ok_and(|seen| seen < ranks) && start.elapsed() < TIMEOUT {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Every rank fails with `Mismatch`, soon, and names the calls; then the group is poisoned. Returns rank 0's error.
fn mismatch(ranks: usize, calls: impl Fn(&Group, usize) -> Result<()> + Send + Sync + 'static) -> Error {
    let errors = world(ranks, move |world| {
        let group = world.default_group();
        group.barrier().unwrap();
        let start = Instant::now();
        let error = expect(calls(&group, world.rank()), Code::Mismatch);
        within(start, SOON);
        assert_eq!((error.rank(), error.group()), (Some(world.rank()), Some("default")));
        assert!(group.is_poisoned());
        let later = expect(group.barrier(), Code::GroupPoisoned);
        assert!(later.message().contains(error.message()), "{later}");
        // Nobody leaves before all have seen the error.
        wait_until_seen(&world, ranks as i64);
        thread::sleep(Duration::from_millis(20));
        error
    });
    errors.into_iter().next().unwrap()
}

#[test]
fn another_collective() {
    let error = mismatch(2, |group, rank| match rank {
        0 => group.all_reduce(&mut [0; 64], DType::F32, ReduceOp::Sum),
        _ => group.all_gather(&mut [0; 1056]),
    });
    let text = "rank 0 called all_reduce(sum, float32) #2 of 64 bytes; rank 1 called all_gather #2 of 528 bytes";
    assert!(error.message().starts_with(text), "{error}");
    assert_eq!((error.peer(), error.operation()), (Some(1), Some("all_reduce(sum, float32) #2 of 64 bytes")));
}

#[test]
fn another_length_dtype_operation_or_root() {
    mismatch(3, |group, rank| group.all_gather(&mut vec![0; if rank == 2 { 30 } else { 300 }]));
    mismatch(3, |group, rank| {
        group.all_reduce(&mut [0; 64], if rank == 0 { DType::F64 } else { DType::F32 }, ReduceOp::Sum)
    });
    mismatch(2, |group, rank| {
        group.all_reduce(&mut [0; 64], DType::F32, if rank == 0 { ReduceOp::Sum } else { ReduceOp::Max })
    });
    mismatch(4, |group, rank| group.broadcast(&mut [0; 9], rank % 2));
    mismatch(3, |group, rank| if rank == 1 { group.barrier() } else { group.broadcast(&mut [0; 9], 0) });
}

#[test]
fn large_payloads_do_not_hide_a_mismatch() {
    mismatch(3, |group, rank| match rank {
        0 => group.barrier(),
        _ => group.all_gather(&mut vec![0; 30_000_000]),
    });
    mismatch(4, |group, rank| {
        let bytes = if rank == 3 { 20_000_000 } else { 20_000_004 };
        group.all_reduce(&mut vec![0; bytes], DType::F32, ReduceOp::Sum)
    });
}

#[test]
fn a_hung_rank_is_named_at_the_deadline() {
    world_with(4, DEADLINE, |world| {
        let group = world.default_group();
        group.barrier().unwrap();
        let start = Instant::now();
        if world.rank() == 2 {
            thread::sleep(DEADLINE + SOON);
            // It learns why when it comes back, and only then that the group is unusable.
            expect(group.all_gather(&mut [0; 4096]), Code::Timeout);
            expect(group.all_gather(&mut [0; 4096]), Code::GroupPoisoned);
            return;
        }
        let error = expect(group.all_gather(&mut [0; 4096]), Code::Timeout);
        assert!(start.elapsed() >= DEADLINE / 2);
        within(start, 2 * DEADLINE);
        assert_eq!(error.peer(), Some(2));
        assert!(error.message().contains("waited 800 ms for rank 2 "), "{error}");
        thread::sleep(DEADLINE + SOON);
    });
}

#[test]
fn a_rank_that_stops_in_the_middle_of_a_payload_is_bounded_by_the_same_deadline() {
    // Rank 1 comes late again and again, but each call has one deadline for everything.
    world_with(2, DEADLINE, |world| {
        let group = world.default_group();
        for _ in 0..3 {
            if world.rank() == 1 {
                thread::sleep(DEADLINE / 2);
            }
            group.all_gather(&mut vec![0; 8 << 20]).unwrap();
        }
    });
}

#[test]
fn a_monitored_barrier_names_everybody_who_did_not_come() {
    world(4, |world| {
        let group = world.default_group();
        group.barrier().unwrap();
        if world.rank() % 2 == 0 {
            let start = Instant::now();
            let error = expect(group.monitored_barrier(DEADLINE), Code::Timeout);
            within(start, 2 * DEADLINE);
            assert!(error.message().contains("ranks 1 and 3"), "{error}");
        }
        thread::sleep(2 * DEADLINE);
    });
}

#[test]
fn other_groups_survive_the_poisoning_of_one() {
    world_with(3, TIMEOUT, |world| {
        let group = world.new_group(&[0, 1, 2], Some(DEADLINE)).unwrap();
        if world.rank() != 0 {
            expect(group.barrier(), Code::Timeout);
        }
        world.default_group().barrier().unwrap();
        // The group can be rebuilt.
        drop(group);
        world.new_group(&[0, 1, 2], None).unwrap().barrier().unwrap();
    });
}

#[test]
fn abort_ends_the_waits_of_all_ranks() {
    let errors = world(3, |world| {
        let group = world.default_group();
        group.barrier().unwrap();
        let start = Instant::now();
        let waiter = (world.rank() != 2).then(|| {
            let group = world.default_group();
            thread::spawn(move || expect(group.all_gather(&mut [0; 300]), Code::Aborted))
        });
        thread::sleep(Duration::from_millis(100));
        if world.rank() == 0 {
            group.abort("enough");
        }
        let error = match waiter {
            Some(waiter) => waiter.join().unwrap(),
            None => {
                thread::sleep(Duration::from_millis(200));
                expect(group.barrier(), Code::Aborted)
            }
        };
        within(start, SOON);
        expect(group.barrier(), Code::GroupPoisoned);
        wait_until_seen(&world, 3);
        error
    });
    assert!(errors.iter().all(|error| error.message() == "rank 0 aborted the group 'default': enough"), "{errors:?}");
}

#[test]
fn who_leaves_is_missed_only_by_who_stays() {
    world(3, |world| {
        let group = world.default_group();
        // All complete the last common call, however late they read it.
        for _ in 0..20 {
            group.all_gather(&mut vec![0; 3 * 50_000]).unwrap();
        }
        if world.rank() == 2 {
            world.destroy();
            expect(group.barrier(), Code::Aborted);
            return;
        }
        let start = Instant::now();
        let error = expect(group.barrier(), Code::PeerLost);
        within(start, SOON);
        assert_eq!((error.peer(), error.message()), (Some(2), "rank 2 left the group 'default'"));
        expect(group.barrier(), Code::GroupPoisoned);
        thread::sleep(Duration::from_millis(50));
    });
}

#[test]
fn ranks_that_leave_together_see_no_error() {
    for _ in 0..20 {
        world(4, |world| {
            let group = world.default_group();
            group.all_reduce(&mut vec![0; 400_000], DType::F32, ReduceOp::Sum).unwrap();
            let pair = world.new_group(&[0, 3], None).unwrap();
            if pair.rank().is_some() {
                pair.barrier().unwrap();
            }
            group.barrier().unwrap();
            world.destroy();
            world.destroy();
        });
    }
}

#[test]
fn destroy_ends_a_wait_on_another_thread() {
    world(2, |world| {
        let group = world.default_group();
        group.barrier().unwrap();
        if world.rank() == 1 {
            thread::sleep(Duration::from_millis(400));
            return;
        }
        let (sender, receiver) = channel();
        let waiter = thread::spawn(move || sender.send(group.barrier()).unwrap());
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        world.destroy();
        expect(receiver.recv_timeout(SOON).unwrap(), Code::Aborted);
        within(start, SOON);
        waiter.join().unwrap();
    });
}

#[test]
fn a_rank_missing_from_new_group_is_named() {
    world_with(3, TIMEOUT, |world| {
        let start = Instant::now();
        if world.rank() != 1 {
            let error = expect(world.new_group(&[0, 1], Some(DEADLINE)), Code::Timeout);
            assert_eq!(error.peer(), Some(1), "{error}");
            within(start, 2 * DEADLINE);
        }
        world.default_group().barrier().unwrap();
    });
}

#[test]
fn everything_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<World>();
    shared::<Group>();
}
