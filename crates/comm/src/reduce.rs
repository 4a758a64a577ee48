//! How values of several ranks become one: element by element, in rank order, in the element's own type; float16 and
//! bfloat16 in float32, rounded once at the end.

use half::{bf16, f16};
use syncbn_core::collective::ReduceOp;
use syncbn_core::dtype::DType;
use syncbn_core::error::{Code, Error, Result};

/// Bytes combined at a time: the accumulator stays in the first-level cache.
const BLOCK_BYTES: usize = 8 << 10;

/// Whether elements of `dtype` in `bytes` bytes can be combined with `op`.
///
/// Sums and products of int32 and int64 wrap. The average of integers is refused.
pub(crate) fn check(bytes: usize, dtype: DType, op: ReduceOp) -> Result<()> {
    if op == ReduceOp::Avg && !dtype.is_float() {
        return Err(Error::expected(Code::DType, "all_reduce: dtype for 'avg'", "a floating-point type", dtype));
    }
    if !bytes.is_multiple_of(dtype.size()) {
        let expected = format!("a multiple of {} bytes for {dtype}", dtype.size());
        return Err(Error::expected(Code::Argument, "all_reduce", expected, format!("{bytes} bytes")));
    }
    Ok(())
}

/// Sets `target` to the combination of all ranks' values.
///
/// `target` holds the values of the rank at position `own`; `others` those of the other ranks, in rank order, one
/// after the other, each as long as `target`.
pub(crate) fn combine(target: &mut [u8], own: usize, others: &[u8], dtype: DType, op: ReduceOp) {
    match dtype {
        DType::F16 => combine_half::<f16>(target, own, others, op),
        DType::BF16 => combine_half::<bf16>(target, own, others, op),
        _ => combine_as_they_are(target, own, others, dtype, op),
    }
}

/// A number of two bytes.
trait Half {
    fn widen(bytes: [u8; 2]) -> f32;
    /// The nearest number.
    fn narrow(value: f32) -> [u8; 2];
}

impl Half for f16 {
    fn widen(bytes: [u8; 2]) -> f32 {
        f16::from_ne_bytes(bytes).to_f32()
    }

    fn narrow(value: f32) -> [u8; 2] {
        f16::from_f32(value).to_ne_bytes()
    }
}

impl Half for bf16 {
    fn widen(bytes: [u8; 2]) -> f32 {
        bf16::from_ne_bytes(bytes).to_f32()
    }

    fn narrow(value: f32) -> [u8; 2] {
        bf16::from_f32(value).to_ne_bytes()
    }
}

/// [`combine`] for elements of two bytes, by way of float32.
fn combine_half<H: Half>(target: &mut [u8], own: usize, others: &[u8], op: ReduceOp) {
    let wide = |bytes: &[u8]| -> Vec<u8> {
        bytes.as_chunks::<2>().0.iter().flat_map(|&element| H::widen(element).to_ne_bytes()).collect()
    };
    let length = target.len();
    for start in (0..length).step_by(BLOCK_BYTES) {
        let range = start..length.min(start + BLOCK_BYTES);
        let mut block = wide(&target[range.clone()]);
        let blocks: Vec<u8> = others.chunks_exact(length).flat_map(|other| wide(&other[range.clone()])).collect();
        combine_as_they_are(&mut block, own, &blocks, DType::F32, op);
        for (to, from) in target[range].chunks_exact_mut(2).zip(block.as_chunks::<4>().0) {
            to.copy_from_slice(&H::narrow(f32::from_ne_bytes(*from)));
        }
    }
}

