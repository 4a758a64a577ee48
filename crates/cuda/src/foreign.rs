//! Device memory and streams of other CUDA libraries.

use crate::device::Cuda;
use crate::error::describe;
use crate::slice::{CudaSlice, CudaSliceMut};
use crate::stream::Stream;
use cudarc::driver::sys;
use std::any::Any;
use std::ffi::c_void;
use syncbn_core::{Code, DType, Error, Result};

const OP: &str = "fromPointer";

/// Elements in memory of another library, which `owner` keeps alive.
pub struct Foreign {
    device: Cuda,
    pointer: u64,
    dtype: DType,
    len: usize,
    /// Dropped with this, and only for that.
    _owner: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Foreign({} × {} on {})", self.len, self.dtype, self.device)
    }
}

/// One attribute of an address; `None` where the driver knows nothing of it.
fn attribute<T: Default>(pointer: u64, which: sys::CUpointer_attribute) -> Result<T, String> {
    let mut value = T::default();
    // SAFETY: callers ask for attributes whose type is T, and the value is alive.
    let result = unsafe { sys::cuPointerGetAttribute(std::ptr::from_mut(&mut value).cast::<c_void>(), which, pointer) };
    result.result().map(|()| value).map_err(describe)
}

impl Foreign {
    /// `len` elements of `dtype` at `pointer`, allocated on `device` by another library.
    ///
    /// # Errors
    /// [`Code::Device`] if the driver does not know the address or knows it on another device; [`Code::Argument`] if it
    /// is not aligned for the type.
    pub fn new(
        device: &Cuda,
        pointer: u64,
        dtype: DType,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        use sys::CUpointer_attribute as Attribute;
        if !pointer.is_multiple_of(dtype.size() as u64) {
            let expected = format!("an address that is a multiple of {} for {dtype}", dtype.size());
            return Err(Error::expected(Code::Argument, OP, expected, format!("{pointer:#x}")));
        }
        let foreign = Self { device: device.clone(), pointer, dtype, len, _owner: owner };
        if len == 0 {
            return Ok(foreign);
        }
        device.bind()?;
        let wrong = |got: String| Error::expected(Code::Device, OP, format!("memory of {device}"), got);
        let ordinal: i32 = attribute(pointer, Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
            .map_err(|why| wrong(format!("{pointer:#x}, which the driver does not know ({why})")))?;
        let kind: u32 = attribute(pointer, Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE).map_err(wrong)?;
        if kind != sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as u32 {
            return Err(wrong(format!("{pointer:#x}, which is host memory")));
        }
        if usize::try_from(ordinal) != Ok(device.ordinal()) {
            return Err(wrong(format!("{pointer:#x} on cuda:{ordinal}")));
        }
        Ok(foreign)
    }

    /// The device the memory is on.
    pub fn device(&self) -> &Cuda {
        &self.device
    }

    /// Device address.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, to be read.
    pub fn slice(&self) -> CudaSlice<'_> {
        // SAFETY: the driver knows the address on this device; that it holds as many elements is what the caller of
        // `new` said, and the owner keeps it alive.
        unsafe { CudaSlice::new(self.pointer, self.len, self.dtype) }
    }

    /// The elements, to be written.
    pub fn slice_mut(&self) -> CudaSliceMut<'_> {
        // SAFETY: as above; writes are ordered by the stream.
        unsafe { CudaSliceMut::new(self.pointer, self.len, self.dtype) }
    }
}

impl Cuda {
    /// Later work of this device waits for what is enqueued on another library's stream so far.
    ///
    /// `handle` is a CUstream of this device, or 0, 1, 2 for CUDA's default streams.
    pub fn wait_for_stream(&self, handle: u64) -> Result<()> {
        // SAFETY: what this function's caller promises; the stream is used before this returns and not kept.
        let stream = unsafe { Stream::foreign(handle) };
        self.order(&stream, self.stream())
    }
}
