//! Who may use device memory, and for how long: recordings, other threads, other libraries.

#[cfg(target_os = "linux")]
mod sanitizers;

use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use syncbn_core::ops::BinaryOp;
use syncbn_core::{Code, DType, Ops};
use syncbn_cuda::{Cuda, CudaBuffer, Foreign};

const LEN: usize = 1000;
const F32: DType = DType::F32;

/// The device, for one test at a time: one thread records at a time.
fn gpu() -> (Cuda, MutexGuard<'static, ()>) {
    static ONE_TEST: Mutex<()> = Mutex::new(());
    let guard = ONE_TEST.lock().unwrap_or_else(PoisonError::into_inner);
    syncbn_fake_cuda::install();
    syncbn_cuda::set_poison_freed(true);
    let cuda = Cuda::new(0).unwrap();
    // Loads what a recording cannot.
    let warm = filled(&cuda, 1.0);
    add(&cuda, &warm, 1.0, &filled(&cuda, 0.0));
    (cuda, guard)
}

fn filled(cuda: &Cuda, value: f64) -> CudaBuffer {
    let buffer = cuda.tensor_buffer(F32, &[LEN]).unwrap();
    cuda.fill(buffer.slice_mut(F32), value).unwrap();
    buffer
}

/// y = x + value.
fn add(cuda: &Cuda, x: &CudaBuffer, value: f64, y: &CudaBuffer) {
    cuda.binary_scalar(BinaryOp::Add, x.slice(F32), value, y.slice_mut(F32)).unwrap();
}

#[track_caller]
fn expect_all(buffer: &CudaBuffer, value: f32) {
    let bytes = buffer.to_host(&|| Ok(())).unwrap();
    let wrong = bytes.chunks_exact(4).find(|bytes| **bytes != value.to_le_bytes());
    assert_eq!(wrong, None, "every element is {value}");
}

/// Keeps the compute stream busy.
fn stall(cuda: &Cuda, time: Duration) {
    extern "C" fn sleep(milliseconds: *mut c_void) {
        std::thread::sleep(Duration::from_millis(milliseconds as u64));
    }
    let milliseconds = time.as_millis() as usize as *mut c_void;
    cuda.bind().unwrap();
    // SAFETY: the stream is alive, and the function does not read through its argument.
    let result = unsafe { sys::cuLaunchHostFunc(cuda.stream().handle() as sys::CUstream, Some(sleep), milliseconds) };
    assert_eq!(result, sys::CUresult::CUDA_SUCCESS);
}

#[test]
fn what_a_recording_uses_is_not_handed_out_before_it_is_dropped() {
    let (cuda, _guard) = gpu();
    let (x, y) = (filled(&cuda, 1.0), filled(&cuda, 0.0));
    cuda.start_capture().unwrap();
    let inner = cuda.tensor_buffer(F32, &[LEN]).unwrap();
    add(&cuda, &x, 1.0, &inner);
    add(&cuda, &inner, 1.0, &y);
    drop(inner);
    let graph = cuda.finish_capture().unwrap();
    // Freed after the recording, which reads it, and so is what was made in it.
    let used = x.pointer();
    drop(x);
    let others: Vec<CudaBuffer> = (0..20).map(|_| filled(&cuda, 5.0)).collect();
    assert!(others.iter().all(|other| other.pointer() != used));
    graph.replay().unwrap();
    expect_all(&y, 3.0);
    others.iter().for_each(|other| expect_all(other, 5.0));
    drop((others, graph));
    let reserved = cuda.memory_stats().reserved_bytes;
    let again: Vec<CudaBuffer> = (0..22).map(|_| filled(&cuda, 6.0)).collect();
    assert!(again.iter().any(|other| other.pointer() == used), "it is the device's again");
    assert_eq!(cuda.memory_stats().reserved_bytes, reserved);
}

