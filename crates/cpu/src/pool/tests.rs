//! Tests of the pool. They share one pool with each other, so a test must hold whether or not its job gets help.

use super::*;
use std::sync::atomic::AtomicU32;

const BIG: usize = 64 << 20;

#[test]
fn every_unit_runs_once() {
    set_num_threads(4);
    for units in [0, 1, 2, 3, 7, 64, 1001] {
        let times: Vec<AtomicU32> = (0..units).map(|_| AtomicU32::new(0)).collect();
        parallel(BIG, units, &|unit| {
            times[unit].fetch_add(1, Relaxed);
        });
        assert!(times.iter().all(|times| times.load(Relaxed) == 1), "{units} units");
    }
}

#[test]
fn nested_calls_and_many_callers_neither_block_nor_lose_work() {
    set_num_threads(4);
    let sum = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    parallel(BIG, 5, &|a| {
                        parallel(BIG, 3, &|b| {
                            sum.fetch_add(10 * a + b, Relaxed);
                        });
                    });
                }
            });
        }
    });
    // Over a in 0..5 and b in 0..3, 10 a + b sums to 10·10·3 + 3·5.
    assert_eq!(sum.load(Relaxed), 4 * 200 * 315);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    set_num_threads(4);
    for bad in [0, 5, 63] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            parallel(BIG, 64, &|unit| {
                assert!(unit != bad, "unit {unit} is bad");
            });
        }));
        let message = *result.unwrap_err().downcast::<String>().unwrap();
        assert_eq!(message, format!("unit {bad} is bad"));
        let count = AtomicUsize::new(0);
        parallel(BIG, 64, &|_| {
            count.fetch_add(1, Relaxed);
        });
        assert_eq!(count.load(Relaxed), 64);
    }
}

#[test]
fn a_parked_worker_wakes_up() {
    set_num_threads(2);
    let names = Mutex::new(std::collections::HashSet::new());
    for _ in 0..50 {
        thread::sleep(Duration::from_millis(1));
        parallel(BIG, 8, &|_| {
            names.lock().unwrap().insert(thread::current().id());
            thread::sleep(Duration::from_micros(300));
        });
    }
    assert!(names.lock().unwrap().len() > 1, "only the caller ever worked");
}
