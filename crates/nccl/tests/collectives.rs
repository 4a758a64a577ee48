//! Collectives between ranks that are threads, each with a device of its own, on the fake driver and the fake NCCL.
//!
//! The fakes answer "in progress" and deliver late at random, and refuse what NCCL refuses. Values are whole numbers, so
//! that sums are the same in every order.

#![cfg(target_os = "linux")]

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use syncbn_fake_cuda::{Variant, folder};
use syncbn_nccl::*;

const LONG: Wait<'static> = Wait::at_most(Duration::from_secs(60));
const WORLDS: [usize; 3] = [1, 2, 4];
/// One element, an odd number, and more than the fake NCCL moves at a time.
const COUNTS: [usize; 3] = [1, 1001, 300_007];

fn nccl() -> &'static Nccl {
    static NCCL: OnceLock<Nccl> = OnceLock::new();
    NCCL.get_or_init(|| {
        // SAFETY: nothing reads the environment but through the standard library's lock: every test begins by waiting
        // here, and C code that reads it is only loaded below.
        unsafe { std::env::set_var("FAKE_CUDA_DEVICES", "4") };
        syncbn_fake_cuda::install();
        let search = Search { path: Some(folder(Variant::Plain).to_owned()), ..Search::default() };
        Nccl::load(&search).unwrap()
    })
}

/// What one rank works with.
struct Rank {
    stream: Arc<CudaStream>,
    communicator: Communicator,
}

/// A type of elements, on both sides.
trait Element: DeviceRepr + ValidAsZeroBits + Copy + PartialEq + Debug {
    const TYPE: DataType;
    fn of(number: usize) -> Self;
}

macro_rules! elements {
    ($($type:ty = $data_type:ident,)*) => {$(
        impl Element for $type {
            const TYPE: DataType = DataType::$data_type;
            fn of(number: usize) -> Self {
                number as Self
            }
        }
    )*};
}

elements! { i8 = I8, u8 = U8, i32 = I32, u32 = U32, i64 = I64, u64 = U64, f32 = F32, f64 = F64, }

impl Rank {
    fn new(id: &UniqueId, device: usize, rank: usize, world_size: usize, wait: Wait<'_>) -> Result<Self> {
        let context = CudaContext::new(device).unwrap();
        let stream = context.new_stream().unwrap();
        let communicator = nccl().communicator(id, rank, world_size, &Options::default(), wait)?;
        Ok(Self { stream, communicator })
    }

    fn rank(&self) -> usize {
        self.communicator.rank()
    }

    fn stream(&self) -> Stream {
        Stream::from_raw(self.stream.cu_stream().cast())
    }

    fn upload<T: Element>(&self, values: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(values).unwrap()
    }

    fn download<T: Element>(&self, values: &CudaSlice<T>) -> Vec<T> {
        self.stream.clone_dtoh(values).unwrap()
    }

    /// From one slice to another, `count` elements a rank.
    fn buffers<T: Element>(&self, send: &CudaSlice<T>, receive: &CudaSlice<T>, count: usize) -> Buffers {
        // The guards only order other streams of cudarc after this use; there are none.
        let (from, to) = (send.device_ptr(&self.stream).0, receive.device_ptr(&self.stream).0);
        Buffers::new(from as *const _, to as *mut _, count, T::TYPE)
    }

    /// Waits for the stream, but not for ever.
    fn assert_that_the_stream_ends(&self) {
        let (end, start) = (self.stream.record_event(None).unwrap(), Instant::now());
        while !end.is_complete() {
            assert!(start.elapsed() < Duration::from_secs(10), "the stream still waits");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The reduction of what every rank gives.
    fn all_reduce<T: Element>(&self, values: &[T], op: ReduceOp) -> Vec<T> {
        let buffer = self.upload(values);
        let buffers = self.buffers(&buffer, &buffer, values.len());
        // SAFETY: the buffer holds the values, in place, and lives until it has been read back.
        unsafe { self.communicator.all_reduce(buffers, op, self.stream(), LONG) }.unwrap();
        self.download(&buffer)
    }
}

/// Runs `body` on every rank, each a thread with its own device. The first failure ends all: the others would wait for
/// ever for what the failed rank never enqueues.
fn on_ranks(world_size: usize, body: impl Fn(&Rank) + Sync) {
    let nccl = nccl();
    // Collectives of several communicators on one device must be ordered; those of two tests are not.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let id = nccl.unique_id().unwrap();
    let ranks: Vec<OnceLock<Rank>> = (0..world_size).map(|_| OnceLock::new()).collect();
    let run = |number: usize| {
        let rank = Rank::new(&id, number, number, world_size, LONG).unwrap();
        body(ranks[number].get_or_init(|| rank));
    };
    let abort_all_after_panic = |number: usize| {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(number))) else { return };
        ranks.iter().filter_map(OnceLock::get).for_each(|rank| drop(rank.communicator.abort(LONG)));
        resume_unwind(panic);
    };
    thread::scope(|scope| {
        for number in 0..world_size {
            scope.spawn(move || abort_all_after_panic(number));
        }
    });
}

