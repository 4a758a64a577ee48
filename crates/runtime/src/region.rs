//! A run of elements inside a tensor: a gradient in its bucket, a row of a batch.

use crate::device::Device;
use crate::tensor::Tensor;
use std::ops::Range;
use syncbn_core::{Code, Error, Ops, Result};

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

    fn expect(&self, other: &Tensor) -> Result<()> {
        if other.numel() == self.elements.len() && other.dtype() == self.tensor.dtype() {
            return Ok(());
        }
        let expected = format!("{} values of {}", self.elements.len(), self.tensor.dtype());
        Err(Error::expected(Code::Shape, "copy", expected, format!("{} of {}", other.numel(), other.dtype())))
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

    /// Replaces the elements by those of `source`, in the order of its memory.
    pub(crate) fn copy_from(&self, source: &Tensor) -> Result<()> {
        self.expect(source)?;
        crate::device::expect_one_device("copy", &[self.tensor, source])?;
        match self.tensor.device() {
            Device::Cpu => self.tensor.write()?.bytes()[self.bytes()].copy_from_slice(source.read()?.bytes()),
            Device::Cuda(cuda) => {
                let (from, mut to) = (source.storage().cuda()?.read()?, self.tensor.storage().cuda()?.write()?);
                cuda.copy_bytes(from.slice(), to.slice().part(self.elements.clone()))?;
            }
        }
        Ok(())
    }

    /// Replaces the elements of `target`, in the order of its memory, by these.
    pub(crate) fn copy_to(&self, target: &Tensor) -> Result<()> {
        self.expect(target)?;
        crate::device::expect_one_device("copy", &[self.tensor, target])?;
        match self.tensor.device() {
            Device::Cpu => target.write()?.bytes().copy_from_slice(&self.tensor.read()?.bytes()[self.bytes()]),
            Device::Cuda(cuda) => {
                let (from, mut to) = (self.tensor.storage().cuda()?.read()?, target.storage().cuda()?.write()?);
                cuda.copy_bytes(from.slice().part(self.elements.clone()), to.slice())?;
            }
        }
        Ok(())
    }
}
