//! The life of a communicator under a scripted NCCL: what waits, what fails, what is called in which order.

mod scripted;

use scripted::{Pending, Script};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use syncbn_nccl::sys::*;
use syncbn_nccl::*;

const LONG: Wait<'static> = Wait::at_most(Duration::from_secs(60));
const SHORT: Duration = Duration::from_millis(250);
const FOR_EVER: Option<Pending> = Some(Pending { looks: None, end: NCCL_SUCCESS });

fn looks(looks: usize, end: ncclResult_t) -> Option<Pending> {
    Some(Pending { looks: Some(looks), end })
}

fn communicator(script: &'static Script) -> Communicator {
    scripted::nccl().communicator(&script.id(), 0, 2, &Options::default(), LONG).unwrap()
}

fn buffers() -> Buffers {
    Buffers::in_place(null_mut(), 1, DataType::F32)
}

fn all_reduce(communicator: &Communicator, wait: Wait<'_>) -> Result<()> {
    // SAFETY: the scripted NCCL touches no buffer.
    unsafe { communicator.all_reduce(buffers(), ReduceOp::Sum, Stream::from_raw(null_mut()), wait) }
}

/// Runs `call` and requires that it ends within twice the deadline.
fn within_twice<T>(deadline: Duration, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let returned = call();
    let took = start.elapsed();
    assert!(took < deadline * 2, "{took:?} for a deadline of {deadline:?}");
    returned
}

#[test]
fn init_is_non_blocking_and_waits_until_it_is_done() {
    let script = Script::new(&[("ncclCommInitRankConfig", NCCL_IN_PROGRESS, looks(5, NCCL_SUCCESS))]);
    let options = Options { max_ctas: Some(2), ..Options::default() };
    let communicator = scripted::nccl().communicator(&script.id(), 1, 4, &options, LONG).unwrap();
    assert_eq!((communicator.rank(), communicator.world_size()), (1, 4));
    assert_eq!(script.config(), Some((0, NCCL_CONFIG_UNDEF_INT, 2)));
    communicator.close(LONG).unwrap();
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclCommFinalize", "ncclCommDestroy"]);
    drop(communicator);
    assert_eq!(script.calls().len(), 3, "a closed communicator is not aborted");
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn init_times_out_and_leaves_nothing_behind() {
    let script = Script::new(&[("ncclCommInitRankConfig", NCCL_IN_PROGRESS, FOR_EVER)]);
    let init = || scripted::nccl().communicator(&script.id(), 0, 2, &Options::default(), Wait::at_most(SHORT));
    let error = within_twice(SHORT, init).unwrap_err();
    assert_eq!(error, NcclError::Timeout { function: "ncclCommInitRankConfig", timeout: SHORT });
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclCommAbort"]);
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn init_is_cancelled_by_the_caller() {
    let script = Script::new(&[("ncclCommInitRankConfig", NCCL_IN_PROGRESS, FOR_EVER)]);
    let stop = AtomicBool::new(false);
    let keep_waiting = || !stop.load(Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            stop.store(true, Ordering::Relaxed);
        });
        let wait = LONG.while_true(&keep_waiting);
        let init = || scripted::nccl().communicator(&script.id(), 0, 2, &Options::default(), wait);
        let error = within_twice(SHORT, init).unwrap_err();
        assert_eq!(error, NcclError::Cancelled { function: "ncclCommInitRankConfig" });
    });
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclCommAbort"]);
}

#[test]
fn a_failed_init_tells_what_nccl_said() {
    let script = Script::new(&[("ncclCommInitRankConfig", NCCL_IN_PROGRESS, looks(1, NCCL_REMOTE_ERROR))]);
    let error = scripted::nccl().communicator(&script.id(), 0, 2, &Options::default(), LONG).unwrap_err();
    let expected = "ncclCommInitRankConfig: remote process exited (ncclRemoteError): as the script says";
    assert_eq!(error.to_string(), expected);
    assert_eq!(script.calls().last(), Some(&"ncclCommAbort"));
}

