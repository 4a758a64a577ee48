//! Tensors of more than 2³¹ elements: on a GPU, where there is memory for them. On the fakes the same tests go over small
//! tensors, which shows that they are right.

use syncbn_core::kernels::{Elemt, Kernels};
use syncbn_core::message::read_slot;
use syncbn_core::ops::BinaryOp;
use syncbn_core::{BatchNormShape, DType, Ops};
use syncbn_cuda::{Cuda, CudaBuffer};

const F16: DType = DType::F16;
/// Elements at the end of a tensor that differ from the others.
const TAIL: usize = 1001;

/// Elements of a channel: two of them are more than 2³¹.
#[expect(clippy::print_stderr, reason = "a reduced test says so")]
fn per_channel() -> usize {
    if std::env::var("REQUIRE_GPU").is_ok_and(|value| value == "1") {
        return (1 << 30) + 3;
    }
    eprintln!("REDUCED: tensors beyond 2^31 elements need a GPU");
    (1 << 14) + 3
}

fn gpu() -> Cuda {
    syncbn_fake_cuda::install();
    Cuda::new(0).unwrap()
}

/// All ones, but for a tail of threes.
fn ones_and_threes(cuda: &Cuda, len: usize) -> CudaBuffer {
    let buffer = cuda.tensor_buffer(F16, &[len]).unwrap();
    cuda.fill(buffer.slice_mut(F16), 1.0).unwrap();
    cuda.fill(buffer.slice_mut(F16).part(len - TAIL..len), 3.0).unwrap();
    buffer
}

/// Elements `range` as numbers.
fn read(cuda: &Cuda, buffer: &CudaBuffer, range: std::ops::Range<usize>) -> Vec<f32> {
    let mut bytes = vec![0; 2 * range.len()];
    cuda.download(buffer.slice(F16).part(range), &mut bytes, &|| Ok(())).unwrap();
    bytes.as_chunks::<2>().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32()).collect()
}

#[track_caller]
fn expect(cuda: &Cuda, buffer: &CudaBuffer, len: usize, body: f32, tail: f32) {
    let (first, before) = (read(cuda, buffer, 0..TAIL), read(cuda, buffer, len - 2 * TAIL..len - TAIL));
    assert!(first.iter().chain(&before).all(|value| *value == body), "{:?} {:?}", first[0], before[0]);
    let last = read(cuda, buffer, len - TAIL..len);
    assert!(last.iter().all(|value| *value == tail), "{:?}", last[0]);
}

#[test]
fn elementwise_operations_reach_the_end() {
    let (cuda, len) = (gpu(), 2 * per_channel());
    let x = ones_and_threes(&cuda, len);
    let y = cuda.tensor_buffer(F16, &[len]).unwrap();
    cuda.relu(x.slice(F16), y.slice_mut(F16)).unwrap();
    expect(&cuda, &y, len, 1.0, 3.0);
    cuda.binary_scalar(BinaryOp::Add, x.slice(F16), 1.0, y.slice_mut(F16)).unwrap();
    expect(&cuda, &y, len, 2.0, 4.0);
}

/// In the contiguous format the tail is the second channel's, in channels last both channels'.
fn batch_norm(channels_last: bool) {
    let (cuda, spatial) = (gpu(), per_channel());
    let (shape, len) = (BatchNormShape { batch: 1, channels: 2, spatial, channels_last }, 2 * spatial);
    let (x, y) = (ones_and_threes(&cuda, len), cuda.tensor_buffer(F16, &[len]).unwrap());
    let slot = syncbn_core::message::slot_bytes(2, cuda.statistics_dtype(F16));
    let mut message = cuda.buffer(slot).unwrap();
    cuda.stats(x.slice(F16), shape, &mut message, 0).unwrap();
    let (count, mean, m2) = read_slot(&message.to_host(&|| Ok(())).unwrap());
    assert_eq!(count, spatial as u64);
    let threes = if channels_last { [TAIL / 2, TAIL.div_ceil(2)] } else { [0, TAIL] };
    for channel in 0..2 {
        let share = threes[channel] as f64 / spatial as f64;
        let (expected_mean, expected_m2) = (1.0 + 2.0 * share, 4.0 * share * (1.0 - share) * spatial as f64);
        assert!((mean[channel] - expected_mean).abs() <= 1e-6 * share, "{mean:?}, expected {expected_mean}");
        assert!((m2[channel] - expected_m2).abs() <= 1e-4 * expected_m2, "{m2:?}, expected {expected_m2}");
    }
    // y = (x − 0)·2 with statistics that are given.
    let kept: Vec<u8> = [count.to_le_bytes(), 0f64.to_le_bytes(), 0f64.to_le_bytes()]
        .into_iter()
        .chain([2f64.to_le_bytes(); 2])
        .flatten()
        .collect();
    let statistics = cuda.buffer(slot).unwrap();
    cuda.upload(&kept, statistics.slice_mut(DType::F64)).unwrap();
    cuda.elemt(Elemt {
        input: x.slice(F16),
        shape,
        weight: None,
        bias: None,
        statistics: &statistics,
        output: y.slice_mut(F16),
    })
    .unwrap();
    expect(&cuda, &y, len, 2.0, 6.0);
}

#[test]
fn batch_norm_reaches_the_end_of_contiguous_tensors() {
    batch_norm(false);
}

#[test]
fn batch_norm_reaches_the_end_of_channels_last_tensors() {
    batch_norm(true);
}