fn combine_as_they_are(target: &mut [u8], own: usize, others: &[u8], dtype: DType, op: ReduceOp) {
    let (length, mut mine) = (target.len(), [0; BLOCK_BYTES]);
    if length == 0 {
        return;
    }
    let ranks = 1 + others.len() / length;
    for start in (0..length).step_by(BLOCK_BYTES) {
        let block = &mut target[start..length.min(start + BLOCK_BYTES)];
        let mine = &mut mine[..block.len()];
        mine.copy_from_slice(block);
        for rank in 0..ranks {
            let other = |index: usize| &others[index * length + start..][..block_len(length, start)];
            let values = match rank.cmp(&own) {
                std::cmp::Ordering::Less => other(rank),
                std::cmp::Ordering::Equal => &*mine,
                std::cmp::Ordering::Greater => other(rank - 1),
            };
            if rank == 0 { block.copy_from_slice(values) } else { fold(block, values, dtype, op) }
        }
        if op == ReduceOp::Avg {
            divide(block, ranks, dtype);
        }
    }
}

fn block_len(length: usize, start: usize) -> usize {
    (length - start).min(BLOCK_BYTES)
}

/// One loop over two byte slices seen as elements.
macro_rules! each {
    ($type:ty, $target:expr, $values:expr, $f:expr) => {{
        const SIZE: usize = size_of::<$type>();
        for (a, b) in $target.chunks_exact_mut(SIZE).zip($values.chunks_exact(SIZE)) {
            let x = <$type>::from_ne_bytes((&*a).try_into().expect("a chunk"));
            let y = <$type>::from_ne_bytes(b.try_into().expect("a chunk"));
            let f: fn($type, $type) -> $type = $f;
            a.copy_from_slice(&f(x, y).to_ne_bytes());
        }
    }};
}

macro_rules! float {
    ($type:ty, $target:expr, $values:expr, $op:expr) => {
        match $op {
            ReduceOp::Sum | ReduceOp::Avg => each!($type, $target, $values, |x, y| x + y),
            ReduceOp::Prod => each!($type, $target, $values, |x, y| x * y),
            // A NaN on either side stays: no comparison with it holds.
            ReduceOp::Min => each!($type, $target, $values, |x, y| if y.is_nan() || y < x { y } else { x }),
            ReduceOp::Max => each!($type, $target, $values, |x, y| if y.is_nan() || y > x { y } else { x }),
        }
    };
}

macro_rules! integer {
    ($type:ty, $target:expr, $values:expr, $op:expr) => {
        match $op {
            ReduceOp::Sum | ReduceOp::Avg => each!($type, $target, $values, <$type>::wrapping_add),
            ReduceOp::Prod => each!($type, $target, $values, <$type>::wrapping_mul),
            ReduceOp::Min => each!($type, $target, $values, |x, y| x.min(y)),
            ReduceOp::Max => each!($type, $target, $values, |x, y| x.max(y)),
        }
    };
}

fn fold(target: &mut [u8], values: &[u8], dtype: DType, op: ReduceOp) {
    match dtype {
        DType::F64 => float!(f64, target, values, op),
        DType::I32 => integer!(i32, target, values, op),
        DType::I64 => integer!(i64, target, values, op),
        // The half types have become float32.
        DType::F32 | DType::F16 | DType::BF16 => float!(f32, target, values, op),
    }
}

