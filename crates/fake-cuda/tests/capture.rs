//! Stream capture and graphs: recorded, not run; replayed with what was recorded; broken by what breaks a real capture.

mod common;

use common::{Gpu, Params, check};
use cudarc::driver::sys::{self, CUevent, CUgraph, CUgraphExec, CUresult, CUstream, CUstreamCaptureMode};
use std::ptr::null_mut;

const GLOBAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
const THREAD_LOCAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const RELAXED: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;

fn begin(stream: CUstream, mode: CUstreamCaptureMode) {
    // SAFETY: the stream exists.
    check(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) });
}

fn end(stream: CUstream) -> Result<CUgraph, CUresult> {
    let mut graph = null_mut();
    // SAFETY: the stream exists, the pointer is to a live variable.
    match unsafe { sys::cuStreamEndCapture(stream, &mut graph) } {
        CUresult::CUDA_SUCCESS => Ok(graph),
        error => {
            assert!(graph.is_null());
            Err(error)
        }
    }
}

fn instantiate(graph: CUgraph) -> CUgraphExec {
    let mut exec = null_mut();
    // SAFETY: the graph exists and is not used afterwards.
    unsafe {
        check(sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        check(sys::cuGraphDestroy(graph));
    }
    exec
}

fn event() -> CUevent {
    let mut event = null_mut();
    // SAFETY: the pointer is to a live variable.
    check(unsafe { sys::cuEventCreate(&mut event, 2) });
    event
}

/// Records an event in `first` and lets `then` wait for it; what the wait says.
fn order(first: CUstream, then: CUstream) -> CUresult {
    let event = event();
    // SAFETY: the streams and the event exist.
    unsafe {
        check(sys::cuEventRecord(event, first));
        sys::cuStreamWaitEvent(then, event, 0)
    }
}

fn add(gpu: &Gpu, stream: CUstream, pointer: u64, value: f32) {
    gpu.launch(stream, "fake_test_add", 1, 32, Params { x: pointer, y: pointer, value, count: 4 });
}

/// Tests of one process share its captures: a global one forbids calls of all threads.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn a_captured_step_runs_only_when_launched() {
    let _alone = alone();
    let gpu = Gpu::new(0);
    let (stream, x) = (gpu.stream(), gpu.upload(&[1.0; 4]));
    begin(stream, GLOBAL);
    add(&gpu, stream, x, 1.0);
    // SAFETY: the memory is ours.
    check(unsafe { sys::cuMemsetD32Async(x + 8, 0, 1, stream) });
    add(&gpu, stream, x, 2.0);
    let exec = instantiate(end(stream).unwrap());
    assert_eq!(gpu.download(stream, x, 4), [1.0; 4], "a capture ran what it recorded");
    for _ in 0..2 {
        // SAFETY: the graph and the stream exist.
        check(unsafe { sys::cuGraphLaunch(exec, stream) });
    }
    assert_eq!(gpu.download(stream, x, 4), [7.0, 7.0, 2.0, 7.0]);
    // SAFETY: the graph exists, and after it is destroyed the driver only compares the handle.
    unsafe {
        check(sys::cuGraphUpload(exec, stream));
        check(sys::cuGraphExecDestroy(exec));
        assert_eq!(sys::cuGraphLaunch(exec, stream), CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
}

/// Captures x += 1 in one stream and x += 2 in another that is forked from it, and joined or not.
fn fork(gpu: &Gpu, x: u64, joined: bool) -> Result<CUgraph, CUresult> {
    let (main, side) = (gpu.stream(), gpu.stream());
    begin(main, GLOBAL);
    add(gpu, main, x, 1.0);
    check(order(main, side));
    add(gpu, side, x, 2.0);
    if joined {
        check(order(side, main));
    }
    let graph = end(main);
    // The side stream is free again.
    gpu.wait(side);
    graph
}

#[test]
fn forks_are_captured_and_must_be_joined() {
    let _alone = alone();
    let gpu = Gpu::new(0);
    let (stream, x) = (gpu.stream(), gpu.upload(&[0.0; 4]));
    let exec = instantiate(fork(&gpu, x, true).unwrap());
    for _ in 0..3 {
        // SAFETY: the graph and the stream exist.
        check(unsafe { sys::cuGraphLaunch(exec, stream) });
    }
    assert_eq!(gpu.download(stream, x, 4), [9.0; 4]);
    assert_eq!(fork(&gpu, x, false), Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED));
}

#[test]
fn a_dependency_that_was_not_captured_shows() {
    let _alone = alone();
    let gpu = Gpu::new(0);
    let (main, side, x, y) = (gpu.stream(), gpu.stream(), gpu.upload(&[0.0; 4]), gpu.allocate(4));
    begin(main, GLOBAL);
    check(order(main, side));
    add(&gpu, side, x, 1.0);
    // Reads x without waiting for the side stream, then joins it.
    gpu.launch(main, "fake_test_add", 1, 32, Params { x, y, value: 0.0, count: 4 });
    check(order(side, main));
    let exec = instantiate(end(main).unwrap());
    let seen = [1.0, 2.0].map(|_| {
        // SAFETY: the graph and the stream exist.
        check(unsafe { sys::cuGraphLaunch(exec, main) });
        gpu.download(main, y, 1)[0]
    });
    assert_eq!(seen, [1.0, 1.0], "the second launch must run the reader before the writer");
}

#[test]
fn looking_at_a_capture_from_the_host_ends_it() {
    let _alone = alone();
    let gpu = Gpu::new(0);
    let (stream, other, x) = (gpu.stream(), gpu.stream(), gpu.allocate(4));
    let mut host = [0.0f32; 4];
    let mut pointer = 0;
    let host_pointer = host.as_mut_ptr();
    // SAFETY: the streams exist, the memory is large enough.
    let calls: [(&str, &dyn Fn() -> CUresult); 7] = unsafe {
        [
            ("synchronize", &|| sys::cuStreamSynchronize(stream)),
            ("synchronize another", &|| sys::cuStreamSynchronize(other)),
            ("query", &|| sys::cuStreamQuery(stream)),
            ("synchronize the context", &|| sys::cuCtxSynchronize()),
            ("copy to pageable memory", &|| sys::cuMemcpyDtoHAsync_v2(host_pointer.cast(), x, 16, stream)),
            ("copy", &|| sys::cuMemcpyDtoH_v2(host_pointer.cast(), x, 16)),
            ("free", &|| sys::cuMemFree_v2(x)),
        ]
    };
    for (name, call) in calls {
        begin(stream, THREAD_LOCAL);
        assert_eq!(call(), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "{name}");
        let params = Params { x, y: x, value: 1.0, count: 4 };
        let launched = gpu.try_launch(stream, "fake_test_add", 1, 32, params);
        assert_eq!(launched, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "{name}");
        assert_eq!(end(stream), Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED), "{name}");
        gpu.wait(stream);
    }
    // A relaxed capture allows what is only potentially unsafe, as does a thread that says it knows better.
    begin(stream, RELAXED);
    // SAFETY: the pointer is to a live variable.
    check(unsafe { sys::cuMemAlloc_v2(&mut pointer, 16) });
    end(stream).unwrap();
    begin(stream, THREAD_LOCAL);
    let mut mode = RELAXED;
    // SAFETY: the pointers are to live variables.
    unsafe {
        check(sys::cuThreadExchangeStreamCaptureMode(&mut mode));
        check(sys::cuMemAlloc_v2(&mut pointer, 16));
        check(sys::cuThreadExchangeStreamCaptureMode(&mut mode));
    }
    assert_eq!(mode, RELAXED);
    end(stream).unwrap();
}

