//! The fake NCCL: several ranks as threads and as processes, what it refuses, and how it hangs.

mod common;

use common::{Gpu, assert_success, check, in_child, stderr};
use cudarc::driver::sys::{self, CUstream};
use libloading::os::unix::{Library, Symbol};
use std::ffi::{c_int, c_void};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::ptr::{null, null_mut};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const SUCCESS: c_int = 0;
const SYSTEM_ERROR: c_int = 2;
const INTERNAL_ERROR: c_int = 3;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;
const REMOTE_ERROR: c_int = 6;
const IN_PROGRESS: c_int = 7;
const FLOAT32: c_int = 7;
const SHARED_DEVICE: (&str, &str) = ("NCCL_MULTI_RANK_GPU_ENABLE", "1");

type Comm = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    rest: [c_int; 7],
}

fn config(blocking: bool) -> Config {
    let size = size_of::<Config>();
    Config { size, magic: 0xcafe_beef, version: 21_700, blocking: blocking.into(), rest: [c_int::MIN; 7] }
}

/// A function of the library by its type.
fn symbol<T>(name: &str) -> Symbol<T> {
    syncbn_fake_cuda::install();
    // SAFETY: the library is loaded already; the callers name the types of nccl.h.
    unsafe {
        Library::open(Some("libnccl.so.2"), libloading::os::unix::RTLD_NOW).unwrap().get(name.as_bytes()).unwrap()
    }
}

/// Calls a function of NCCL with arguments of the types of nccl.h.
macro_rules! nccl {
    ($name:ident($($argument:expr => $type:ty),*)) => {
        // SAFETY: the types are those of nccl.h, and the pointers are to live memory.
        unsafe { symbol::<unsafe extern "C" fn($($type),*) -> c_int>(stringify!($name))($($argument),*) }
    };
}

fn unique_id() -> UniqueId {
    let mut id = UniqueId([0; 128]);
    assert_eq!(nccl!(ncclGetUniqueId(&mut id => *mut UniqueId)), SUCCESS);
    id
}

/// Begins to join; the result and the communicator.
fn init(id: UniqueId, ranks: usize, rank: usize, blocking: bool) -> (c_int, Comm) {
    let mut comm = null_mut();
    let config = config(blocking);
    let result = nccl!(ncclCommInitRankConfig(
        &mut comm => *mut Comm, ranks as c_int => c_int, id => UniqueId, rank as c_int => c_int,
        &config => *const Config));
    (result, comm)
}

fn state(comm: Comm) -> c_int {
    let mut state = -1;
    assert_eq!(nccl!(ncclCommGetAsyncError(comm => Comm, &mut state => *mut c_int)), SUCCESS);
    state
}

/// Polls until the communicator is no longer busy.
fn settle(comm: Comm) -> c_int {
    let deadline = Instant::now() + Duration::from_secs(20);
    while state(comm) == IN_PROGRESS {
        assert!(Instant::now() < deadline, "a communicator stays in progress");
        std::thread::sleep(Duration::from_micros(200));
    }
    state(comm)
}

fn all_gather(comm: Comm, stream: CUstream, send: u64, receive: u64, count: usize) -> c_int {
    nccl!(ncclAllGather(send => u64, receive => u64, count => usize, FLOAT32 => c_int, comm => Comm, stream => CUstream))
}

fn all_reduce(comm: Comm, stream: CUstream, pointer: u64, count: usize, kind: c_int, operation: c_int) -> c_int {
    nccl!(ncclAllReduce(pointer => u64, pointer => u64, count => usize, kind => c_int, operation => c_int, comm => Comm,
        stream => CUstream))
}

/// A call that a communicator that is not blocking may finish later.
fn finish(comm: Comm, result: c_int) {
    assert!(result == SUCCESS || result == IN_PROGRESS, "{result}");
    assert_eq!(settle(comm), SUCCESS);
}

