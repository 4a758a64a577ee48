//! A run of elements inside a tensor: a gradient in its bucket, a row of a batch.

use crate::device::Device;
use crate::tensor::Tensor;
use std::ops::Range;
use syncbn_core::{Code, Error, Ops, Result};
use syncbn_cuda::{Cuda, CudaSlice, CudaSliceMut};

/// Elements of a contiguous tensor, by their positions in memory.
pub(crate) struct Region<'a> {
    tensor: &'a Tensor,
    elements: Range<usize>,
}

impl<'a> Region<'a> {
    /// The elements `elements` of `tensor`.
    pub(crate) fn new(tensor: &'a Tensor, elements: Range<usize>) -> Self {
        Self { tensor, elements }
    }

    fn bytes(&self) -> Range<usize> {
        let size = self.tensor.dtype().size();
        self.elements.start * size..self.elements.end * size
    }

    /// Fails unless `other` has as many elements, on the same device; on the CPU, of the same type too.
    fn expect(&self, other: &Tensor) -> Result<()> {
        crate::device::expect_one_device("copy", &[self.tensor, other])?;
        let (dtype, others) = (self.tensor.dtype(), other.dtype());
        let converts =
            dtype == others || (dtype.is_float() && others.is_float() && self.tensor.device() != Device::Cpu);
        if other.numel() == self.elements.len() && converts {
            return Ok(());
        }
        let expected = format!("{} values of {dtype}", self.elements.len());
        Err(Error::expected(Code::Shape, "copy", expected, format!("{} of {others}", other.numel())))
    }

    /// Sets the elements to 0.
    pub(crate) fn zero(&self) -> Result<()> {
        match self.tensor.device() {
            Device::Cpu => self.tensor.write()?.bytes()[self.bytes()].fill(0),
            Device::Cuda(cuda) => {
                let mut guard = self.tensor.storage().cuda()?.write()?;
                cuda.fill(guard.slice().part(self.elements.clone()), 0.0)?;
            }
        }
        Ok(())
    }

    /// Replaces the elements by those of `source`, in the order of its memory; on a GPU converted to this type.
    pub(crate) fn copy_from(&self, source: &Tensor) -> Result<()> {
        self.expect(source)?;
        match self.tensor.device() {
            Device::Cpu => self.tensor.write()?.bytes()[self.bytes()].copy_from_slice(source.read()?.bytes()),
            Device::Cuda(cuda) => {
                let (from, mut to) = (source.storage().cuda()?.read()?, self.tensor.storage().cuda()?.write()?);
                convert(&cuda, from.slice(), to.slice().part(self.elements.clone()))?;
            }
        }
        Ok(())
    }

    /// Replaces the elements of `target`, in the order of its memory, by these; on a GPU converted to its type.
    pub(crate) fn copy_to(&self, target: &Tensor) -> Result<()> {
        self.expect(target)?;
        match self.tensor.device() {
            Device::Cpu => target.write()?.bytes().copy_from_slice(&self.tensor.read()?.bytes()[self.bytes()]),
            Device::Cuda(cuda) => {
                let (from, mut to) = (self.tensor.storage().cuda()?.read()?, target.storage().cuda()?.write()?);
                convert(&cuda, from.slice().part(self.elements.clone()), to.slice())?;
            }
        }
        Ok(())
    }
}

/// A copy by the driver where the type stays, which is no kernel and needs no alignment; else by our kernel.
fn convert(cuda: &Cuda, from: CudaSlice<'_>, to: CudaSliceMut<'_>) -> Result<()> {
    if from.dtype() == to.dtype() { cuda.copy_bytes(from, to) } else { cuda.copy(from, to) }
}
