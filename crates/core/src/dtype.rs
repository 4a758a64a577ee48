//! Element types.

use crate::error::{Code, Error, Result};
use std::fmt;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Two's complement, 32 bits.
    I32,
    /// Two's complement, 64 bits.
    I64,
}

impl DType {
    /// Every element type, in the order of the wire format's codes.
    pub const ALL: [DType; 6] = [DType::F32, DType::F64, DType::F16, DType::BF16, DType::I32, DType::I64];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F64 | DType::I64 => 8,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// PyTorch's name, the one used in TypeScript.
    pub const fn as_str(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::F64 => "float64",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            DType::I32 => "int32",
            DType::I64 => "int64",
        }
    }

    /// The type whose [`as_str`](Self::as_str) is `name`.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.as_str() == name).ok_or_else(|| {
            Error::expected(
                Code::DType,
                "dtype",
                "float32, float64, float16, bfloat16, int32 or int64",
                format!("'{name}'"),
            )
        })
    }

    /// Whether values of this type have a fraction.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I32 | DType::I64)
    }

    /// The type sums over values of this type are made in: float64 for float64, else float32.
    pub const fn accumulate(self) -> Self {
        match self {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