/// Every collective, checked on this rank; sizes above and below one exchange.
fn exercise(gpu: &Gpu, comm: Comm, ranks: usize, rank: usize) {
    let stream = gpu.stream();
    for count in [1, 1000, 300_000] {
        let of = |rank: usize| (0..count).map(move |i| (i % 97) as f32 + 100.0 * rank as f32);
        let mine: Vec<f32> = of(rank).collect();
        let (send, receive) = (gpu.upload(&mine), gpu.allocate(ranks * count));
        finish(comm, all_gather(comm, stream, send, receive, count));
        let gathered: Vec<f32> = (0..ranks).flat_map(of).collect();
        assert_eq!(gpu.download(stream, receive, ranks * count), gathered);

        finish(comm, all_reduce(comm, stream, send, count, FLOAT32, 0));
        let sum: Vec<f32> = (0..count).map(|i| (0..ranks).map(|r| (i % 97) as f32 + 100.0 * r as f32).sum()).collect();
        assert_eq!(gpu.download(stream, send, count), sum);

        let source = gpu.upload(&mine);
        let root = (ranks - 1) as c_int;
        finish(
            comm,
            nccl!(ncclBroadcast(source => u64, receive => u64, count => usize, FLOAT32 => c_int,
            root => c_int, comm => Comm, stream => CUstream)),
        );
        assert_eq!(gpu.download(stream, receive, count), of(ranks - 1).collect::<Vec<_>>());
    }
    let values = gpu.upload(&[rank as f32 + 1.0]);
    let max = 2;
    finish(comm, all_reduce(comm, stream, values, 1, FLOAT32, max));
    assert_eq!(gpu.download(stream, values, 1), [ranks as f32]);
}

/// Makes this process one with as many devices as ranks, or returns how it ended.
fn with_devices(name: &str, ranks: usize, variables: &[(&str, &str)], body: impl FnOnce()) {
    let ranks = ranks.to_string();
    let all: Vec<_> = variables.iter().copied().chain([("FAKE_CUDA_DEVICES", ranks.as_str())]).collect();
    assert_success(&in_child(name, &all, body));
}

/// Runs one thread per rank, each on a device of its own.
fn threads(ranks: usize, blocking: bool, body: impl Fn(&Gpu, Comm, usize) + Sync) {
    let id = unique_id();
    std::thread::scope(|scope| {
        for rank in 0..ranks {
            let body = &body;
            scope.spawn(move || {
                let gpu = Gpu::new(rank as i32);
                let (result, comm) = init(id, ranks, rank, blocking);
                finish(comm, result);
                body(&gpu, comm, rank);
            });
        }
    });
}

#[test]
fn two_and_four_threads() {
    for ranks in [2, 4] {
        with_devices("two_and_four_threads", ranks, &[], || {
            let ranks = std::env::var("FAKE_CUDA_DEVICES").unwrap().parse().unwrap();
            for blocking in [true, false] {
                threads(ranks, blocking, |gpu, comm, rank| {
                    exercise(gpu, comm, ranks, rank);
                    finish(comm, nccl!(ncclCommFinalize(comm => Comm)));
                    assert_eq!(nccl!(ncclCommDestroy(comm => Comm)), SUCCESS);
                });
            }
        });
    }
}

/// Starts this test program again as one rank, whose body is the test's own child.
fn spawn_rank(name: &str, rank: usize, variables: &[(&str, &str)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture"]).env("FAKE_TEST_CHILD", name).env("RANK", rank.to_string());
    command.envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Runs one process per rank on one device. Rank 0 makes the id; the parent hands it on.
fn processes(name: &str, ranks: usize, variables: &[(&str, &str)], body: impl FnOnce(usize, UniqueId)) {
    let rank = std::env::var("RANK").ok().and_then(|rank| rank.parse::<usize>().ok());
    let is_child = std::env::var("FAKE_TEST_CHILD").is_ok_and(|child| child == name);
    if let (true, Some(rank)) = (is_child, rank) {
        let mut id = unique_id();
        if rank == 0 {
            let text: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
            std::io::stdout().write_all(format!("ID{text}\n").as_bytes()).unwrap();
        } else {
            std::io::stdin().read_exact(&mut id.0).unwrap();
        }
        body(rank, id);
        std::process::exit(0);
    }
    let mut all: Vec<Child> = (0..ranks).map(|rank| spawn_rank(name, rank, variables)).collect();
    let id = read_id(&mut all[0]);
    for child in &mut all[1..] {
        child.stdin.take().unwrap().write_all(&id).unwrap();
    }
    for (rank, child) in all.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let died_as_told = output.status.code() == Some(DIES);
        assert!(output.status.success() || died_as_told, "rank {rank}: {}\n{}", output.status, stderr(&output));
    }
}

/// What a rank exits with that is to die.
const DIES: i32 = 9;

fn read_id(child: &mut Child) -> Vec<u8> {
    use std::io::BufRead;
    let mut reader = std::io::BufReader::new(child.stdout.as_mut().unwrap());
    loop {
        let mut line = String::new();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "rank 0 wrote no id");
        // The test harness writes to the same line before the test does.
        if let Some((_, text)) = line.trim().split_once("ID") {
            return text
                .as_bytes()
                .chunks(2)
                .map(|b| u8::from_str_radix(std::str::from_utf8(b).unwrap(), 16).unwrap())
                .collect();
        }
    }
}

