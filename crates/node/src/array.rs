//! JavaScript's typed arrays as host memory.
//!
//! Results are written to arrays whose memory is JavaScript's own: memory of ours behind an array would be given back by
//! a finalizer, and finalizers do not run in a loop that never returns to the event loop.

use crate::error::{Result, to_js};
use half::{bf16, f16};
use napi::Env;
use napi::bindgen_prelude::{
    BigInt64ArraySlice, Either, Either5, Float32ArraySlice, Float64ArraySlice, Int32ArraySlice, Uint16ArraySlice,
};
use syncbn_core::{Code, DType, Error};
use syncbn_cpu::{HostSlice, HostSliceMut};

/// Numbers of any type, borrowed for one call. Uint16Array holds the bits of half-precision numbers.
pub type Numbers<'a> = Either5<
    Float32ArraySlice<'a>,
    Float64ArraySlice<'a>,
    Int32ArraySlice<'a>,
    BigInt64ArraySlice<'a>,
    Uint16ArraySlice<'a>,
>;

/// Floats, borrowed for one call.
pub type Floats<'a> = Either<Float32ArraySlice<'a>, Float64ArraySlice<'a>>;

/// Reads numbers; `dtype` says which half type the bits of a Uint16Array are.
pub fn with_numbers<T>(numbers: &Numbers<'_>, dtype: DType, read: impl FnOnce(HostSlice<'_>) -> T) -> Result<T> {
    Ok(match (numbers, dtype) {
        (Either5::A(values), _) => read(HostSlice::F32(values)),
        (Either5::B(values), _) => read(HostSlice::F64(values)),
        (Either5::C(values), _) => read(HostSlice::I32(values)),
        (Either5::D(values), _) => read(HostSlice::I64(values)),
        (Either5::E(bits), DType::F16) => {
            read(HostSlice::F16(&bits.iter().map(|&bits| f16::from_bits(bits)).collect::<Vec<_>>()))
        }
        (Either5::E(bits), DType::BF16) => {
            read(HostSlice::BF16(&bits.iter().map(|&bits| bf16::from_bits(bits)).collect::<Vec<_>>()))
        }
        (Either5::E(_), other) => {
            let expected = "dtype float16 or bfloat16 for the raw bits of a Uint16Array";
            return Err(to_js(Error::expected(Code::DType, "tensor", expected, other)));
        }
    })
}

/// Copies memory to JavaScript; half types as float32, or as their bits if `raw`.
pub fn to_numbers<'env>(env: &Env, slice: HostSlice<'_>, raw: bool) -> Result<Numbers<'env>> {
    Ok(match slice {
        HostSlice::F32(values) => Either5::A(Float32ArraySlice::copy_from(env, values)?),
        HostSlice::F64(values) => Either5::B(Float64ArraySlice::copy_from(env, values)?),
        HostSlice::I32(values) => Either5::C(Int32ArraySlice::copy_from(env, values)?),
        HostSlice::I64(values) => Either5::D(BigInt64ArraySlice::copy_from(env, values)?),
        HostSlice::F16(values) if raw => bits(env, values.iter().map(|value| value.to_bits()))?,
        HostSlice::BF16(values) if raw => bits(env, values.iter().map(|value| value.to_bits()))?,
        HostSlice::F16(values) => widened(env, values.iter().map(|value| value.to_f32()))?,
        HostSlice::BF16(values) => widened(env, values.iter().map(|value| value.to_f32()))?,
    })
}

fn bits<'env>(env: &Env, values: impl Iterator<Item = u16>) -> Result<Numbers<'env>> {
    Ok(Either5::E(Uint16ArraySlice::copy_from(env, values.collect::<Vec<_>>())?))
}

fn widened<'env>(env: &Env, values: impl Iterator<Item = f32>) -> Result<Numbers<'env>> {
    Ok(Either5::A(Float32ArraySlice::copy_from(env, values.collect::<Vec<_>>())?))
}

/// Copies per-channel numbers to JavaScript.
pub fn to_float64<'env>(env: &Env, values: &[f64]) -> Result<Float64ArraySlice<'env>> {
    Float64ArraySlice::copy_from(env, values)
}

/// Copies per-channel numbers to JavaScript, in the type of the tensors they belong to.
pub fn to_floats<'env>(env: &Env, dtype: DType, values: &[f64]) -> Result<Floats<'env>> {
    if dtype == DType::F64 {
        return Ok(Either::B(to_float64(env, values)?));
    }
    let narrow: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    Ok(Either::A(Float32ArraySlice::copy_from(env, narrow)?))
}

/// Floats for reading.
pub fn floats<'a>(floats: &'a Floats<'_>) -> HostSlice<'a> {
    match floats {
        Either::A(values) => HostSlice::F32(values),
        Either::B(values) => HostSlice::F64(values),
    }
}

/// Floats for writing, where JavaScript asked for an update in place.
pub fn floats_mut<'a>(floats: &'a mut Floats<'_>) -> HostSliceMut<'a> {
    match floats {
        // SAFETY: the JavaScript thread is inside this call, so nothing else touches the array, and the callers pass
        // arrays they hold no other view of (`expect_apart` checks it).
        Either::A(values) => HostSliceMut::F32(unsafe { values.as_mut() }),
        // SAFETY: as above.
        Either::B(values) => HostSliceMut::F64(unsafe { values.as_mut() }),
    }
}

/// Fails if memory that is to be written overlaps another argument.
pub fn expect_apart(op: &str, written: &Floats<'_>, others: &[HostSlice<'_>]) -> Result<()> {
    let range = |slice: &HostSlice<'_>| match slice {
        HostSlice::F32(values) => values.as_ptr_range().start as usize..values.as_ptr_range().end as usize,
        HostSlice::F64(values) => values.as_ptr_range().start as usize..values.as_ptr_range().end as usize,
        _ => 0..0,
    };
    let mine = range(&floats(written));
    let overlaps = |other: &HostSlice<'_>| range(other).start < mine.end && mine.start < range(other).end;
    if others.iter().any(overlaps) {
        let expected = "arrays to write in memory of their own";
        return Err(to_js(Error::expected(Code::Argument, op, expected, "an array that overlaps another argument")));
    }
    Ok(())
}