fn divide(target: &mut [u8], ranks: usize, dtype: DType) {
    if dtype == DType::F64 {
        let n = (ranks as f64).to_ne_bytes();
        target.chunks_exact_mut(8).for_each(|a| each!(f64, a, n, |x, y| x / y));
    } else {
        let n = (ranks as f32).to_ne_bytes();
        target.chunks_exact_mut(4).for_each(|a| each!(f32, a, n, |x, y| x / y));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|chunk| f32::from_ne_bytes(chunk.try_into().unwrap())).collect()
    }

    fn combined(parts: &[f32], own: usize, op: ReduceOp) -> f32 {
        let mut target = bytes(&parts[own..=own]);
        let others: Vec<_> = parts.iter().enumerate().filter(|&(i, _)| i != own).map(|(_, &x)| x).collect();
        combine(&mut target, own, &bytes(&others), DType::F32, op);
        floats(&target)[0]
    }

    #[test]
    fn the_order_is_that_of_the_ranks_whoever_combines() {
        // 1e8 + 1 - 1e8 in float32 depends on the order.
        let parts = [1e8, 1.0, -1e8, 0.5];
        let expected = parts.iter().copied().reduce(|a, b| a + b).unwrap();
        for own in 0..4 {
            assert_eq!(combined(&parts, own, ReduceOp::Sum).to_bits(), expected.to_bits());
            assert_eq!(combined(&parts, own, ReduceOp::Avg).to_bits(), (expected / 4.0).to_bits());
        }
    }

    #[test]
    fn nan_wins_minimum_and_maximum_from_every_rank() {
        for at in 0..3 {
            let mut parts = [1.0, 2.0, 3.0];
            parts[at] = f32::NAN;
            assert!(combined(&parts, 1, ReduceOp::Min).is_nan());
            assert!(combined(&parts, 1, ReduceOp::Max).is_nan());
        }
        assert_eq!(combined(&[3.0, -1.0, 2.0], 2, ReduceOp::Min), -1.0);
        assert_eq!(combined(&[3.0, -1.0, 2.0], 0, ReduceOp::Max), 3.0);
        assert_eq!(combined(&[3.0, -1.0, 2.0], 0, ReduceOp::Prod), -6.0);
    }

    #[test]
    fn blocks_join_without_a_seam() {
        let count = 3 * BLOCK_BYTES / 4 + 5;
        let own: Vec<_> = (0..count).map(|i| i as f32).collect();
        let mut target = bytes(&own);
        let other: Vec<_> = own.iter().map(|x| 2.0 * x).collect();
        combine(&mut target, 1, &bytes(&other), DType::F32, ReduceOp::Sum);
        assert!(floats(&target).iter().zip(&own).all(|(sum, x)| *sum == 3.0 * x));
    }

    #[test]
    fn integers_wrap_and_have_no_average() {
        let mut target = i32::MAX.to_ne_bytes();
        combine(&mut target, 0, &1_i32.to_ne_bytes(), DType::I32, ReduceOp::Sum);
        assert_eq!(i32::from_ne_bytes(target), i32::MIN);
        let mut target = 5_i64.to_ne_bytes();
        combine(&mut target, 0, &(-3_i64).to_ne_bytes(), DType::I64, ReduceOp::Max);
        assert_eq!(i64::from_ne_bytes(target), 5);
        assert_eq!(check(8, DType::I32, ReduceOp::Avg).unwrap_err().code(), Code::DType);
        assert_eq!(check(7, DType::BF16, ReduceOp::Sum).unwrap_err().code(), Code::Argument);
        assert_eq!(check(6, DType::F32, ReduceOp::Sum).unwrap_err().code(), Code::Argument);
    }

    #[test]
    fn half_types_are_summed_in_float32_and_rounded_once() {
        // In bfloat16, with eight bits, 256 + 1 is 256 again, however often; in float32 it is not.
        let parts = [256.0, 1.0, 1.0, 1.0, 1.0].map(bf16::from_f32);
        for own in 0..parts.len() {
            let others: Vec<u8> =
                parts.iter().enumerate().filter(|&(i, _)| i != own).flat_map(|(_, x)| x.to_ne_bytes()).collect();
            let mut target = parts[own].to_ne_bytes();
            combine(&mut target, own, &others, DType::BF16, ReduceOp::Sum);
            assert_eq!(bf16::from_ne_bytes(target), bf16::from_f32(260.0));
        }
        let count = BLOCK_BYTES + 3;
        let mut target: Vec<u8> = (0..count).flat_map(|i| f16::from_f32((i % 100) as f32).to_ne_bytes()).collect();
        let other: Vec<u8> = (0..count).flat_map(|_| f16::from_f32(0.5).to_ne_bytes()).collect();
        combine(&mut target, 1, &other, DType::F16, ReduceOp::Avg);
        let sums = target.as_chunks::<2>().0.iter().map(|&bytes| f16::from_ne_bytes(bytes).to_f32());
        assert!(sums.enumerate().all(|(i, sum)| sum == ((i % 100) as f32 + 0.5) / 2.0));
    }
}