#[test]
fn four_processes_share_a_device() {
    processes("four_processes_share_a_device", 4, &[SHARED_DEVICE], |rank, id| {
        let gpu = Gpu::new(0);
        let (result, comm) = init(id, 4, rank, false);
        assert_eq!(result, IN_PROGRESS);
        finish(comm, result);
        exercise(&gpu, comm, 4, rank);
    });
}

#[test]
fn a_dead_peer_is_noticed_only_by_who_aborts() {
    let name = "a_dead_peer_is_noticed_only_by_who_aborts";
    processes(name, 2, &[SHARED_DEVICE], |rank, id| {
        let gpu = Gpu::new(0);
        let (result, comm) = init(id, 2, rank, false);
        finish(comm, result);
        if rank == 1 {
            std::process::exit(DIES);
        }
        let (stream, x) = (gpu.stream(), gpu.upload(&[1.0]));
        finish(comm, all_reduce(comm, stream, x, 1, FLOAT32, 0));
        std::thread::sleep(Duration::from_millis(300));
        // SAFETY: the stream exists.
        assert_eq!(unsafe { sys::cuStreamQuery(stream) }, sys::CUresult::CUDA_ERROR_NOT_READY);
        assert_eq!(state(comm), SUCCESS, "NCCL does not see a dead peer on one host");
        assert_eq!(nccl!(ncclCommAbort(comm => Comm)), SUCCESS);
        gpu.wait(stream);
    });
}

#[test]
fn a_dead_peer_is_reported_where_asked_for() {
    let name = "a_dead_peer_is_reported_where_asked_for";
    processes(name, 2, &[SHARED_DEVICE, ("FAKE_NCCL_REPORT_DEATH", "1")], |rank, id| {
        let gpu = Gpu::new(0);
        let (result, comm) = init(id, 2, rank, true);
        assert_eq!(result, SUCCESS);
        if rank == 1 {
            std::process::exit(DIES);
        }
        let (stream, x) = (gpu.stream(), gpu.upload(&[1.0]));
        assert_eq!(all_reduce(comm, stream, x, 1, FLOAT32, 0), SUCCESS);
        let deadline = Instant::now() + Duration::from_secs(10);
        while state(comm) != REMOTE_ERROR {
            assert!(Instant::now() < deadline, "the death was not reported");
        }
        assert_eq!(nccl!(ncclCommAbort(comm => Comm)), SUCCESS);
        gpu.wait(stream);
    });
}

#[test]
fn ranks_that_disagree_wait_until_aborted() {
    with_devices("ranks_that_disagree_wait_until_aborted", 2, &[], || {
        let both_waited = Barrier::new(2);
        threads(2, true, |gpu, comm, rank| {
            let (stream, x) = (gpu.stream(), gpu.upload(&[1.0; 4]));
            assert_eq!(all_reduce(comm, stream, x, 1 + rank, FLOAT32, 0), SUCCESS);
            std::thread::sleep(Duration::from_millis(200));
            // SAFETY: the stream exists.
            assert_eq!(unsafe { sys::cuStreamQuery(stream) }, sys::CUresult::CUDA_ERROR_NOT_READY);
            both_waited.wait();
            assert_eq!(nccl!(ncclCommAbort(comm => Comm)), SUCCESS);
            gpu.wait(stream);
        });
    });
}

