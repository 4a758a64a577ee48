//! JavaScript's typed arrays as host memory.

use crate::error::{Result, to_js};
use half::{bf16, f16};
use napi::bindgen_prelude::{
    BigInt64Array, BigInt64ArraySlice, Either, Either5, Float32Array, Float32ArraySlice, Float64Array,
    Float64ArraySlice, Int32Array, Int32ArraySlice, Uint16Array, Uint16ArraySlice,
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

/// New numbers of any type.
pub type NewNumbers = Either5<Float32Array, Float64Array, Int32Array, BigInt64Array, Uint16Array>;

/// Floats, borrowed for one call.
pub type Floats<'a> = Either<Float32ArraySlice<'a>, Float64ArraySlice<'a>>;

/// New floats.
pub type NewFloats = Either<Float32Array, Float64Array>;

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
pub fn to_numbers(slice: HostSlice<'_>, raw: bool) -> NewNumbers {
    match slice {
        HostSlice::F32(values) => Either5::A(Float32Array::new(values.to_vec())),
        HostSlice::F64(values) => Either5::B(Float64Array::new(values.to_vec())),
        HostSlice::I32(values) => Either5::C(Int32Array::new(values.to_vec())),
        HostSlice::I64(values) => Either5::D(BigInt64Array::new(values.to_vec())),
        HostSlice::F16(values) if raw => Either5::E(Uint16Array::new(values.iter().map(|x| x.to_bits()).collect())),
        HostSlice::BF16(values) if raw => Either5::E(Uint16Array::new(values.iter().map(|x| x.to_bits()).collect())),
        HostSlice::F16(values) => Either5::A(Float32Array::new(values.iter().map(|x| x.to_f32()).collect())),
        HostSlice::BF16(values) => Either5::A(Float32Array::new(values.iter().map(|x| x.to_f32()).collect())),
    }
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
        let expected = "running statistics in memory of their own";
        return Err(to_js(Error::expected(Code::Argument, op, expected, "an array that overlaps another argument")));
    }
    Ok(())
}

/// New floats of `dtype`, and a view to write them.
pub enum FloatOutput {
    /// float32.
    F32(Vec<f32>),
    /// float64.
    F64(Vec<f64>),
}

impl FloatOutput {
    /// Zeros.
    pub fn new(dtype: DType, len: usize) -> Self {
        if dtype == DType::F64 { Self::F64(vec![0.0; len]) } else { Self::F32(vec![0.0; len]) }
    }

    /// The memory.
    pub fn slice(&mut self) -> HostSliceMut<'_> {
        match self {
            Self::F32(values) => HostSliceMut::F32(values),
            Self::F64(values) => HostSliceMut::F64(values),
        }
    }

    /// As JavaScript gets it.
    pub fn finish(self) -> NewFloats {
        match self {
            Self::F32(values) => Either::A(Float32Array::new(values)),
            Self::F64(values) => Either::B(Float64Array::new(values)),
        }
    }
}
