//! Conversions to bfloat16, which the kernels make without the compiler's help.

use crate::harness::*;
use syncbn_core::DType;
use syncbn_core::ops::Ops;

/// The bits kernels make of float32 `bits`.
fn converted(gpu: &Gpu, bits: &[u32]) -> Vec<u16> {
    let input = gpu.upload(&bits.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<u8>>());
    let output = gpu.buffer((2 * bits.len()).next_multiple_of(4));
    gpu.cuda.copy(input.slice(DType::F32), output.slice_mut(DType::BF16)).unwrap();
    gpu.download(&output).chunks_exact(2).map(|bytes| u16::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// To nearest, ties to even, from the distances to both neighbours; every NaN becomes the canonical one.
fn nearest(bits: u32) -> u16 {
    if f32::from_bits(bits).is_nan() {
        return 0x7FFF;
    }
    let (below, rest) = ((bits >> 16) as u16, bits & 0xFFFF);
    match rest.cmp(&0x8000) {
        std::cmp::Ordering::Less => below,
        std::cmp::Ordering::Equal => below + (below & 1),
        std::cmp::Ordering::Greater => below + 1,
    }
}

#[test]
fn bfloat16_is_the_nearest_for_every_kind_of_value() {
    let gpu = Gpu::new();
    // Every sign, exponent and leading digit, and around it the middle between two neighbours: NaN, infinities, zeros
    // and subnormals are among them, and what rounds up to the next exponent or to infinity.
    let rests = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
    let mut all: Vec<u32> = (0..=0xFFFFu32).flat_map(|top| rests.map(|rest| top << 16 | rest)).collect();
    let mut random = Random(3);
    all.extend((0..100_000).map(|_| (random.next() * f64::from(1u32 << 31)) as i64 as u32));
    let got = converted(&gpu, &all);
    for (&bits, got) in all.iter().zip(got) {
        assert_eq!(got, nearest(bits), "{bits:#010x}");
        let value = f32::from_bits(bits);
        if !value.is_nan() {
            assert_eq!(got, half::bf16::from_f32(value).to_bits(), "{bits:#010x}");
        }
    }
}
