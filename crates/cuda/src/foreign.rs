//! Device memory and streams of other CUDA libraries.

use crate::allocator::ForeignOwner;
use crate::device::Cuda;
use crate::error::describe;
use crate::slice::{CudaSlice, CudaSliceMut};
use crate::stream::Stream;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::Arc;
use syncbn_core::{Code, DType, Error, Result};

const OP: &str = "fromPointer";

/// Elements in memory of another library, which `owner` keeps alive.
///
/// The owner is let go of when the device does not use the memory any more: work that is enqueued when this is dropped
/// is waited for, and so are the graphs that have recorded uses of it.
pub struct Foreign {
    device: Cuda,
    pointer: u64,
    dtype: DType,
    len: usize,
    owner: ForeignOwner,
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
    pub fn new(device: &Cuda, pointer: u64, dtype: DType, len: usize, owner: ForeignOwner) -> Result<Self> {
        use sys::CUpointer_attribute as Attribute;
        if !pointer.is_multiple_of(dtype.size() as u64) {
            let expected = format!("an address that is a multiple of {} for {dtype}", dtype.size());
            return Err(Error::expected(Code::Argument, OP, expected, format!("{pointer:#x}")));
        }
        let bytes = len.checked_mul(dtype.size()).and_then(|bytes| u64::try_from(bytes).ok());
        let Some(bytes) = bytes.filter(|bytes| pointer.checked_add(*bytes).is_some()) else {
            return Err(Error::expected(Code::Argument, OP, "a range of addresses", format!("{len} × {dtype}")));
        };
        let foreign = Self { device: device.clone(), pointer, dtype, len, owner };
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
        // A driver that does not tell, as for memory mapped piece by piece, is no reason to refuse.
        let start = attribute::<u64>(pointer, Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR);
        let size = attribute::<usize>(pointer, Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE);
        if let (Ok(start), Ok(size)) = (start, size)
            && pointer + bytes > start + size as u64
        {
            let left = start + size as u64 - pointer;
            let got = format!("{left} bytes from {pointer:#x} to the end of its allocation");
            return Err(Error::expected(Code::Argument, OP, format!("at least {bytes} bytes"), got));
        }
        Ok(foreign)
    }

    /// The device the memory is on.
    pub fn device(&self) -> &Cuda {
        &self.device
    }

    /// Device address. Whoever asks is about to enqueue work with it.
    pub fn pointer(&self) -> u64 {
        self.device.note_foreign_use(&self.owner);
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
        unsafe { CudaSlice::new(self.pointer(), self.len, self.dtype) }
    }

    /// The elements, to be written.
    pub fn slice_mut(&self) -> CudaSliceMut<'_> {
        // SAFETY: as above; writes are ordered by the stream.
        unsafe { CudaSliceMut::new(self.pointer(), self.len, self.dtype) }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // An event in a recording says nothing of what runs before it. So the graph holds the owner, used or not.
        if self.device.is_capturing() {
            return self.device.note_foreign_use(&self.owner);
        }
        // Where no event can be recorded, the device has failed, or the process is ending.
        if let Ok(event) = self.device.record(self.device.stream()) {
            self.device.park(event, Box::new(Arc::clone(&self.owner)));
        }
    }
}

impl Cuda {
    /// Later work of this device waits for what is enqueued on another library's stream so far.
    ///
    /// `handle` is a CUstream of this device, or 0, 1, 2 for CUDA's default streams.
    ///
    /// # Errors
    /// [`Code::Capture`] inside a capture, which that stream is no part of.
    pub fn wait_for_stream(&self, handle: u64) -> Result<()> {
        self.refuse_in_capture("a wait for another library's stream")?;
        // SAFETY: what this function's caller promises; the stream is used before this returns and not kept.
        let stream = unsafe { Stream::foreign(handle) };
        self.order(&stream, self.stream())
    }
}
