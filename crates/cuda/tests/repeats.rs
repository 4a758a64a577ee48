//! Statistics of one input have the same bits every time, however the blocks of a run happen to end.
//!
//! `SYNCBN_TEST_REPEATS` sets how often each input is reduced: a GPU shows a rare race only if it is asked often.

#[cfg(target_os = "linux")]
mod sanitizers;

use std::sync::Mutex;
use syncbn_core::message::slot_bytes;
use syncbn_core::{BatchNormShape, DType, Kernels};
use syncbn_cuda::{Cuda, CudaBuffer};

/// Results that are kept before they are compared, at most.
const SLOTS: usize = 500;
/// What is reduced without the variable.
const FEW: usize = 60;

static ONE_TEST: Mutex<()> = Mutex::new(());

fn repeats() -> usize {
    let text = std::env::var("SYNCBN_TEST_REPEATS").ok();
    text.map_or(FEW, |text| text.parse().expect("SYNCBN_TEST_REPEATS is a number"))
}

/// Numbers of widely different sizes, so that another order of additions is seen in the last bits.
fn input(cuda: &Cuda, numel: usize, dtype: DType) -> CudaBuffer {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let unit = f32::from((state >> 16) as u16) / 65_536.0 - 0.5;
        unit * [1.0, 30.0, 0.01, 1.0][(state >> 14) as usize % 4]
    };
    let bytes: Vec<u8> = match dtype {
        DType::F16 => (0..numel).flat_map(|_| half::f16::from_f32(next()).to_le_bytes()).collect(),
        DType::F64 => (0..numel).flat_map(|_| f64::from(next()).to_le_bytes()).collect(),
        _ => (0..numel).flat_map(|_| next().to_le_bytes()).collect(),
    };
    let buffer = cuda.tensor_buffer(dtype, &[numel]).unwrap();
    cuda.upload(&bytes, buffer.slice_mut(dtype)).unwrap();
    buffer
}

fn check(shape: BatchNormShape, dtype: DType) {
    let _one = ONE_TEST.lock();
    syncbn_fake_cuda::install();
    syncbn_cuda::set_keep_freed(std::env::var_os("SYNCBN_TEST_NO_CACHE").is_none());
    let cuda = Cuda::new(0).unwrap();
    let x = input(&cuda, shape.numel(), dtype);
    let slot = slot_bytes(shape.channels, cuda.statistics_dtype(dtype));
    let mut first: Option<Vec<u8>> = None;
    let repeats = repeats();
    // Several rounds, so that fakes go through several orders.
    let round = SLOTS.min(repeats.div_ceil(4));
    let mut messages = cuda.buffer(round * slot).unwrap();
    for start in (0..repeats).step_by(round) {
        syncbn_fake_cuda::set_order((start / round) as u32);
        let runs = round.min(repeats - start);
        (0..runs).for_each(|run| cuda.stats(x.slice(dtype), shape, &mut messages, run).unwrap());
        let bytes = messages.to_host(&|| Ok(())).unwrap();
        for (run, got) in bytes.chunks_exact(slot).take(runs).enumerate() {
            let first = first.get_or_insert_with(|| got.to_vec());
            assert!(got == first, "{shape:?} {dtype}: run {} of {repeats} differs from the first", start + run);
        }
    }
    let sent = first.expect("at least one run");
    let values = (shape.batch * shape.spatial) as u64;
    assert_eq!(sent[..8], values.to_le_bytes(), "the count that was sent");
    assert!(sent[8..].iter().any(|byte| *byte != 0), "statistics were sent");
}

/// Several blocks share a channel.
fn planes() -> BatchNormShape {
    BatchNormShape { batch: 4, channels: 3, spatial: 20_000, channels_last: false }
}

/// Several blocks share a group of channels.
fn rows() -> BatchNormShape {
    BatchNormShape { batch: 3_000, channels: 33, spatial: 1, channels_last: true }
}

/// So many blocks share a group of channels that they meet in two steps.
fn many_rows() -> BatchNormShape {
    BatchNormShape { batch: 20_000, channels: 32, spatial: 1, channels_last: true }
}

#[test]
fn float32() {
    check(planes(), DType::F32);
    check(rows(), DType::F32);
    check(many_rows(), DType::F32);
}

#[test]
fn float16() {
    check(planes(), DType::F16);
    check(rows(), DType::F16);
    check(many_rows(), DType::F16);
}

#[test]
fn float64() {
    check(planes(), DType::F64);
    check(rows(), DType::F64);
    check(many_rows(), DType::F64);
}

#[cfg(target_os = "linux")]
#[test]
fn under_sanitizers() {
    sanitizers::run_again(syncbn_fake_cuda::Variant::Asan, &[]);
    sanitizers::run_again(syncbn_fake_cuda::Variant::Tsan, &["float32"]);
}
