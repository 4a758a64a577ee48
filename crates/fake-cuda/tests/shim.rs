//! The shim: what kernels compute, and that what is undefined on a GPU does not go unnoticed.

mod common;

use common::{Gpu, Params, assert_died, assert_success, in_child};
use half::{bf16, f16};

const NAN_FREE: Params = Params { x: 0, y: 0, value: 0.0, count: 0 };

/// Runs a kernel on one block of 64 threads and waits.
fn run_alone(kernel: &str, params: Params) {
    let gpu = Gpu::new(0);
    let (stream, y) = (gpu.stream(), gpu.allocate(64));
    gpu.launch(stream, kernel, 1, 64, Params { y, ..params });
    gpu.wait(stream);
}

/// Makes a test of a kernel that must not get through.
macro_rules! dies {
    ($($test:ident: $kernel:literal, count $count:literal => $message:literal;)*) => {$(
        #[test]
        fn $test() {
            let params = Params { count: $count, ..NAN_FREE };
            let output = in_child(stringify!($test), &[], || run_alone($kernel, params));
            assert_died(&output, concat!("kernel ", $kernel));
            assert_died(&output, $message);
        }
    )*};
}

dies! {
    barrier_of_part_of_a_block: "fake_test_divergent_barrier", count 40 => "reached by only part of the block";
    mask_without_its_own_lane: "fake_test_wrong_mask", count 0 => "lane is not in its own *_sync mask (0xfffffffe)";
    mask_with_an_exited_lane: "fake_test_exited_lane", count 0 => "names a lane that has exited";
    different_functions_of_one_mask: "fake_test_mixed_functions", count 0 => "at different *_sync functions";
    barriers_that_wait_for_each_other: "fake_test_deadlock", count 0 => "deadlock";
    write_beyond_dynamic_shared_memory: "fake_test_shared_overrun", count 4 => "beyond its 16 dynamic shared bytes";
}

#[test]
fn barrier_of_a_whole_block_passes() {
    run_alone("fake_test_divergent_barrier", Params { count: 64, ..NAN_FREE });
    run_alone("fake_test_divergent_barrier", Params { count: 0, ..NAN_FREE });
}

#[test]
fn misaligned_vectors_are_caught() {
    let body = |offset: u64| {
        let gpu = Gpu::new(0);
        let (stream, x, y) = (gpu.stream(), gpu.upload(&[1.0; 64]), gpu.allocate(64));
        gpu.launch(stream, "fake_test_copy_vectors", 1, 32, Params { x: x + offset, y, value: 0.0, count: 32 });
        assert_eq!(gpu.download(stream, y, 32), [1.0; 32]);
    };
    let name = "misaligned_vectors_are_caught";
    let output = in_child(name, &[], || body(4));
    assert_died(&output, "basics.cu");
    assert_died(&output, "is not aligned to the 16 bytes of this access");
    body(16);
}

#[test]
fn warp_functions_compute_what_a_gpu_computes() {
    let gpu = Gpu::new(0);
    let stream = gpu.stream();
    let y = gpu.allocate(9 * 64);
    // Other tests change nothing here: the result is the same in every order.
    for order in 0..4 {
        syncbn_fake_cuda::set_order(order);
        gpu.launch(stream, "fake_test_warp_functions", 1, 64, Params { y, ..NAN_FREE });
        let got = gpu.download(stream, y, 9 * 64);
        let half_sum = |i: usize| {
            let first = |i: usize| if i % 32 < 16 { i + (i ^ 1) } else { i };
            first(i) + first(i ^ 8)
        };
        for i in 0..64usize {
            let (warp, lane) = (i & !31, i & 31);
            let expected = [
                warp + 5,
                (i & !7) + 1,
                if lane + 3 < 32 { i + 3 } else { i },
                if i % 16 >= 3 { i - 3 } else { i },
                i ^ 7,
                (warp..warp + 32).filter(|j| j % 3 == 0).count(),
                usize::from(warp == 32),
                usize::from(warp == 0),
                half_sum(warp + 31 - lane),
            ];
            for (row, expected) in expected.into_iter().enumerate() {
                assert_eq!(got[row * 64 + i], expected as f32, "function {row}, thread {i}, order {order}");
            }
        }
    }
}

