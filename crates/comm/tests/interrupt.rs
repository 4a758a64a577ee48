//! A thread that is to stop does not stay in a collective until the deadline.

mod common;

use common::{expect, within, world};
use std::cell::Cell;
use std::time::{Duration, Instant};
use syncbn_comm::interrupt::set_interrupt;
use syncbn_core::error::Code;

thread_local! {
    static STOP_AT: Cell<Option<Instant>> = const { Cell::new(None) };
}

#[test]
fn a_blocked_thread_can_be_interrupted() {
    world(2, |world| {
        let group = world.default_group();
        if world.rank() == 1 {
            // Never comes to the barrier; learns of rank 0's error while it waits for something else.
            std::thread::sleep(Duration::from_millis(800));
            return;
        }
        set_interrupt(|| STOP_AT.get().is_some_and(|at| Instant::now() >= at));
        let start = Instant::now();
        STOP_AT.set(Some(start + Duration::from_millis(200)));
        expect(group.barrier(), Code::Aborted);
        within(start, Duration::from_millis(700));
        assert!(start.elapsed() >= Duration::from_millis(200) && group.is_poisoned());
    });
}
