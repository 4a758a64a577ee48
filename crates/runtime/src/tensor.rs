//! Dense tensors: shared storage, a shape and a memory format.

use crate::device::{Device, keep_waiting, run};
use crate::layout::numel;
use crate::storage::Storage;
use std::sync::Arc;
use syncbn_core::ops::Restride;
use syncbn_core::{Code, DType, Error, MemoryFormat, Ops, Result};
use syncbn_cpu::buffer::{ReadGuard, WriteGuard};
use syncbn_cpu::{Cpu, HostSlice};
use syncbn_cuda::Foreign;

/// A dense tensor. Clones share storage.
#[derive(Clone, Debug)]
pub struct Tensor {
    storage: Arc<Storage>,
    shape: Vec<usize>,
    format: MemoryFormat,
}

impl Tensor {
    /// Unspecified contents, on `device`.
    pub fn empty(op: &str, device: &Device, shape: &[usize], dtype: DType, format: MemoryFormat) -> Result<Self> {
        format.check_rank(op, shape.len())?;
        numel(op, shape)?;
        let storage = Arc::new(Storage::new(device, dtype, shape)?);
        Ok(Self { storage, shape: shape.to_vec(), format })
    }

    /// Unspecified contents, on this tensor's device.
    pub fn new_empty(&self, op: &str, shape: &[usize], dtype: DType, format: MemoryFormat) -> Result<Self> {
        Self::empty(op, &self.device(), shape, dtype, format)
    }

    /// Unspecified contents, with this tensor's shape, type, format and device.
    pub fn empty_like(&self, op: &str) -> Result<Self> {
        self.new_empty(op, &self.shape, self.dtype(), self.format)
    }

    /// Every element is `value`.
    pub fn full(device: &Device, shape: &[usize], value: f64, dtype: DType, format: MemoryFormat) -> Result<Self> {
        let tensor = Self::empty("full", device, shape, dtype, format)?;
        run!("full"; read(); write(output = &tensor); device => device.fill(output, value))?;
        Ok(tensor)
    }

    /// Elements in the memory of another CUDA library, dense in `format`.
    ///
    /// # Errors
    /// [`Code::Shape`] if the memory was said to hold another number of elements.
    pub fn foreign(memory: Foreign, shape: &[usize], format: MemoryFormat) -> Result<Self> {
        const OP: &str = "fromPointer";
        format.check_rank(OP, shape.len())?;
        if numel(OP, shape)? != memory.len() {
            return Err(Error::expected(
                Code::Shape,
                OP,
                format!("{} values for shape {shape:?}", memory.len()),
                "more",
            ));
        }
        Ok(Self { storage: Arc::new(Storage::foreign(memory)), shape: shape.to_vec(), format })
    }

    /// Copies numbers of any type to the CPU, given in row-major order of `shape`, and converts them to `dtype`.
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
        let tensor = Self::empty(op, &Device::Cpu, shape, dtype, MemoryFormat::Contiguous)?;
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

    /// Where it is.
    pub fn device(&self) -> Device {
        self.storage.device()
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

    /// Opens the memory of a tensor on the CPU for reading.
    pub fn read(&self) -> Result<ReadGuard<'_>> {
        self.storage.read()
    }

    /// Opens the memory of a tensor on the CPU for writing.
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
        let output = self.new_empty("to", &self.shape, self.dtype(), format)?;
        let layout = Restride { shape: self.shape.clone(), input: self.strides(), output: output.strides() };
        if self.numel() > 0 {
            run!("to"; read(x = self); write(y = &output); device => device.restride(x, &layout, y))?;
        }
        Ok(output)
    }

    /// This tensor on `device`; shares storage if it is there already. From a GPU to the CPU waits for the GPU.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if *device == self.device() {
            return Ok(self.clone());
        }
        let output = Self::empty("to", device, &self.shape, self.dtype(), self.format)?;
        match (self.device(), device) {
            (Device::Cpu, Device::Cuda(cuda)) => {
                cuda.upload(self.read()?.bytes(), output.storage.cuda()?.write()?.slice())?;
            }
            (Device::Cuda(cuda), Device::Cpu) => {
                let source = self.storage.cuda()?.read()?;
                cuda.download(source.slice(), output.write()?.bytes(), &keep_waiting)?;
            }
            (Device::Cuda(from), Device::Cuda(to)) => {
                let source = self.storage.cuda()?.read()?;
                from.copy_to_device(source.slice(), to, output.storage.cuda()?.write()?.slice())?;
            }
            (Device::Cpu, Device::Cpu) => unreachable!("they are equal"),
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
        let output = self.new_empty("to", &self.shape, dtype, self.format)?;
        run!("to"; read(x = self); write(y = &output); device => device.copy(x, y))?;
        Ok(output)
    }

    /// A copy with storage of its own.
    pub fn duplicate(&self) -> Result<Self> {
        let output = self.empty_like("clone")?;
        run!("clone"; read(x = self); write(y = &output); device => device.copy(x, y))?;
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

    /// Replaces the contents by those of `source`, converted to this type, format and device.
    pub fn copy_from(&self, source: &Tensor) -> Result<()> {
        self.expect_shape("copy_", source.shape())?;
        if Arc::ptr_eq(&self.storage, &source.storage) && self.format == source.format {
            return Ok(());
        }
        let source = source.to_dtype(self.dtype())?.to_format(self.format)?;
        match (source.device(), self.device()) {
            // Straight into this storage: a copy in between would be one more pass over the memory.
            (Device::Cpu, Device::Cuda(cuda)) => {
                cuda.upload(source.read()?.bytes(), self.storage.cuda()?.write()?.slice())?;
            }
            (from, to) => {
                let source = if from == to { source } else { source.to_device(&to)? };
                run!("copy_"; read(x = &source); write(y = self); device => device.copy(x, y))?;
            }
        }
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

    /// Fails unless operations compute with this tensor's type: float32 and float64, on a GPU the half types too.
    pub fn expect_float(&self, op: &str) -> Result<()> {
        let half = matches!(self.storage.device(), Device::Cuda(_)) && self.dtype().is_float();
        if half || matches!(self.dtype(), DType::F32 | DType::F64) {
            return Ok(());
        }
        Err(Error::expected(Code::DType, op, "float32 or float64", self.dtype()))
    }
}
