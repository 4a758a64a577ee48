//! Typed views of host memory: what the kernels read and write.

use half::{bf16, f16};
use syncbn_core::{Code, DType, Error, Result};

macro_rules! slices {
    ($($variant:ident($element:ty),)*) => {
        /// Host memory an operation reads.
        #[derive(Clone, Copy, Debug)]
        pub enum HostSlice<'a> { $(#[doc = stringify!($element)] $variant(&'a [$element]),)* }

        /// Host memory an operation writes.
        #[derive(Debug)]
        pub enum HostSliceMut<'a> { $(#[doc = stringify!($element)] $variant(&'a mut [$element]),)* }

        impl HostSlice<'_> {
            /// The element type.
            pub fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant,)* }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(slice) => slice.len(),)* }
            }

            /// Whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }

        impl HostSliceMut<'_> {
            /// The element type.
            pub fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant,)* }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(slice) => slice.len(),)* }
            }

            /// Whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// A shorter borrow of the same memory.
            pub fn reborrow(&mut self) -> HostSliceMut<'_> {
                match self { $(Self::$variant(slice) => HostSliceMut::$variant(slice),)* }
            }

            /// The same memory, for reading.
            pub fn as_slice(&self) -> HostSlice<'_> {
                match self { $(Self::$variant(slice) => HostSlice::$variant(slice),)* }
            }
        }

        $(impl Element for $element {
            const DTYPE: DType = DType::$variant;

            fn slice<'a>(op: &str, slice: HostSlice<'a>) -> Result<&'a [Self]> {
                match slice {
                    HostSlice::$variant(slice) => Ok(slice),
                    other => Err(Error::expected(Code::DType, op, Self::DTYPE, other.dtype())),
                }
            }

            fn slice_mut<'a>(op: &str, slice: HostSliceMut<'a>) -> Result<&'a mut [Self]> {
                match slice {
                    HostSliceMut::$variant(slice) => Ok(slice),
                    other => Err(Error::expected(Code::DType, op, Self::DTYPE, other.dtype())),
                }
            }
        })*
    };
}

/// A type of elements that host memory can hold.
pub trait Element: Copy + Send + Sync + 'static {
    /// The element type's name.
    const DTYPE: DType;

    /// The elements of `slice`, or [`Code::DType`] if it holds others.
    fn slice<'a>(op: &str, slice: HostSlice<'a>) -> Result<&'a [Self]>;

    /// The elements of `slice`, or [`Code::DType`] if it holds others.
    fn slice_mut<'a>(op: &str, slice: HostSliceMut<'a>) -> Result<&'a mut [Self]>;
}

slices! {
    F32(f32),
    F64(f64),
    F16(f16),
    BF16(bf16),
    I32(i32),
    I64(i64),
}
