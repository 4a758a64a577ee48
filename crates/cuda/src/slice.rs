//! Views of device memory, as the kernels take them: an address, a number of elements and their type.

use std::marker::PhantomData;
use std::ops::Range;
use syncbn_core::DType;

/// Elements on the device that an operation reads.
#[derive(Clone, Copy, Debug)]
pub struct CudaSlice<'a> {
    pointer: u64,
    len: usize,
    dtype: DType,
    owner: PhantomData<&'a ()>,
}

impl<'a> CudaSlice<'a> {
    /// `len` elements of `dtype` at `pointer`.
    ///
    /// # Safety
    /// The memory is on the device the view is used with, holds that many elements, and stays allocated in stream order
    /// for every use of the view.
    pub unsafe fn new(pointer: u64, len: usize, dtype: DType) -> Self {
        Self { pointer, len, dtype, owner: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn part(self, range: Range<usize>) -> CudaSlice<'a> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        let pointer = self.pointer + (range.start * self.dtype.size()) as u64;
        Self { pointer, len: range.len(), ..self }
    }

    /// Device address.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }
}

/// Elements on the device that an operation writes, or reads and writes.
#[derive(Debug)]
pub struct CudaSliceMut<'a> {
    slice: CudaSlice<'a>,
}

impl<'a> CudaSliceMut<'a> {
    /// `len` elements of `dtype` at `pointer`.
    ///
    /// # Safety
    /// As [`CudaSlice::new`], and nothing else uses the memory meanwhile except in stream order.
    pub unsafe fn new(pointer: u64, len: usize, dtype: DType) -> Self {
        // SAFETY: what this function's caller promises.
        Self { slice: unsafe { CudaSlice::new(pointer, len, dtype) } }
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn part(self, range: Range<usize>) -> CudaSliceMut<'a> {
        Self { slice: self.slice.part(range) }
    }

    /// The same elements, to be read.
    pub fn as_slice(&self) -> CudaSlice<'_> {
        self.slice
    }

    /// Device address.
    pub fn pointer(&self) -> u64 {
        self.slice.pointer
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.slice.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.slice.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.slice.dtype
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.slice.bytes()
    }
}