/// As [`on_ranks`], and closes the communicators.
fn closing_on_ranks(world_size: usize, body: impl Fn(&Rank) + Sync) {
    on_ranks(world_size, |rank| {
        body(rank);
        rank.communicator.close(LONG).unwrap();
    });
}

/// What rank `rank` gives.
fn values<T: Element>(rank: usize, count: usize) -> Vec<T> {
    (0..count).map(|i| T::of((rank * 3 + i) % 11 + 1)).collect()
}

#[test]
fn the_fake_is_an_nccl_new_enough_for_everything() {
    assert!(nccl().version() >= Version::MULTI_RANK_PER_GPU);
    assert!(nccl().supports_multi_rank_per_gpu());
    assert!(nccl().path().ends_with("libnccl.so.2"));
}

#[test]
fn all_gather_puts_the_ranks_in_order() {
    fn check<T: Element>(rank: &Rank, count: usize) {
        let world_size = rank.communicator.world_size();
        let send = rank.upload(&values::<T>(rank.rank(), count));
        let receive = rank.stream.alloc_zeros::<T>(count * world_size).unwrap();
        // SAFETY: the slices are as large as the count says, and live until the result has been read back.
        unsafe { rank.communicator.all_gather(rank.buffers(&send, &receive, count), rank.stream(), LONG) }.unwrap();
        let expected: Vec<T> = (0..world_size).flat_map(|rank| values(rank, count)).collect();
        assert_eq!(rank.download(&receive), expected);
    }
    for world_size in WORLDS {
        closing_on_ranks(world_size, |rank| {
            for count in COUNTS {
                check::<f32>(rank, count);
                check::<u8>(rank, count);
            }
            check::<i64>(rank, 17);
        });
    }
}

/// An operator, and what it means.
type Operator = (ReduceOp, fn(usize, usize) -> usize);

#[test]
fn all_reduce_combines_by_every_operator() {
    fn check<T: Element>(rank: &Rank, count: usize) {
        let world_size = rank.communicator.world_size();
        let combined = |combine: fn(usize, usize) -> usize, i: usize| {
            (0..world_size).map(|rank| (rank * 3 + i) % 11 + 1).reduce(combine).unwrap()
        };
        let operators: [Operator; 4] = [
            (ReduceOp::Sum, |a, b| a + b),
            (ReduceOp::Prod, |a, b| a * b),
            (ReduceOp::Max, Ord::max),
            (ReduceOp::Min, Ord::min),
        ];
        for (op, combine) in operators {
            let expected: Vec<T> = (0..count).map(|i| T::of(combined(combine, i))).collect();
            assert_eq!(rank.all_reduce(&values::<T>(rank.rank(), count), op), expected, "{op:?}");
        }
        // The same multiple of the world size on every rank but the last, which gives the double: no rounding.
        let share = if rank.rank() + 1 == world_size { 2 } else { 1 } * world_size;
        let expected = vec![T::of(world_size + 1); count];
        assert_eq!(rank.all_reduce(&vec![T::of(share); count], ReduceOp::Avg), expected, "Avg");
    }
    for world_size in WORLDS {
        closing_on_ranks(world_size, |rank| {
            COUNTS.iter().for_each(|count| check::<f32>(rank, *count));
            check::<f64>(rank, 1001);
            check::<i32>(rank, 1001);
            check::<u64>(rank, 1001);
        });
    }
}

#[test]
fn half_precision_is_summed_as_such() {
    closing_on_ranks(2, |rank| {
        // 1 + 1 = 2 in the bits of both formats.
        for (data_type, one, two) in [(DataType::F16, 0x3c00_u16, 0x4000), (DataType::Bf16, 0x3f80, 0x4000)] {
            let bits = rank.stream.clone_htod(&[one; 33]).unwrap();
            let pointer = bits.device_ptr(&rank.stream).0 as *mut _;
            let buffers = Buffers::in_place(pointer, 33, data_type);
            // SAFETY: the slice holds 33 numbers of two bytes, and lives until it has been read back.
            unsafe { rank.communicator.all_reduce(buffers, ReduceOp::Sum, rank.stream(), LONG) }.unwrap();
            assert_eq!(rank.stream.clone_dtoh(&bits).unwrap(), [two; 33], "{data_type:?}");
        }
    });
}