#[test]
fn a_missing_rank_ends_with_abort() {
    assert_success(&in_child("a_missing_rank_ends_with_abort", &[], || {
        let _gpu = Gpu::new(0);
        let (result, comm) = init(unique_id(), 2, 0, false);
        assert_eq!(result, IN_PROGRESS);
        let mut count = 0;
        let early = nccl!(ncclCommCount(comm => Comm, &mut count => *mut c_int));
        assert_eq!(early, INVALID_ARGUMENT, "used before it was ready");
        assert_eq!(state(comm), IN_PROGRESS);
        assert_eq!(nccl!(ncclCommAbort(comm => Comm)), SUCCESS);
        assert_eq!(nccl!(ncclCommAbort(comm => Comm)), INVALID_ARGUMENT);
    }));
}

#[test]
fn what_an_ended_thread_began_cannot_be_put_away() {
    let name = "what_an_ended_thread_began_cannot_be_put_away";
    let output = in_child(name, &[], || {
        let begin = |settled: bool| {
            let began = std::thread::spawn(move || {
                let _gpu = Gpu::new(0);
                let (result, comm) = init(unique_id(), 1, 0, false);
                finish(comm, result);
                let mut count = 0;
                if settled {
                    assert_eq!(nccl!(ncclCommCount(comm => Comm, &mut count => *mut c_int)), SUCCESS);
                }
                comm as usize
            });
            began.join().unwrap() as Comm
        };
        for (settled, expected) in [(true, SUCCESS), (false, INTERNAL_ERROR)] {
            let (comm, mut count) = (begin(settled), 0);
            assert_eq!(nccl!(ncclCommCount(comm => Comm, &mut count => *mut c_int)), expected);
            assert_eq!(nccl!(ncclCommAbort(begin(settled) => Comm)), expected);
        }
    });
    assert_success(&output);
    assert!(stderr(&output).contains("its memory is gone"));
}

#[test]
fn ranks_finalize_together() {
    with_devices("ranks_finalize_together", 2, &[], || {
        let (late, early) = (Duration::from_millis(300), Instant::now());
        threads(2, false, |_, comm, rank| {
            std::thread::sleep(late * rank as u32);
            finish(comm, nccl!(ncclCommFinalize(comm => Comm)));
            assert!(early.elapsed() >= late, "rank {rank} did not wait");
            assert_eq!(nccl!(ncclCommDestroy(comm => Comm)), SUCCESS);
        });
    });
}

#[test]
fn a_communicator_fails_when_it_is_told_to() {
    for calls in ["0", "2"] {
        let variables = [("FAKE_NCCL_FAIL_AFTER", calls)];
        assert_success(&in_child("a_communicator_fails_when_it_is_told_to", &variables, || {
            let gpu = Gpu::new(0);
            let (result, comm) = init(unique_id(), 1, 0, false);
            assert_eq!(result, IN_PROGRESS);
            if std::env::var("FAKE_NCCL_FAIL_AFTER").unwrap() == "0" {
                return assert_eq!(settle(comm), SYSTEM_ERROR);
            }
            finish(comm, result);
            let (stream, x) = (gpu.stream(), gpu.upload(&[1.0; 4]));
            finish(comm, all_reduce(comm, stream, x, 4, FLOAT32, 0));
            assert_eq!(all_reduce(comm, stream, x, 4, FLOAT32, 0), SUCCESS);
            assert_eq!(state(comm), SYSTEM_ERROR);
            assert_eq!(nccl!(ncclCommAbort(comm => Comm)), SUCCESS);
        }));
    }
}

#[test]
fn the_first_call_waits_inside_until_all_ranks_make_it_or_an_abort() {
    let name = "the_first_call_waits_inside_until_all_ranks_make_it_or_an_abort";
    with_devices(name, 2, &[("FAKE_NCCL_BLOCK_FIRST", "1")], || {
        let (late, start) = (Duration::from_millis(300), Instant::now());
        threads(2, false, |gpu, comm, rank| {
            let (stream, x) = (gpu.stream(), gpu.upload(&[1.0; 4]));
            std::thread::sleep(late * rank as u32);
            finish(comm, all_reduce(comm, stream, x, 4, FLOAT32, 0));
            assert!(start.elapsed() >= late, "rank {rank} did not wait");
            assert_eq!(gpu.download(stream, x, 4), [2.0; 4]);
        });
        threads(2, false, |gpu, comm, rank| {
            if rank == 0 {
                let (stream, x, comm) = (gpu.stream(), gpu.upload(&[1.0; 4]), comm as usize);
                let abort = std::thread::spawn(move || {
                    std::thread::sleep(late);
                    assert_eq!(nccl!(ncclCommAbort(comm as Comm => Comm)), SUCCESS);
                });
                assert_eq!(all_reduce(comm as Comm, stream, x, 4, FLOAT32, 0), INTERNAL_ERROR);
                abort.join().unwrap();
            }
        });
    });
}

