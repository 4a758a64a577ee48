//! The fake driver: asynchronous, checked, and as unkind as a real one may be.

mod common;

use common::{Gpu, Params, assert_died, assert_success, check, in_child, ptx};
use cudarc::driver::sys::{self, CUresult, CUstream};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// Records a new event in a stream and makes another wait for it.
fn order(first: CUstream, then: CUstream) {
    let mut event = null_mut();
    // SAFETY: the pointer is to a live variable, the streams exist.
    unsafe {
        check(sys::cuEventCreate(&mut event, 2));
        check(sys::cuEventRecord(event, first));
        check(sys::cuStreamWaitEvent(then, event, 0));
        check(sys::cuEventDestroy_v2(event));
    }
}

#[test]
fn streams_run_after_the_call_returns_and_in_order() {
    let gpu = Gpu::new(0);
    let (stream, x, y) = (gpu.stream(), gpu.upload(&[1.0; 100]), gpu.allocate(100));
    let start = Instant::now();
    gpu.stall(stream, 100);
    gpu.launch(stream, "fake_test_add", 1, 128, Params { x, y, value: 1.0, count: 100 });
    gpu.launch(stream, "fake_test_add", 1, 128, Params { x: y, y, value: 2.0, count: 100 });
    // SAFETY: the stream exists.
    assert_eq!(unsafe { sys::cuStreamQuery(stream) }, CUresult::CUDA_ERROR_NOT_READY);
    assert!(start.elapsed() < Duration::from_millis(90), "a launch waited");
    assert_eq!(gpu.download(stream, y, 100), [4.0; 100]);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[test]
fn a_missing_event_reads_poison_and_an_event_prevents_it() {
    let gpu = Gpu::new(0);
    let (first, second) = (gpu.stream(), gpu.stream());
    let run = |ordered: bool| {
        let (x, y, z) = (gpu.upload(&[1.0; 100]), gpu.allocate(100), gpu.allocate(100));
        gpu.stall(first, 50);
        gpu.launch(first, "fake_test_add", 1, 128, Params { x, y, value: 1.0, count: 100 });
        if ordered {
            order(first, second);
        }
        gpu.launch(second, "fake_test_add", 1, 128, Params { x: y, y: z, value: 1.0, count: 100 });
        let got = gpu.download(second, z, 100);
        gpu.wait(first);
        got
    };
    assert_eq!(run(true), [3.0; 100]);
    assert!(run(false).iter().all(|value| value.is_nan()));
}

#[test]
fn copies_of_pinned_memory_happen_later_and_of_pageable_memory_at_once() {
    let gpu = Gpu::new(0);
    let (stream, x) = (gpu.stream(), gpu.allocate(1));
    let mut pinned: *mut c_void = null_mut();
    // SAFETY: the pinned memory holds one float and is written while no copy runs.
    unsafe {
        check(sys::cuMemHostAlloc(&mut pinned, 4, 0));
        let pinned = pinned.cast::<f32>();
        *pinned = 1.0;
        gpu.stall(stream, 50);
        check(sys::cuMemcpyHtoDAsync_v2(x, pinned.cast(), 4, stream));
        *pinned = 2.0;
        assert_eq!(gpu.download(stream, x, 1), [2.0], "pinned memory was read too early");
        gpu.stall(stream, 50);
        let pageable = 3.0f32;
        check(sys::cuMemcpyHtoDAsync_v2(x, (&raw const pageable).cast(), 4, stream));
        assert_eq!(sys::cuStreamQuery(stream), CUresult::CUDA_SUCCESS);
        check(sys::cuMemFreeHost(pinned.cast()));
        assert_eq!(sys::cuMemFreeHost(pinned.cast()), CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    assert_eq!(gpu.download(stream, x, 1), [3.0]);
}

#[test]
fn memory_is_poison_at_first_and_ranges_are_checked() {
    let gpu = Gpu::new(0);
    let (stream, x) = (gpu.stream(), gpu.allocate(10));
    assert!(gpu.download(stream, x, 10).iter().all(|value| value.is_nan()));
    let mut host = [0.0f32; 12];
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    // SAFETY: the host's side holds all bytes named; the driver refuses what the device's does not.
    unsafe {
        assert_eq!(sys::cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), x, 44), invalid);
        assert_eq!(sys::cuMemcpyHtoD_v2(x + 4, host.as_ptr().cast(), 40), invalid);
        assert_eq!(sys::cuMemsetD8Async(x, 0, 41, stream), invalid);
        check(sys::cuMemsetD32Async(x + 4, 1.5f32.to_bits(), 9, stream));
        assert_eq!(sys::cuMemFree_v2(x + 4), invalid);
        assert_eq!(gpu.download(stream, x, 10)[1..], [1.5; 9]);
        check(sys::cuMemFree_v2(x));
        assert_eq!(sys::cuMemFree_v2(x), invalid);
        assert_eq!(sys::cuMemcpyHtoD_v2(x, host.as_ptr().cast(), 4), invalid);
    }
}

#[test]
fn launches_are_checked() {
    let gpu = Gpu::new(0);
    let (stream, y) = (gpu.stream(), gpu.allocate(8));
    let params = Params { x: y, y, value: 0.0, count: 0 };
    for (grid, block) in [(0, 32), (1, 0), (1, 1025), (1 << 31, 32)] {
        let result = gpu.try_launch(stream, "fake_test_add", grid, block, params);
        assert_eq!(result, CUresult::CUDA_ERROR_INVALID_VALUE, "grid {grid}, block {block}");
    }
    // SAFETY: the stream exists, and after it is destroyed the driver only compares the handle.
    unsafe {
        check(sys::cuStreamDestroy_v2(stream));
        assert_eq!(sys::cuStreamSynchronize(stream), CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    assert_eq!(gpu.try_launch(stream, "fake_test_add", 1, 32, params), CUresult::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn freed_memory_given_to_a_kernel_ends_the_process() {
    let output = in_child("freed_memory_given_to_a_kernel_ends_the_process", &[], || {
        let gpu = Gpu::new(0);
        let (stream, y) = (gpu.stream(), gpu.allocate(8));
        // SAFETY: the memory is nobody's any more.
        check(unsafe { sys::cuMemFree_v2(y) });
        gpu.launch(stream, "fake_test_add", 1, 32, Params { x: y, y, value: 0.0, count: 0 });
    });
    assert_died(&output, "fake_test_add is given memory that has been freed");
}

#[test]
fn a_write_outside_an_allocation_is_found_when_it_is_freed() {
    let output = in_child("a_write_outside_an_allocation_is_found_when_it_is_freed", &[], || {
        let gpu = Gpu::new(0);
        let (stream, x, y) = (gpu.stream(), gpu.upload(&[1.0; 128]), gpu.allocate(100));
        gpu.launch(stream, "fake_test_add", 1, 128, Params { x, y, value: 0.0, count: 101 });
        // SAFETY: the memory is nobody's any more.
        unsafe { sys::cuMemFree_v2(y) };
    });
    assert_died(&output, "written outside an allocation of 400 bytes");
}

/// Allocates in `first`'s order, uses the memory in `second`'s, and frees it in `first`'s, ordered after or not.
fn use_and_free(ordered: bool) {
    let gpu = Gpu::new(0);
    let (first, second) = (gpu.stream(), gpu.stream());
    let mut y = 0;
    // SAFETY: the pointer is to a live variable.
    check(unsafe { sys::cuMemAllocAsync(&mut y, 400, first) });
    order(first, second);
    gpu.stall(second, 50);
    gpu.launch(second, "fake_test_add", 1, 128, Params { x: y, y, value: 0.0, count: 100 });
    if ordered {
        order(second, first);
    }
    // SAFETY: the memory is used no more, as far as this stream's order says.
    check(unsafe { sys::cuMemFreeAsync(y, first) });
    let mut again = 0;
    // SAFETY: the pointer is to a live variable.
    check(unsafe { sys::cuMemAllocAsync(&mut again, 400, second) });
    assert_eq!(again, y, "the block goes on at once");
}

#[test]
fn freeing_what_another_stream_uses_needs_an_event() {
    let name = "freeing_what_another_stream_uses_needs_an_event";
    use_and_free(true);
    let output = in_child(name, &[], || use_and_free(false));
    assert_died(&output, "while fake_test_add may still use them in another: an event is missing");
}

#[test]
fn filling_with_nan_what_another_stream_uses_needs_an_event() {
    let use_and_fill = |ordered: bool| {
        let gpu = Gpu::new(0);
        let (first, second, y) = (gpu.stream(), gpu.stream(), gpu.allocate(100));
        gpu.stall(second, 50);
        gpu.launch(second, "fake_test_add", 1, 128, Params { x: y, y, value: 0.0, count: 100 });
        if ordered {
            order(second, first);
        }
        // SAFETY: the memory is that long.
        check(unsafe { sys::cuMemsetD8Async(y, 0xFF, 400, first) });
    };
    use_and_fill(true);
    let output = in_child("filling_with_nan_what_another_stream_uses_needs_an_event", &[], || use_and_fill(false));
    assert_died(&output, "filled with NaN in the order of one stream while fake_test_add may still use them");
}

#[test]
fn memory_is_limited() {
    let output = in_child("memory_is_limited", &[("FAKE_CUDA_MEMORY", "1000")], || {
        let gpu = Gpu::new(0);
        let (mut free, mut total, mut pointer) = (0, 0, 0);
        // SAFETY: the pointers are to live variables.
        unsafe {
            let kept = gpu.allocate(200);
            check(sys::cuMemGetInfo_v2(&mut free, &mut total));
            assert_eq!((free, total), (200, 1000));
            assert_eq!(sys::cuMemAlloc_v2(&mut pointer, 201), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            check(sys::cuMemAlloc_v2(&mut pointer, 200));
            check(sys::cuMemFree_v2(kept));
            check(sys::cuMemAlloc_v2(&mut pointer, 800));
        }
    });
    assert_success(&output);
}

#[test]
fn an_old_driver_refuses_new_ptx() {
    for (driver, newest, newer) in [("11020", "7.2", "7.3"), ("11040", "7.4", "7.5"), ("12000", "8.0", "8.1")] {
        let name = "an_old_driver_refuses_new_ptx";
        let output =
            in_child(name, &[("FAKE_CUDA_DRIVER_VERSION", driver), ("NEWEST", newest), ("NEWER", newer)], || {
                syncbn_fake_cuda::install();
                let load = |variable| {
                    let (mut context, mut module) = (null_mut(), null_mut());
                    let image = ptx(&std::env::var(variable).expect("the parent sets it"));
                    // SAFETY: the pointers are to live variables, the image ends in a zero.
                    unsafe {
                        check(sys::cuInit(0));
                        check(sys::cuDevicePrimaryCtxRetain(&mut context, 0));
                        check(sys::cuCtxSetCurrent(context));
                        sys::cuModuleLoadData(&mut module, image.as_ptr().cast())
                    }
                };
                assert_eq!(load("NEWEST"), CUresult::CUDA_SUCCESS);
                assert_eq!(load("NEWER"), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
            });
        assert_success(&output);
    }
}

#[test]
fn modules_must_declare_what_the_source_has() {
    let _gpu = Gpu::new(0);
    let load = |text: &str| {
        let (mut module, mut function, image) = (null_mut(), null_mut(), std::ffi::CString::new(text).unwrap());
        // SAFETY: the pointers are to live variables, the texts end in a zero.
        unsafe {
            match sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) {
                CUresult::CUDA_SUCCESS => sys::cuModuleGetFunction(&mut function, module, c"fake_test_add".as_ptr()),
                error => error,
            }
        }
    };
    let entry = |parameter: &str| format!(".version 7.4\n.visible .entry fake_test_add({parameter})\n{{\n}}\n");
    assert_eq!(load(&entry(".param .align 8 .b8 fake_test_add_param_0[24]")), CUresult::CUDA_SUCCESS);
    assert_eq!(load(&entry(".param .align 8 .b8 fake_test_add_param_0[32]")), CUresult::CUDA_ERROR_INVALID_PTX);
    assert_eq!(load(&entry(".param .u64 fake_test_add_param_0")), CUresult::CUDA_ERROR_INVALID_PTX);
    assert_eq!(load(".version 7.4\n.visible .entry fake_test_adder()\n{}"), CUresult::CUDA_ERROR_NOT_FOUND);
    assert_eq!(load("no PTX"), CUresult::CUDA_ERROR_INVALID_IMAGE);
}

#[test]
fn there_may_be_no_device() {
    let output = in_child("there_may_be_no_device", &[("FAKE_CUDA_DEVICES", "0")], || {
        syncbn_fake_cuda::install();
        // SAFETY: the call takes no pointer.
        assert_eq!(unsafe { sys::cuInit(0) }, CUresult::CUDA_ERROR_NO_DEVICE);
    });
    assert_success(&output);
}

#[test]
fn another_devices_memory_ends_the_process() {
    let output = in_child("another_devices_memory_ends_the_process", &[("FAKE_CUDA_DEVICES", "2")], || {
        let (first, second) = (Gpu::new(0), Gpu::new(1));
        let y = second.allocate(8);
        // SAFETY: the context is retained.
        check(unsafe { sys::cuCtxSetCurrent(first.context) });
        first.launch(first.stream(), "fake_test_add", 1, 32, Params { x: y, y, value: 0.0, count: 0 });
    });
    assert_died(&output, "fake_test_add runs on device 0 and is given memory of device 1");
}

#[test]
fn counters_and_names_tell_what_was_done() {
    let output = in_child("counters_and_names_tell_what_was_done", &[], || {
        let gpu = Gpu::new(0);
        let (stream, x, y) = (gpu.stream(), gpu.upload(&[1.0; 8]), gpu.allocate(8));
        syncbn_fake_cuda::reset_counters();
        for value in [1.0, 2.0] {
            gpu.launch(stream, "fake_test_add", 1, 32, Params { x, y, value, count: 8 });
        }
        gpu.launch(stream, "fake_test_copy_vectors", 1, 32, Params { x, y, value: 0.0, count: 8 });
        gpu.download(stream, y, 8);
        let counters = syncbn_fake_cuda::counters();
        assert_eq!((counters.kernel_launches, counters.copies_to_host, counters.copies_to_device), (3, 1, 0));
        assert_eq!((counters.host_waits, counters.live_bytes), (2, 64));
        assert_eq!(syncbn_fake_cuda::launched_kernels(), ["fake_test_add", "fake_test_add", "fake_test_copy_vectors"]);
    });
    assert_success(&output);
}

#[test]
fn pointers_tell_what_they_are() {
    let gpu = Gpu::new(0);
    let x = gpu.allocate(4);
    let (mut kind, mut device) = (0u32, -1i32);
    let query = |attribute, pointer, data: *mut c_void| {
        // SAFETY: the data is large enough for the attribute.
        unsafe { sys::cuPointerGetAttribute(data, attribute, pointer) }
    };
    use sys::CUpointer_attribute::{CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_MEMORY_TYPE};
    check(query(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, x + 12, (&raw mut kind).cast()));
    check(query(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, x, (&raw mut device).cast()));
    assert_eq!((kind, device), (2, 0));
    let host = &raw const kind as u64;
    let unknown = query(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, host, (&raw mut kind).cast());
    assert_eq!(unknown, CUresult::CUDA_ERROR_INVALID_VALUE);
}
