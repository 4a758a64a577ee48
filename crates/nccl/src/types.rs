//! What collectives work on: element types, operators, buffers and streams.

use crate::sys;
use std::ffi::c_void;

/// The type of the elements of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DataType {
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 64 bits.
    U64,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// The upper half of single precision.
    Bf16,
}

impl DataType {
    /// The bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// NCCL's number: `ncclInt8`, …
    pub const fn code(self) -> sys::ncclDataType_t {
        match self {
            Self::I8 => 0,
            Self::U8 => 1,
            Self::I32 => 2,
            Self::U32 => 3,
            Self::I64 => 4,
            Self::U64 => 5,
            Self::F16 => 6,
            Self::F32 => 7,
            Self::F64 => 8,
            Self::Bf16 => 9,
        }
    }
}

/// How the values of the ranks are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The product.
    Prod,
    /// The greatest.
    Max,
    /// The least.
    Min,
    /// The sum divided by the number of ranks; for integers, rounded as NCCL does.
    Avg,
}

impl ReduceOp {
    /// NCCL's number: `ncclSum`, …
    pub const fn code(self) -> sys::ncclRedOp_t {
        match self {
            Self::Sum => 0,
            Self::Prod => 1,
            Self::Max => 2,
            Self::Min => 3,
            Self::Avg => 4,
        }
    }
}

/// A CUDA stream, from whichever library made it: a `cudaStream_t` or a `CUstream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(sys::cudaStream_t);

// SAFETY: the handle is a name that CUDA takes on any thread; nothing here reads what it points to.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// The stream with this handle; null is CUDA's default stream.
    pub const fn from_raw(handle: *mut c_void) -> Self {
        Self(handle)
    }

    /// The handle.
    pub const fn as_raw(self) -> *mut c_void {
        self.0
    }
}

/// Where a collective reads and writes: addresses in device memory. `CUdeviceptr` numbers are such addresses.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// What this rank gives: `count` elements.
    pub send: *const c_void,
    /// Where the result goes. The call says of what size.
    pub receive: *mut c_void,
    /// The number of elements this rank gives, and not of bytes. The same on every rank.
    pub count: usize,
    /// The type of the elements. The same on every rank.
    pub data_type: DataType,
}

impl Buffers {
    /// From `send` to `receive`.
    pub const fn new(send: *const c_void, receive: *mut c_void, count: usize, data_type: DataType) -> Self {
        Self { send, receive, count, data_type }
    }

    /// The result over the operand; not for `all_gather`.
    pub const fn in_place(buffer: *mut c_void, count: usize, data_type: DataType) -> Self {
        Self::new(buffer, buffer, count, data_type)
    }
}