#[test]
fn broadcast_gives_the_roots_values_to_all() {
    closing_on_ranks(4, |rank| {
        for root in 0..4 {
            let own = rank.upload(&values::<i32>(rank.rank(), 1001));
            let buffers = rank.buffers(&own, &own, 1001);
            // SAFETY: the slice holds the count, and lives until it has been read back.
            unsafe { rank.communicator.broadcast(buffers, root, rank.stream(), LONG) }.unwrap();
            assert_eq!(rank.download(&own), values::<i32>(root, 1001));
        }
    });
}

#[test]
fn reduce_gives_the_sum_to_the_root_alone() {
    closing_on_ranks(4, |rank| {
        for root in 0..4 {
            let send = rank.upload(&values::<f64>(rank.rank(), 1001));
            let receive = rank.upload(&vec![-1.0; 1001]);
            let buffers = rank.buffers(&send, &receive, 1001);
            // SAFETY: the slices hold the count, and live until the result has been read back.
            unsafe { rank.communicator.reduce(buffers, ReduceOp::Sum, root, rank.stream(), LONG) }.unwrap();
            let sum = |i: usize| (0..4).map(|rank| values::<f64>(rank, 1001)[i]).sum();
            let expected = if rank.rank() == root { (0..1001).map(sum).collect() } else { vec![-1.0; 1001] };
            assert_eq!(rank.download(&receive), expected);
        }
    });
}

#[test]
fn a_group_runs_all_its_collectives() {
    closing_on_ranks(2, |rank| {
        let (sums, own) = (rank.upload(&[rank.rank() as f32 + 1.0; 5]), rank.upload(&[rank.rank() as i64; 3]));
        let gathered = rank.stream.alloc_zeros::<i64>(6).unwrap();
        for _ in 0..10 {
            let enqueue = |group: &Group<'_>| {
                // SAFETY: the slices hold the counts, and live until the results have been read back.
                unsafe {
                    group.all_reduce(rank.buffers(&sums, &sums, 5), ReduceOp::Max, rank.stream())?;
                    group.all_gather(rank.buffers(&own, &gathered, 3), rank.stream())
                }
            };
            rank.communicator.group(LONG, enqueue).unwrap();
        }
        assert_eq!(rank.download(&sums), [2.0; 5]);
        assert_eq!(rank.download(&gathered), [0, 0, 0, 1, 1, 1]);
    });
}

#[test]
fn many_calls_in_a_row_keep_their_order() {
    closing_on_ranks(2, |rank| {
        let buffer = rank.upload(&[1_i64; 3]);
        for _ in 0..40 {
            // SAFETY: the slice holds the count, and lives until it has been read back.
            unsafe {
                rank.communicator.all_reduce(rank.buffers(&buffer, &buffer, 3), ReduceOp::Sum, rank.stream(), LONG)
            }
            .unwrap();
        }
        assert_eq!(rank.download(&buffer), [1 << 40; 3]);
    });
}

#[test]
fn split_makes_communicators_by_colour_in_the_order_of_keys() {
    closing_on_ranks(4, |rank| {
        let number = rank.rank();
        // Ranks 0 and 2 in reversed order, rank 1 alone, rank 3 nowhere.
        let color = [Some(0), Some(1), Some(0), None][number];
        let part = rank.communicator.split(color, -(number as i32), LONG).unwrap();
        let place = part.as_ref().map(|part| (part.rank(), part.world_size()));
        assert_eq!(place, [Some((1, 2)), Some((0, 1)), Some((0, 2)), None][number]);
        if let Some(part) = part {
            let buffer = rank.upload(&[number as f32; 7]);
            let buffers = rank.buffers(&buffer, &buffer, 7);
            // SAFETY: the slice holds the count, and lives until it has been read back.
            unsafe { part.all_reduce(buffers, ReduceOp::Sum, rank.stream(), LONG) }.unwrap();
            assert_eq!(rank.download(&buffer), [if number == 1 { 1.0 } else { 2.0 }; 7]);
            part.close(LONG).unwrap();
        }
        assert_eq!(rank.all_reduce(&[1_i32], ReduceOp::Sum), [4], "the whole still works");
    });
}