/// What initialising two ranks on one device gives, with these variables.
fn two_ranks_on_one_device(name: &str, variables: &[(&str, &str)], expected: c_int) {
    let output = in_child(name, variables, || {
        let id = unique_id();
        let rank = move |rank| {
            let _gpu = Gpu::new(0);
            init(id, 2, rank, true).0
        };
        let other = std::thread::spawn(move || rank(1));
        let expected = std::env::var("EXPECTED").unwrap().parse().unwrap();
        assert_eq!((rank(0), other.join().unwrap()), (expected, expected));
    });
    assert_success(&output);
    assert_eq!(stderr(&output).contains("Duplicate GPU detected"), expected != SUCCESS);
}

#[test]
fn a_device_is_shared_only_where_nccl_allows_it() {
    let name = "a_device_is_shared_only_where_nccl_allows_it";
    let (refused, allowed) = (("EXPECTED", "5"), ("EXPECTED", "0"));
    two_ranks_on_one_device(name, &[refused], INVALID_USAGE);
    two_ranks_on_one_device(name, &[refused, SHARED_DEVICE, ("FAKE_NCCL_VERSION", "22809")], INVALID_USAGE);
    two_ranks_on_one_device(name, &[allowed, SHARED_DEVICE], SUCCESS);
}

#[test]
fn two_communicators_of_a_device_need_an_order() {
    with_devices("two_communicators_of_a_device_need_an_order", 2, &[], || {
        let (first_id, second_id) = (unique_id(), unique_id());
        threads(2, true, |gpu, _, rank| {
            let (first, second) = (init(first_id, 2, rank, true).1, init(second_id, 2, rank, true).1);
            let (one, two) = (gpu.stream(), gpu.stream());
            let x = gpu.upload(&[1.0; 4]);
            gpu.stall(one, 100);
            assert_eq!(all_reduce(first, one, x, 1, FLOAT32, 0), SUCCESS);
            assert_eq!(all_reduce(second, two, x + 8, 1, FLOAT32, 0), INVALID_USAGE);
            let mut event = null_mut();
            // SAFETY: the handles exist.
            unsafe {
                check(sys::cuEventCreate(&mut event, 2));
                check(sys::cuEventRecord(event, one));
                check(sys::cuStreamWaitEvent(two, event, 0));
            }
            assert_eq!(all_reduce(second, two, x + 8, 1, FLOAT32, 0), SUCCESS);
            assert_eq!(gpu.download(two, x, 4), [2.0, 1.0, 2.0, 1.0]);
        });
    });
}