#[test]
fn ranks_are_checked_before_nccl_is_called() {
    let script = Script::new(&[]);
    let init = |rank, world| scripted::nccl().communicator(&script.id(), rank, world, &Options::default(), LONG);
    for (rank, world) in [(0, 0), (2, 2), (0, usize::MAX)] {
        assert!(matches!(init(rank, world), Err(NcclError::Argument { .. })), "rank {rank} of {world}");
    }
    assert_eq!(
        init(2, 2).unwrap_err().to_string(),
        "ncclCommInitRankConfig: expected a rank below the world size 2, got 2"
    );
    assert_eq!(script.calls(), [""; 0]);
}

#[test]
fn roots_are_checked_before_nccl_is_called() {
    let script = Script::new(&[]);
    let communicator = communicator(script);
    // SAFETY: the scripted NCCL touches no buffer.
    let error = unsafe { communicator.broadcast(buffers(), 2, Stream::from_raw(null_mut()), LONG) }.unwrap_err();
    assert_eq!(error.to_string(), "ncclBroadcast: expected a root below the world size 2, got 2");
    assert_eq!(script.calls(), ["ncclCommInitRankConfig"]);
    all_reduce(&communicator, LONG).unwrap();
}

#[test]
fn an_operation_in_progress_is_waited_for_before_the_next() {
    let script = Script::new(&[
        ("ncclAllReduce", NCCL_IN_PROGRESS, looks(3, NCCL_SUCCESS)),
        ("ncclAllReduce", NCCL_IN_PROGRESS, looks(2, NCCL_SUCCESS)),
    ]);
    let communicator = communicator(script);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..3).for_each(|_| all_reduce(&communicator, LONG).unwrap()));
        }
        // A watchdog beside them.
        scope.spawn(|| (0..200).for_each(|_| assert!(communicator.async_error().is_ok())));
    });
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn a_timed_out_operation_leaves_only_the_abort() {
    let script = Script::new(&[("ncclAllReduce", NCCL_IN_PROGRESS, FOR_EVER)]);
    let communicator = communicator(script);
    let error = within_twice(SHORT, || all_reduce(&communicator, Wait::at_most(SHORT))).unwrap_err();
    assert_eq!(error, NcclError::Timeout { function: "ncclAllReduce", timeout: SHORT });
    let reason = error.to_string();
    assert_eq!(all_reduce(&communicator, LONG), Err(NcclError::Failed { function: "ncclAllReduce", reason }));
    assert!(matches!(communicator.close(LONG), Err(NcclError::Failed { .. })));
    assert!(matches!(communicator.split(Some(0), 0, LONG), Err(NcclError::Failed { .. })));
    communicator.abort(LONG).unwrap();
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclAllReduce", "ncclCommAbort"]);
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn an_error_of_nccl_fails_the_communicator() {
    let script = Script::new(&[("ncclAllReduce", NCCL_INVALID_ARGUMENT, None)]);
    let communicator = communicator(script);
    let error = all_reduce(&communicator, LONG).unwrap_err();
    assert!(matches!(error, NcclError::Call { code: ErrorCode::InvalidArgument, .. }), "{error}");
    assert!(matches!(all_reduce(&communicator, LONG), Err(NcclError::Failed { .. })));
}

#[test]
fn a_watchdog_sees_the_background_failure() {
    let script = Script::new(&[("ncclAllReduce", NCCL_SUCCESS, looks(1, NCCL_REMOTE_ERROR))]);
    let communicator = communicator(script);
    all_reduce(&communicator, LONG).unwrap();
    assert_eq!(communicator.async_error(), Ok(Status::InProgress));
    let error = communicator.async_error().unwrap_err();
    assert!(matches!(error, NcclError::Call { code: ErrorCode::RemoteError, .. }), "{error}");
    assert!(matches!(all_reduce(&communicator, LONG), Err(NcclError::Failed { .. })));
}

#[test]
fn an_abort_ends_the_wait_of_another_thread() {
    let script = Script::new(&[("ncclAllReduce", NCCL_IN_PROGRESS, FOR_EVER)]);
    let communicator = communicator(script);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| all_reduce(&communicator, LONG));
        thread::sleep(SHORT);
        within_twice(SHORT, || communicator.abort(LONG)).unwrap();
        assert_eq!(waiting.join().unwrap(), Err(NcclError::Aborted { function: "ncclAllReduce" }));
    });
    communicator.abort(LONG).unwrap();
    assert_eq!(all_reduce(&communicator, LONG), Err(NcclError::Aborted { function: "ncclAllReduce" }));
    assert_eq!(communicator.close(LONG), Err(NcclError::Aborted { function: "ncclCommFinalize" }));
    drop(communicator);
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclAllReduce", "ncclCommAbort"]);
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn an_abort_waits_for_the_thread_inside_a_call() {
    let script = Script::new(&[]);
    let communicator = communicator(script);
    script.stay_inside(SHORT * 2);
    thread::scope(|scope| {
        let inside = scope.spawn(|| all_reduce(&communicator, LONG));
        thread::sleep(SHORT);
        assert_eq!(communicator.async_error(), Ok(Status::InProgress), "a watchdog does not wait");
        communicator.abort(LONG).unwrap();
        inside.join().unwrap().unwrap();
    });
    assert_eq!(script.calls().last(), Some(&"ncclCommAbort"));
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn an_abort_does_not_free_what_an_open_group_is_about_to_use() {
    let script = Script::new(&[]);
    let communicator = communicator(script);
    thread::scope(|scope| {
        let open = scope.spawn(|| {
            communicator.group(LONG, |_| {
                thread::sleep(SHORT * 2);
                Ok(())
            })
        });
        thread::sleep(SHORT);
        let timeout = Duration::from_millis(10);
        let error = communicator.abort(Wait::at_most(timeout)).unwrap_err();
        assert_eq!(error, NcclError::Timeout { function: "ncclCommAbort", timeout });
        communicator.abort(LONG).unwrap();
        open.join().unwrap().unwrap();
    });
}

#[test]
fn close_waits_for_the_end_and_works_twice() {
    let script = Script::new(&[("ncclCommFinalize", NCCL_IN_PROGRESS, looks(3, NCCL_SUCCESS))]);
    let communicator = communicator(script);
    communicator.close(LONG).unwrap();
    communicator.close(LONG).unwrap();
    communicator.abort(LONG).unwrap();
    assert_eq!(all_reduce(&communicator, LONG), Err(NcclError::Closed { function: "ncclAllReduce" }));
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclCommFinalize", "ncclCommDestroy"]);
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn close_times_out_when_a_rank_never_closes() {
    let script = Script::new(&[("ncclCommFinalize", NCCL_IN_PROGRESS, FOR_EVER)]);
    let communicator = communicator(script);
    let error = within_twice(SHORT, || communicator.close(Wait::at_most(SHORT))).unwrap_err();
    assert_eq!(error, NcclError::Timeout { function: "ncclCommFinalize", timeout: SHORT });
    drop(communicator);
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclCommFinalize", "ncclCommAbort"]);
}

#[test]
fn dropping_aborts() {
    let script =
        Script::new(&[("ncclCommInitRankConfig", NCCL_SUCCESS, None), ("ncclCommAbort", NCCL_SYSTEM_ERROR, None)]);
    drop(communicator(script));
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclCommAbort"]);
}

#[test]
fn split_gives_the_childs_own_rank() {
    let script = Script::new(&[("ncclCommSplit", NCCL_IN_PROGRESS, looks(2, NCCL_SUCCESS))]);
    let communicator = communicator(script);
    let child = communicator.split(Some(3), 5, LONG).unwrap().unwrap();
    assert_eq!((child.rank(), child.world_size()), (3, 5));
    assert!(communicator.split(None, 0, LONG).unwrap().is_none());
    child.close(LONG).unwrap();
    all_reduce(&communicator, LONG).unwrap();
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn a_failed_split_aborts_the_parent_at_once() {
    let script = Script::new(&[("ncclCommSplit", NCCL_IN_PROGRESS, FOR_EVER)]);
    let communicator = communicator(script);
    let error = within_twice(SHORT, || communicator.split(Some(0), 0, Wait::at_most(SHORT))).unwrap_err();
    assert_eq!(error, NcclError::Timeout { function: "ncclCommSplit", timeout: SHORT });
    assert_eq!(script.calls().last(), Some(&"ncclCommAbort"), "by the thread that began it");
    assert_eq!(all_reduce(&communicator, LONG), Err(NcclError::Aborted { function: "ncclAllReduce" }));
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn what_is_in_progress_is_put_away_by_the_thread_that_began_it() {
    let script = Script::new(&[
        ("ncclCommInitRankConfig", NCCL_IN_PROGRESS, looks(3, NCCL_SUCCESS)),
        ("ncclCommSplit", NCCL_IN_PROGRESS, looks(3, NCCL_SUCCESS)),
        ("ncclAllReduce", NCCL_IN_PROGRESS, looks(3, NCCL_SUCCESS)),
        ("ncclCommFinalize", NCCL_IN_PROGRESS, looks(3, NCCL_SUCCESS)),
    ]);
    let made = thread::spawn(|| communicator(script)).join().unwrap();
    thread::scope(|scope| {
        let child = scope.spawn(|| made.split(Some(0), 2, LONG).unwrap());
        all_reduce(&child.join().unwrap().unwrap(), LONG).unwrap();
        scope.spawn(|| all_reduce(&made, LONG).unwrap()).join().unwrap();
    });
    all_reduce(&made, LONG).unwrap();
    made.close(LONG).unwrap();
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn a_call_that_only_an_abort_can_end_is_aborted_from_under_its_thread() {
    let script = Script::new(&[]);
    let communicator = communicator(script);
    script.stick_in("ncclAllReduce");
    thread::scope(|scope| {
        let inside = scope.spawn(|| all_reduce(&communicator, LONG));
        thread::sleep(SHORT / 5);
        within_twice(SHORT, || communicator.abort(Wait::at_most(SHORT))).unwrap();
        inside.join().unwrap().unwrap();
    });
    assert_eq!(all_reduce(&communicator, LONG), Err(NcclError::Aborted { function: "ncclAllReduce" }));
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclAllReduce", "ncclCommAbort"]);
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn an_abort_that_does_not_come_back_is_left_behind() {
    let script = Script::new(&[]);
    let communicator = communicator(script);
    script.stick_in("ncclCommAbort");
    for _ in 0..2 {
        let error = within_twice(SHORT, || communicator.abort(Wait::at_most(SHORT))).unwrap_err();
        assert_eq!(error, NcclError::Timeout { function: "ncclCommAbort", timeout: SHORT });
    }
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclCommAbort"], "once");
    assert_eq!(all_reduce(&communicator, LONG), Err(NcclError::Aborted { function: "ncclAllReduce" }));
    within_twice(SHORT, || drop(communicator));
}

#[test]
fn a_close_that_stays_inside_nccl_times_out_and_ends_with_the_abort() {
    for stuck in ["ncclCommFinalize", "ncclCommDestroy"] {
        let script = Script::new(&[]);
        let communicator = communicator(script);
        script.stick_in(stuck);
        let error = within_twice(SHORT, || communicator.close(Wait::at_most(SHORT))).unwrap_err();
        assert_eq!(error, NcclError::Timeout { function: "ncclCommFinalize", timeout: SHORT });
        within_twice(SHORT, || communicator.abort(Wait::at_most(SHORT))).unwrap();
        // What destroys it is not disturbed.
        let last = if stuck == "ncclCommDestroy" { stuck } else { "ncclCommAbort" };
        assert_eq!(script.calls().last(), Some(&last));
        within_twice(SHORT, || drop(communicator));
        assert_eq!(script.broken_rules(), [""; 0], "{stuck}");
    }
}

#[test]
fn a_library_too_old_is_refused() {
    // SAFETY: the scripted functions keep NCCL's contracts, and are part of the program.
    let error = unsafe { Nccl::from_functions(scripted::OLD_FUNCTIONS, "old.so") }.unwrap_err();
    assert_eq!(error.to_string(), "NCCL 2.20.3 or newer expected, got 2.18.5 (old.so)");
}

#[test]
fn a_group_starts_its_calls_at_its_end_and_waits_for_them() {
    let script = Script::new(&[("ncclGroupEnd", NCCL_IN_PROGRESS, looks(2, NCCL_SUCCESS))]);
    let communicator = communicator(script);
    let stream = Stream::from_raw(null_mut());
    let returned = communicator.group(LONG, |group| {
        // SAFETY: the scripted NCCL touches no buffer.
        unsafe {
            group.all_reduce(buffers(), ReduceOp::Sum, stream)?;
            group.broadcast(buffers(), 1, stream)?;
        }
        Ok(7)
    });
    assert_eq!(returned, Ok(7));
    let expected = ["ncclCommInitRankConfig", "ncclAllReduce", "ncclBroadcast", "ncclGroupEnd"];
    assert_eq!(script.calls(), expected);
    all_reduce(&communicator, LONG).unwrap();
    assert_eq!(script.broken_rules(), [""; 0]);
}

#[test]
fn other_calls_inside_a_group_are_refused() {
    let (script, other) = (Script::new(&[]), Script::new(&[]));
    let (communicator, beside) = (communicator(script), communicator(other));
    let brief = Wait::at_most(SHORT);
    communicator
        .group(LONG, |_| {
            for refused in [
                all_reduce(&communicator, brief),
                all_reduce(&beside, brief),
                beside.close(brief),
                communicator.abort(brief),
                communicator.group(brief, |_| Ok(())),
                communicator.split(None, 0, brief).map(drop),
            ] {
                assert!(matches!(refused, Err(NcclError::InsideGroup { .. })), "{refused:?}");
            }
            Ok(())
        })
        .unwrap();
    all_reduce(&beside, LONG).unwrap();
    all_reduce(&communicator, LONG).unwrap();
    assert_eq!(other.calls(), ["ncclCommInitRankConfig", "ncclAllReduce"]);
}

#[test]
fn a_groups_own_error_ends_the_group_and_keeps_the_communicator() {
    let script = Script::new(&[]);
    let communicator = communicator(script);
    let stream = Stream::from_raw(null_mut());
    // SAFETY: the scripted NCCL touches no buffer.
    let returned = communicator.group(LONG, |group| unsafe {
        group.all_reduce(buffers(), ReduceOp::Sum, stream)?;
        group.broadcast(buffers(), 9, stream)
    });
    assert!(matches!(returned, Err(NcclError::Argument { function: "ncclBroadcast", .. })), "{returned:?}");
    assert_eq!(script.calls(), ["ncclCommInitRankConfig", "ncclAllReduce", "ncclGroupEnd"]);
    all_reduce(&communicator, LONG).unwrap();
}

#[test]
fn a_panic_ends_the_group_and_fails_the_communicator() {
    let script = Script::new(&[]);
    let communicator = communicator(script);
    let panicking = std::panic::AssertUnwindSafe(|| {
        communicator.group(LONG, |group| -> Result<()> {
            // SAFETY: the scripted NCCL touches no buffer.
            unsafe { group.all_reduce(buffers(), ReduceOp::Sum, Stream::from_raw(null_mut())) }?;
            panic!("on purpose")
        })
    });
    assert!(std::panic::catch_unwind(panicking).is_err());
    assert_eq!(script.calls().last(), Some(&"ncclGroupEnd"));
    assert!(matches!(all_reduce(&communicator, LONG), Err(NcclError::Failed { .. })));
    communicator.abort(LONG).unwrap();
}