#[test]
fn a_communicator_is_used_by_other_threads_than_the_one_that_made_it() {
    on_ranks(2, |rank| {
        for _ in 0..4 {
            let own = rank.stream.context();
            let split = || {
                own.bind_to_thread().unwrap();
                rank.communicator.split(Some(0), 0, LONG).unwrap().unwrap()
            };
            // The thread is gone when its communicators are used.
            let part = thread::scope(|scope| scope.spawn(split).join().unwrap());
            assert_eq!(rank.all_reduce(&[1_i32], ReduceOp::Sum), [2]);
            part.close(LONG).unwrap();
        }
        rank.communicator.close(LONG).unwrap();
    });
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
fn init_times_out_when_a_rank_never_comes() {
    let id = nccl().unique_id().unwrap();
    let timeout = Duration::from_millis(500);
    // The driver's first call is not part of the deadline.
    CudaContext::new(0).unwrap();
    let error = within_twice(timeout, || Rank::new(&id, 0, 0, 2, Wait::at_most(timeout))).map(|_| ()).unwrap_err();
    assert_eq!(error, NcclError::Timeout { function: "ncclCommInitRankConfig", timeout });
}

#[test]
fn two_ranks_on_one_device_are_refused_with_nccls_words() {
    let id = nccl().unique_id().unwrap();
    thread::scope(|scope| {
        for rank in 0..2 {
            let id = &id;
            scope.spawn(move || {
                let error = Rank::new(id, 0, rank, 2, LONG).map(|_| ()).unwrap_err();
                let NcclError::Call { code, last_error, .. } = &error else { panic!("{error}") };
                assert_eq!(*code, ErrorCode::InvalidUsage);
                assert!(last_error.contains("Duplicate GPU"), "{error}");
            });
        }
    });
}

/// Two ranks, of which rank 0 has enqueued a collective that rank 1 never joins; `body` runs on rank 0.
fn with_one_rank_stuck(body: impl Fn(&Rank) + Sync) {
    on_ranks(2, |rank| {
        if rank.rank() == 0 {
            let buffer = rank.upload(&[1.0_f32; 3]);
            let buffers = rank.buffers(&buffer, &buffer, 3);
            // SAFETY: the slice holds the count, and lives until the communicator has been aborted.
            unsafe { rank.communicator.all_reduce(buffers, ReduceOp::Sum, rank.stream(), LONG) }.unwrap();
            body(rank);
            rank.communicator.abort(LONG).unwrap();
        }
    });
}

#[test]
fn an_abort_frees_the_stream_of_a_rank_that_waits_for_a_lost_peer() {
    with_one_rank_stuck(|rank| {
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                rank.communicator.abort(LONG).unwrap();
            });
            rank.assert_that_the_stream_ends();
        });
        assert_eq!(rank.communicator.async_error(), Err(NcclError::Aborted { function: "ncclCommGetAsyncError" }));
    });
}

#[test]
fn close_times_out_while_a_collective_waits_for_a_lost_peer() {
    with_one_rank_stuck(|rank| {
        let timeout = Duration::from_millis(500);
        let error = within_twice(timeout, || rank.communicator.close(Wait::at_most(timeout))).unwrap_err();
        assert_eq!(error, NcclError::Timeout { function: "ncclCommFinalize", timeout });
        let again = rank.communicator.close(LONG);
        assert!(matches!(again, Err(NcclError::Failed { .. } | NcclError::Aborted { .. })), "{again:?}");
    });
}

#[test]
fn closing_twice_and_dropping_after_is_quiet() {
    closing_on_ranks(2, |rank| {
        assert_eq!(rank.all_reduce(&[1_i32], ReduceOp::Sum), [2]);
        rank.communicator.close(LONG).unwrap();
        rank.communicator.close(LONG).unwrap();
        rank.communicator.abort(LONG).unwrap();
        let error = rank.communicator.split(None, 0, LONG).map(|_| ()).unwrap_err();
        assert_eq!(error, NcclError::Closed { function: "ncclCommSplit" });
    });
}

#[test]
fn dropping_without_closing_frees_the_stream() {
    on_ranks(2, |rank| {
        let number = rank.rank();
        // Split off, so that the test owns it.
        let part = rank.communicator.split(Some(0), 0, LONG).unwrap().unwrap();
        if number == 0 {
            let buffer = rank.upload(&[1.0_f32; 3]);
            let buffers = rank.buffers(&buffer, &buffer, 3);
            // SAFETY: the slice holds the count, and lives until the stream has been waited for.
            unsafe { part.all_reduce(buffers, ReduceOp::Sum, rank.stream(), LONG) }.unwrap();
            drop(part);
            rank.assert_that_the_stream_ends();
        }
    });
}