#[test]
fn half_types_round_as_ieee_says() {
    let gpu = Gpu::new(0);
    let stream = gpu.stream();
    // Every half and what lies around the middle to the next one, so every tie and both its sides.
    let halves = (0..=u16::MAX).map(f16::from_bits).filter(|half| half.is_finite());
    let mut x: Vec<f32> = halves.flat_map(|half| around_the_tie(half.to_f32(), 12)).collect();
    let bfloats = (0..=u16::MAX).step_by(7).map(bf16::from_bits).filter(|half| half.is_finite());
    x.extend(bfloats.flat_map(|half| around_the_tie(half.to_f32(), 15)));
    x.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65520.0, 65519.996, 2.980_232_2e-8, 2.980_232_6e-8]);
    let (count, pointer) = (x.len(), gpu.upload(&x));
    let y = gpu.allocate(2 * count);
    let params = Params { x: pointer, y, value: 0.0, count: count as u32 };
    gpu.launch(stream, "fake_test_half_types", count.div_ceil(256) as u32, 256, params);
    let got = gpu.download(stream, y, 2 * count);
    for (i, &x) in x.iter().enumerate() {
        for (got, expected) in [(got[i], f16::from_f32(x).to_f32()), (got[count + i], bf16::from_f32(x).to_f32())] {
            assert!(
                got.to_bits() == expected.to_bits() || got.is_nan() && x.is_nan(),
                "{x:e}: {got:e}, not {expected:e}"
            );
        }
    }
}

/// A value and those whose bits make a rounding tie, and its neighbours, with `bit` as the highest bit dropped.
fn around_the_tie(value: f32, bit: u32) -> [f32; 4] {
    let bits = value.to_bits();
    [bits, bits + (1 << bit) - 1, bits + (1 << bit), bits + (1 << bit) + 1].map(f32::from_bits)
}

/// The sum of 1000 ones by a kernel, in four orders of threads and blocks. Needs a process of its own: the order is
/// everybody's.
fn sums(kernel: &str) -> [f32; 4] {
    let gpu = Gpu::new(0);
    let stream = gpu.stream();
    let mut x = vec![1.0; 1002];
    x[0] = 0.0; // the counter of finished blocks
    let (x, y) = (gpu.upload(&x), gpu.allocate(9));
    [0, 1, 2, 3].map(|order| {
        syncbn_fake_cuda::set_order(order);
        gpu.launch(stream, kernel, 8, 128, Params { x, y, value: 0.0, count: 1000 });
        gpu.download(stream, y, 1)[0]
    })
}

#[test]
fn a_right_kernel_is_right_in_every_order() {
    let name = "a_right_kernel_is_right_in_every_order";
    assert_success(&in_child(name, &[], || assert_eq!(sums("fake_test_sum"), [1000.0; 4])));
}

#[test]
fn a_missing_barrier_is_wrong_in_some_order() {
    let output = in_child("a_missing_barrier_is_wrong_in_some_order", &[], || {
        let sums = sums("fake_test_sum_without_sync");
        assert!(sums.contains(&1000.0) && sums.iter().any(|sum| sum.is_nan()), "{sums:?}");
    });
    assert_success(&output);
}

#[test]
fn every_block_finds_nan_in_shared_memory() {
    let gpu = Gpu::new(0);
    let (stream, y) = (gpu.stream(), gpu.allocate(200));
    gpu.launch(stream, "fake_test_unwritten_shared", 100, 32, Params { y, ..NAN_FREE });
    let found = gpu.download(stream, y, 200);
    assert!(found.iter().all(|value| value.is_nan()), "{found:?}");
}

#[test]
fn orders_run_other_blocks_and_threads_first() {
    let name = "orders_run_other_blocks_and_threads_first";
    // One worker: with more, the block that is dealt first need not be the one that runs first.
    let output = in_child(name, &[("FAKE_CUDA_WORKERS", "1")], || {
        let gpu = Gpu::new(0);
        let stream = gpu.stream();
        let first = |order| {
            syncbn_fake_cuda::set_order(order);
            let (x, y) = (gpu.upload(&[0.0]), gpu.allocate(2));
            gpu.launch(stream, "fake_test_who_is_first", 100, 64, Params { x, y, ..NAN_FREE });
            gpu.download(stream, y, 2)
        };
        assert_eq!(first(0), [0.0, 0.0]);
        assert_eq!(first(1), [99.0, 63.0]);
        let shuffled: Vec<_> = (2..6).map(first).collect();
        assert!(shuffled.iter().any(|pair| *pair != shuffled[0]), "{shuffled:?}");
    });
    assert_success(&output);
}
