//! Dense tensors: shared storage, a shape and a memory format.

use crate::layout::numel;
use crate::storage::Storage;
use std::sync::Arc;
use syncbn_core::ops::Restride;
use syncbn_core::{Code, DType, Error, MemoryFormat, Ops, Result};
use syncbn_cpu::buffer::{ReadGuard, WriteGuard};
use syncbn_cpu::{Cpu, HostSlice};

/// A dense tensor. Clones share storage.
#[derive(Clone, Debug)]
pub struct Tensor {
    storage: Arc<Storage>,
    shape: Vec<usize>,
    format: MemoryFormat,
}

impl Tensor {
    /// Unspecified contents.
    pub fn empty(op: &str, shape: &[usize], dtype: DType, format: MemoryFormat) -> Result<Self> {
        format.check_rank(op, shape.len())?;
        let storage = Arc::new(Storage::new(dtype, numel(op, shape)?)?);
        Ok(Self { storage, shape: shape.to_vec(), format })
    }

    /// Unspecified contents, with this tensor's shape, type and format.
    pub fn empty_like(&self, op: &str) -> Result<Self> {
        Self::empty(op, &self.shape, self.dtype(), self.format)
    }

    /// Every element is `value`.
    pub fn full(shape: &[usize], value: f64, dtype: DType, format: MemoryFormat) -> Result<Self> {
        let tensor = Self::empty("full", shape, dtype, format)?;
        Cpu.fill(tensor.write()?.slice(), value)?;
        Ok(tensor)
    }

    /// Copies numbers of any type, given in row-major order of `shape`, and converts them to `dtype`.
    ///
    /// # Errors
    /// [`Code::Shape`] if their number differs from the shape's.
    pub fn from_slice(
        op: &str,
        data: HostSlice<'_>,
        shape: &[usize],
        dtype: DType,
        format: MemoryFormat,
    ) -> Result<Self> {
        format.check_rank(op, shape.len())?;
        if numel(op, shape)? != data.len() {
            let expected = format!("{} values for shape {shape:?}", numel(op, shape)?);
            return Err(Error::expected(Code::Shape, op, expected, data.len()));
        }
        let tensor = Self::empty(op, shape, dtype, MemoryFormat::Contiguous)?;
        Cpu.copy(data, tensor.write()?.slice())?;
        tensor.to_format(format)
    }

    /// 0, 1, … below `end`.
    pub fn arange(end: usize, dtype: DType) -> Result<Self> {
        let values: Vec<i64> = (0..end as i64).collect();
        Self::from_slice("arange", HostSlice::I64(&values), &[end], dtype, MemoryFormat::Contiguous)
    }

    /// Sizes in the order (N, C, …).
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// Order in memory.
    pub fn format(&self) -> MemoryFormat {
        self.format
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements between neighbours along each dimension.
    pub fn strides(&self) -> Vec<usize> {
        self.format.strides(&self.shape)
    }

    /// The memory.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Opens the memory for reading.
    pub fn read(&self) -> Result<ReadGuard<'_>> {
        self.storage.read()
    }

    /// Opens the memory for writing.
    pub fn write(&self) -> Result<WriteGuard<'_>> {
        self.storage.write()
    }

    /// Whether row-major order of the shape is the order in memory.
    pub fn is_contiguous(&self) -> bool {
        if self.format == MemoryFormat::Contiguous {
            return true;
        }
        let contiguous = MemoryFormat::Contiguous.strides(&self.shape);
        self.strides().iter().zip(&contiguous).zip(&self.shape).all(|((a, b), &size)| a == b || size == 1)
    }

    /// This tensor in another format; shares storage if nothing changes.
    pub fn to_format(&self, format: MemoryFormat) -> Result<Self> {
        format.check_rank("memoryFormat", self.shape.len())?;
        if format == self.format {
            return Ok(self.clone());
        }
        let output = Self::empty("to", &self.shape, self.dtype(), format)?;
        let layout = Restride { shape: self.shape.clone(), input: self.strides(), output: output.strides() };
        if self.numel() > 0 {
            Cpu.restride(self.read()?.slice(), &layout, output.write()?.slice())?;
        }
        Ok(output)
    }

    /// This tensor in row-major order; shares storage if it is so already.
    pub fn contiguous(&self) -> Result<Self> {
        if self.is_contiguous() {
            return Ok(Self { format: MemoryFormat::Contiguous, ..self.clone() });
        }
        self.to_format(MemoryFormat::Contiguous)
    }

    /// This tensor with another element type; shares storage if nothing changes.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        let output = Self::empty("to", &self.shape, dtype, self.format)?;
        Cpu.copy(self.read()?.slice(), output.write()?.slice())?;
        Ok(output)
    }

    /// A copy with storage of its own.
    pub fn duplicate(&self) -> Result<Self> {
        let output = self.empty_like("clone")?;
        Cpu.copy(self.read()?.slice(), output.write()?.slice())?;
        Ok(output)
    }

    /// The same elements in row-major order under another shape; shares storage where the order allows it.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if numel("reshape", shape)? != self.numel() {
            let expected = format!("a shape of {} elements", self.numel());
            return Err(Error::expected(Code::Shape, "reshape", expected, format!("{shape:?}")));
        }
        if shape == self.shape {
            return Ok(self.clone());
        }
        Ok(Self { shape: shape.to_vec(), ..self.contiguous()? })
    }

    /// Replaces the contents by those of `source`, converted to this type and format.
    pub fn copy_from(&self, source: &Tensor) -> Result<()> {
        self.expect_shape("copy_", source.shape())?;
        if Arc::ptr_eq(&self.storage, &source.storage) && self.format == source.format {
            return Ok(());
        }
        let source = source.to_dtype(self.dtype())?.to_format(self.format)?;
        Cpu.copy(source.read()?.slice(), self.write()?.slice())?;
        self.storage.bump_version();
        Ok(())
    }

    /// Fails unless this tensor has `shape`.
    pub fn expect_shape(&self, op: &str, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        Err(Error::expected(Code::Shape, op, format!("shape {shape:?}"), format!("shape {:?}", self.shape)))
    }

    /// Fails unless this tensor has `rank` dimensions.
    pub fn expect_rank(&self, op: &str, what: &str, rank: usize) -> Result<()> {
        if self.shape.len() == rank {
            return Ok(());
        }
        Err(Error::expected(Code::Shape, op, format!("{rank}-D {what}"), format!("shape {:?}", self.shape)))
    }

    /// Fails unless this tensor holds `dtype`.
    pub fn expect_dtype(&self, op: &str, what: &str, dtype: DType) -> Result<()> {
        if self.dtype() == dtype {
            return Ok(());
        }
        Err(Error::expected(Code::DType, op, format!("{what} of {dtype}"), self.dtype()))
    }

    /// Fails unless this tensor holds float32 or float64.
    pub fn expect_float(&self, op: &str) -> Result<()> {
        if matches!(self.dtype(), DType::F32 | DType::F64) {
            return Ok(());
        }
        Err(Error::expected(Code::DType, op, "float32 or float64", self.dtype()))
    }
}