#[test]
fn a_global_capture_forbids_other_threads_too_and_a_thread_local_one_does_not() {
    let _alone = alone();
    let gpu = Gpu::new(0);
    let stream = gpu.stream();
    let allocate_elsewhere = || {
        let context = gpu.context as usize;
        let allocate = move || {
            let mut pointer = 0;
            // SAFETY: the context is retained, the pointer is to a live variable.
            unsafe {
                check(sys::cuCtxSetCurrent(context as *mut _));
                sys::cuMemAlloc_v2(&mut pointer, 16)
            }
        };
        std::thread::spawn(allocate).join().unwrap()
    };
    begin(stream, THREAD_LOCAL);
    assert_eq!(allocate_elsewhere(), CUresult::CUDA_SUCCESS);
    end(stream).unwrap();
    begin(stream, GLOBAL);
    assert_eq!(allocate_elsewhere(), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(end(stream), Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
}

#[test]
fn captures_do_not_mix_with_work_outside() {
    let _alone = alone();
    let gpu = Gpu::new(0);
    let (stream, other) = (gpu.stream(), gpu.stream());
    let before = event();
    // SAFETY: the handles exist.
    unsafe {
        check(sys::cuEventRecord(before, other));
        begin(stream, THREAD_LOCAL);
        let isolated = sys::cuStreamWaitEvent(stream, before, 0);
        assert_eq!(isolated, CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        assert!(end(stream).is_err());
        begin(stream, THREAD_LOCAL);
        begin(other, THREAD_LOCAL);
        assert_eq!(order(stream, other), CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE);
        assert!(end(stream).is_err() && end(other).is_err());
        let inside = event();
        begin(stream, THREAD_LOCAL);
        check(sys::cuEventRecord(inside, stream));
        assert_eq!(sys::cuEventQuery(inside), CUresult::CUDA_ERROR_CAPTURED_EVENT);
        check(sys::cuStreamWaitEvent(other, inside, 0));
        assert_eq!(end(other), Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED));
        assert_eq!(end(stream), Err(CUresult::CUDA_ERROR_ILLEGAL_STATE));
        assert_eq!(sys::cuStreamBeginCapture_v2(null_mut(), GLOBAL), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
}