#[test]
fn collectives_are_captured_and_replayed() {
    with_devices("collectives_are_captured_and_replayed", 2, &[], || {
        threads(2, true, |gpu, comm, _| {
            let (stream, x) = (gpu.stream(), gpu.upload(&[1.0; 4]));
            let (mut graph, mut exec) = (null_mut(), null_mut());
            let thread_local = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            // SAFETY: the handles exist.
            unsafe {
                check(sys::cuStreamBeginCapture_v2(stream, thread_local));
                assert_eq!(all_reduce(comm, stream, x, 4, FLOAT32, 0), SUCCESS);
                check(sys::cuStreamEndCapture(stream, &mut graph));
                check(sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
                for _ in 0..3 {
                    check(sys::cuGraphLaunch(exec, stream));
                }
            }
            assert_eq!(gpu.download(stream, x, 4), [8.0; 4]);
        });
    });
}

#[test]
fn groups_start_at_their_end() {
    with_devices("groups_start_at_their_end", 2, &[], || {
        for blocking in [true, false] {
            threads(2, blocking, |gpu, comm, rank| {
                let (stream, x, y) = (gpu.stream(), gpu.upload(&[rank as f32 + 1.0; 2]), gpu.allocate(2));
                assert_eq!(nccl!(ncclGroupStart()), SUCCESS);
                assert_eq!(all_reduce(comm, stream, x, 1, FLOAT32, 0), SUCCESS);
                assert_eq!(all_gather(comm, stream, x + 4, y, 1), SUCCESS);
                // SAFETY: the stream exists.
                check(unsafe { sys::cuStreamQuery(stream) });
                finish(comm, nccl!(ncclGroupEnd()));
                assert_eq!(gpu.download(stream, x, 1), [3.0]);
                assert_eq!(gpu.download(stream, y, 2), [1.0, 2.0]);
            });
        }
        assert_eq!(nccl!(ncclGroupEnd()), INVALID_USAGE);
    });
}

#[test]
fn splits_follow_colour_and_key() {
    with_devices("splits_follow_colour_and_key", 4, &[], || {
        for blocking in [true, false] {
            threads(4, blocking, |gpu, comm, rank| {
                // Ranks 3 and 1 become 0 and 1; 0 stays alone; 2 takes no part.
                let (color, key) = [(0, 0), (1, 5), (-1, 0), (1, 2)][rank];
                let mut part: Comm = null_mut();
                finish(
                    comm,
                    nccl!(ncclCommSplit(comm => Comm, color => c_int, key => c_int, &mut part => *mut Comm,
                    null() => *const c_void)),
                );
                let expected = [Some((1, 0)), Some((2, 1)), None, Some((2, 0))][rank];
                assert_eq!(expected.is_none(), part.is_null());
                let Some(expected) = expected else { return };
                assert_eq!(settle(part), SUCCESS);
                let (mut count, mut user_rank) = (0, 0);
                assert_eq!(nccl!(ncclCommCount(part => Comm, &mut count => *mut c_int)), SUCCESS);
                assert_eq!(nccl!(ncclCommUserRank(part => Comm, &mut user_rank => *mut c_int)), SUCCESS);
                assert_eq!((count, user_rank), expected);
                let (stream, x) = (gpu.stream(), gpu.upload(&[rank as f32]));
                finish(part, all_reduce(part, stream, x, 1, FLOAT32, 0));
                assert_eq!(gpu.download(stream, x, 1), [if color == 0 { 0.0 } else { 4.0 }]);
            });
        }
    });
}

#[test]
fn every_type_and_operation_reduces() {
    with_devices("every_type_and_operation_reduces", 2, &[], || {
        threads(2, true, |gpu, comm, rank| {
            let stream = gpu.stream();
            let value = [6u8, 4][rank];
            let float16 = |value: u8| half::f16::from_f32(value.into()).to_bits().to_le_bytes().to_vec();
            let bfloat16 = |value: u8| half::bf16::from_f32(value.into()).to_bits().to_le_bytes().to_vec();
            let encode: [&dyn Fn(u8) -> Vec<u8>; 10] = [
                &|value| vec![value],
                &|value| vec![value],
                &|value| i32::from(value).to_le_bytes().to_vec(),
                &|value| u32::from(value).to_le_bytes().to_vec(),
                &|value| i64::from(value).to_le_bytes().to_vec(),
                &|value| u64::from(value).to_le_bytes().to_vec(),
                &float16,
                &|value| f32::from(value).to_le_bytes().to_vec(),
                &|value| f64::from(value).to_le_bytes().to_vec(),
                &bfloat16,
            ];
            for (kind, encode) in encode.iter().enumerate() {
                for (operation, expected) in [10, 24, 6, 4, 5].into_iter().enumerate() {
                    let (x, mut bytes) = (gpu.allocate(2), encode(value));
                    // SAFETY: the memory holds 8 bytes on both sides.
                    unsafe { check(sys::cuMemcpyHtoD_v2(x, bytes.as_ptr().cast(), bytes.len())) };
                    assert_eq!(all_reduce(comm, stream, x, 1, kind as c_int, operation as c_int), SUCCESS);
                    gpu.wait(stream);
                    // SAFETY: as above.
                    unsafe { check(sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), x, bytes.len())) };
                    assert_eq!(bytes, encode(expected), "type {kind}, operation {operation}");
                }
            }
            assert_eq!(all_reduce(comm, stream, 0, 1, 10, 0), INVALID_ARGUMENT);
        });
    });
}