#[test]
fn two_recordings_that_share_memory_each_keep_it() {
    let (cuda, _guard) = gpu();
    let (x, y) = (filled(&cuda, 1.0), filled(&cuda, 0.0));
    let record = |value: f64| {
        cuda.start_capture().unwrap();
        add(&cuda, &x, value, &y);
        cuda.finish_capture().unwrap()
    };
    let (first, second) = (record(1.0), record(2.0));
    let used = x.pointer();
    drop(x);
    drop(first);
    let others: Vec<CudaBuffer> = (0..10).map(|_| filled(&cuda, 5.0)).collect();
    assert!(others.iter().all(|other| other.pointer() != used));
    second.replay().unwrap();
    expect_all(&y, 3.0);
}

#[test]
fn memory_that_a_recording_does_not_use_is_free_at_once() {
    let (cuda, _guard) = gpu();
    let (x, unused) = (filled(&cuda, 1.0), filled(&cuda, 2.0));
    let address = unused.pointer();
    cuda.start_capture().unwrap();
    add(&cuda, &x, 1.0, &x);
    let _graph = cuda.finish_capture().unwrap();
    drop(unused);
    assert_eq!(filled(&cuda, 3.0).pointer(), address);
}

#[test]
fn other_threads_wait_for_the_end_of_a_recording() {
    let (cuda, _guard) = gpu();
    let y = filled(&cuda, 0.0);
    let elsewhere = std::thread::scope(|scope| {
        cuda.start_capture().unwrap();
        let other = scope.spawn(|| {
            assert!(!cuda.is_capturing(), "that is the other thread");
            let (start, mine) = (Instant::now(), filled(&cuda, 7.0));
            expect_all(&mine, 7.0);
            (start.elapsed(), cuda.start_capture().and_then(|()| cuda.finish_capture()).is_ok())
        });
        std::thread::sleep(Duration::from_millis(100));
        let second = cuda.start_capture().unwrap_err();
        assert_eq!(second.code(), Code::Capture);
        add(&cuda, &y, 1.0, &y);
        let graph = cuda.finish_capture().unwrap();
        let elsewhere = other.join().unwrap();
        expect_all(&y, 0.0);
        graph.replay().unwrap();
        expect_all(&y, 1.0);
        elsewhere
    });
    assert!(elsewhere.0 >= Duration::from_millis(50) && elsewhere.1, "{elsewhere:?}");
}

#[test]
fn a_thread_that_ends_gives_up_its_recordings() {
    let (cuda, _guard) = gpu();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cuda.start_capture().unwrap();
            add(&cuda, &filled(&cuda, 1.0), 1.0, &filled(&cuda, 1.0));
            syncbn_cuda::abandon_captures_of_this_thread();
            assert!(!cuda.is_capturing());
            // Nothing to give up is no error.
            syncbn_cuda::abandon_captures_of_this_thread();
        });
    });
    expect_all(&filled(&cuda, 7.0), 7.0);
}

#[test]
fn memory_that_runs_out_is_taken_from_what_is_kept() {
    let (cuda, _guard) = gpu();
    let bytes = cuda.memory_info().unwrap().0 / 4;
    let large = |bytes: usize| cuda.tensor_buffer(F32, &[bytes / 4]);
    let kept: Vec<CudaBuffer> = (0..3).map(|_| large(bytes).unwrap()).collect();
    drop(kept);
    let all = large(3 * bytes).unwrap();
    let error = large(2 * bytes).unwrap_err();
    assert_eq!(error.code(), Code::OutOfMemory);
    drop(all);
    expect_all(&filled(&cuda, 8.0), 8.0);
}

/// Says when it is dropped.
struct Owner(Arc<Mutex<bool>>);

impl Drop for Owner {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = true;
    }
}

#[test]
fn owners_of_foreign_memory_are_kept_until_the_device_is_done_with_it() {
    let (cuda, _guard) = gpu();
    let (theirs, y, dropped) = (filled(&cuda, 1.0), filled(&cuda, 0.0), Arc::new(Mutex::new(false)));
    let foreign = || {
        *dropped.lock().unwrap() = false;
        Foreign::new(&cuda, theirs.pointer(), F32, LEN, Arc::new(Owner(dropped.clone()))).unwrap()
    };
    let is_dropped = || {
        cuda.let_go_of_parked();
        *dropped.lock().unwrap()
    };
    let tensor = foreign();
    stall(&cuda, Duration::from_millis(200));
    cuda.binary_scalar(BinaryOp::Add, tensor.slice(), 1.0, y.slice_mut(F32)).unwrap();
    drop(tensor);
    assert!(!is_dropped(), "the kernel has not run");
    expect_all(&y, 2.0);
    assert!(is_dropped());

    let tensor = foreign();
    cuda.start_capture().unwrap();
    cuda.binary_scalar(BinaryOp::Add, tensor.slice(), 2.0, y.slice_mut(F32)).unwrap();
    let graph = cuda.finish_capture().unwrap();
    drop(tensor);
    cuda.synchronize(&|| Ok(())).unwrap();
    assert!(!is_dropped(), "the graph uses it");
    graph.replay().unwrap();
    expect_all(&y, 3.0);
    drop(graph);
    cuda.synchronize(&|| Ok(())).unwrap();
    assert!(is_dropped());
}

#[test]
fn foreign_memory_is_as_long_as_is_said() {
    let (cuda, _guard) = gpu();
    let theirs = filled(&cuda, 1.0);
    let code = |len: usize, dtype: DType| {
        Foreign::new(&cuda, theirs.pointer() + 4, dtype, len, Arc::new(())).map(drop).map_err(|error| error.code())
    };
    assert_eq!(code(LEN - 1, F32), Ok(()));
    assert_eq!(code(usize::MAX / 2, F32), Err(Code::Argument));
    assert_eq!(code(1 << 40, F32), Err(Code::Argument));
}

#[test]
fn another_librarys_stream_is_waited_for() {
    let (cuda, _guard) = gpu();
    let (theirs, y, stream) = (filled(&cuda, 1.0), filled(&cuda, 0.0), cuda.new_stream().unwrap());
    cuda.synchronize(&|| Ok(())).unwrap();
    extern "C" fn sleep(_: *mut c_void) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let raw = stream.handle() as sys::CUstream;
    // SAFETY: the stream and the memory are alive until the end of the test, which waits for both.
    let results = unsafe {
        [
            sys::cuLaunchHostFunc(raw, Some(sleep), std::ptr::null_mut()),
            sys::cuMemsetD32Async(theirs.pointer(), 2f32.to_bits(), LEN, raw),
        ]
    };
    assert_eq!(results, [sys::CUresult::CUDA_SUCCESS; 2]);
    let tensor = Foreign::new(&cuda, theirs.pointer(), F32, LEN, Arc::new(())).unwrap();
    cuda.wait_for_stream(stream.handle()).unwrap();
    cuda.binary_scalar(BinaryOp::Add, tensor.slice(), 1.0, y.slice_mut(F32)).unwrap();
    expect_all(&y, 3.0);
    cuda.start_capture().unwrap();
    assert_eq!(cuda.wait_for_stream(stream.handle()).unwrap_err().code(), Code::Capture);
    cuda.abandon_capture();
}

#[test]
fn a_wait_that_is_given_up_leaves_the_device_usable() {
    let (cuda, _guard) = gpu();
    let y = filled(&cuda, 4.0);
    stall(&cuda, Duration::from_millis(100));
    let stop = || Err(syncbn_core::Error::new(Code::Aborted, "enough"));
    assert_eq!(cuda.synchronize(&stop).unwrap_err().code(), Code::Aborted);
    expect_all(&y, 4.0);
}

#[test]
fn a_report_of_a_fault_does_not_wait_for_what_hangs() {
    let (cuda, _guard) = gpu();
    stall(&cuda, Duration::from_millis(500));
    let start = Instant::now();
    cuda.report_fault(1, syncbn_core::Error::new(Code::PeerLost, "rank 1 was lost"));
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    assert_eq!(cuda.synchronize(&|| Ok(())).unwrap_err().code(), Code::PeerLost);
    cuda.clear_fault(1);
    cuda.synchronize(&|| Ok(())).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn under_sanitizers() {
    sanitizers::run_again(syncbn_fake_cuda::Variant::Asan, &[]);
    sanitizers::run_again(syncbn_fake_cuda::Variant::Tsan, &[]);
}
