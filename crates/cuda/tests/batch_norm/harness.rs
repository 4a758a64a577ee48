//! Tensors on the device, random data and calls of the kernels.

use std::sync::{Mutex, MutexGuard, PoisonError};
use syncbn_core::kernels::{Backward, Elemt, Forward, Kernels, Normalize, RunningStats};
use syncbn_core::message::{read_slot, slot_bytes};
use syncbn_core::{BatchNormShape, DType, Result};
use syncbn_cuda::{Cuda, CudaBuffer, CudaSlice, CudaSliceMut};

/// The element types under test.
pub const DTYPES: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];
/// Orders of threads and blocks: up, down, shuffled.
pub const ORDERS: [u32; 3] = [0, 1, 5];

/// The device, for one test at a time: they count what it does and change the order of its threads.
pub struct Gpu {
    pub cuda: Cuda,
    _guard: MutexGuard<'static, ()>,
}

impl Gpu {
    pub fn new() -> Self {
        static ONE_TEST: Mutex<()> = Mutex::new(());
        let guard = ONE_TEST.lock().unwrap_or_else(PoisonError::into_inner);
        syncbn_fake_cuda::install();
        syncbn_fake_cuda::set_order(0);
        syncbn_cuda::set_poison_freed(true);
        Self { cuda: Cuda::new(0).unwrap(), _guard: guard }
    }

    pub fn synchronize(&self) -> Result<()> {
        self.cuda.synchronize(&|| Ok(()))
    }

    /// Calls `enqueue`, which launches so many kernels and does not wait for any.
    pub fn launches(&self, kernels: u64, enqueue: impl FnOnce() -> Result<()>) {
        let before = self.cuda.counts();
        enqueue().unwrap();
        let after = self.cuda.counts();
        assert_eq!((after.launches - before.launches, after.host_waits), (kernels, before.host_waits));
    }

    /// Memory of `bytes`, all 0xFF: NaN in every floating-point type.
    pub fn buffer(&self, bytes: usize) -> CudaBuffer {
        self.upload(&vec![0xFF; bytes])
    }

    pub fn upload(&self, bytes: &[u8]) -> CudaBuffer {
        let buffer = self.cuda.buffer(bytes.len()).unwrap();
        assert_eq!(buffer.bytes(), bytes.len(), "whole words");
        self.cuda.upload(bytes, buffer.slice_mut(DType::F16)).unwrap();
        buffer
    }

    pub fn download(&self, buffer: &CudaBuffer) -> Vec<u8> {
        buffer.to_host(&|| Ok(())).unwrap()
    }
}

/// The nearest value of `dtype`, as its bytes.
pub fn encode(dtype: DType, value: f64) -> Vec<u8> {
    match dtype {
        DType::F16 => half::f16::from_f64(value).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f64(value).to_le_bytes().to_vec(),
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::F64 => value.to_le_bytes().to_vec(),
        DType::I32 => (value as i32).to_le_bytes().to_vec(),
        DType::I64 => (value as i64).to_le_bytes().to_vec(),
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> f64 {
    match dtype {
        DType::F16 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::BF16 => half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
        DType::F64 => f64::from_le_bytes(bytes.try_into().unwrap()),
        DType::I32 => i32::from_le_bytes(bytes.try_into().unwrap()).into(),
        DType::I64 => i64::from_le_bytes(bytes.try_into().unwrap()) as f64,
    }
}

/// The nearest value of `dtype`.
pub fn round(dtype: DType, value: f64) -> f64 {
    decode(dtype, &encode(dtype, value))
}

/// Half the distance of two values of `dtype`, relative to them.
pub fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 0.5f64.powi(11),
        DType::BF16 => 0.5f64.powi(8),
        DType::F32 => 0.5f64.powi(24),
        _ => 0.5f64.powi(53),
    }
}

/// Elements on the device, `offset` elements behind an aligned address, between bytes that must not change.
pub struct Tensor {
    buffer: CudaBuffer,
    dtype: DType,
    len: usize,
    offset: usize,
}

/// Bytes behind a tensor that must not change.
const FENCE: usize = 16;

impl Tensor {
    pub fn new(gpu: &Gpu, dtype: DType, values: &[f64], offset: usize) -> Self {
        let mut bytes = vec![0xFF; offset * dtype.size()];
        values.iter().for_each(|&value| bytes.extend(encode(dtype, value)));
        bytes.resize((bytes.len() + FENCE).next_multiple_of(4), 0xFF);
        Self { buffer: gpu.upload(&bytes), dtype, len: values.len(), offset }
    }

    /// Elements nobody has written yet: NaN.
    pub fn unwritten(gpu: &Gpu, dtype: DType, len: usize, offset: usize) -> Self {
        let bytes = ((offset + len) * dtype.size() + FENCE).next_multiple_of(4);
        Self { buffer: gpu.buffer(bytes), dtype, len, offset }
    }

    fn address(&self) -> u64 {
        self.buffer.pointer() + (self.offset * self.dtype.size()) as u64
    }

    pub fn view(&self) -> CudaSlice<'_> {
        // SAFETY: the buffer has `offset + len` elements and more.
        unsafe { CudaSlice::new(self.address(), self.len, self.dtype) }
    }

    pub fn view_mut(&mut self) -> CudaSliceMut<'_> {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { CudaSliceMut::new(self.address(), self.len, self.dtype) }
    }

    pub fn read(&self, gpu: &Gpu) -> Vec<f64> {
        let bytes = gpu.download(&self.buffer);
        let size = self.dtype.size();
        let (before, rest) = bytes.split_at(self.offset * size);
        let (values, after) = rest.split_at(self.len * size);
        assert!(before.iter().chain(after).all(|&byte| byte == 0xFF), "written beside the tensor");
        values.chunks_exact(size).map(|bytes| decode(self.dtype, bytes)).collect()
    }
}

pub fn shape(batch: usize, channels: usize, spatial: usize, channels_last: bool) -> BatchNormShape {
    BatchNormShape { batch, channels, spatial, channels_last: channels_last || spatial == 1 }
}

/// Uniform in −1..1, the same for the same seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Values of `dtype`.
    pub fn values(&mut self, dtype: DType, len: usize) -> Vec<f64> {
        (0..len).map(|_| round(dtype, self.next())).collect()
    }
}

/// One rank's batch and parameters; the numbers are values of their types.
#[derive(Clone, Debug)]
pub struct Case {
    pub shape: BatchNormShape,
    pub dtype: DType,
    /// Type of weight, bias and their gradients.
    pub row_dtype: DType,
    /// Type of the running statistics.
    pub running_dtype: DType,
    pub x: Vec<f64>,
    pub dy: Vec<f64>,
    pub weight: Option<Vec<f64>>,
    pub bias: Option<Vec<f64>>,
    pub eps: f64,
    /// Elements the tensors lie behind an aligned address.
    pub offset: usize,
}

/// What forward leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub y: Vec<f64>,
    pub count: u64,
    pub mean: Vec<f64>,
    pub invstd: Vec<f64>,
    /// The slot itself, for backward.
    pub slot: Vec<u8>,
}

/// Running statistics on the device.
pub struct Running {
    pub mean: Tensor,
    pub var: Tensor,
    pub tracked: Option<Tensor>,
}

impl Running {
    pub fn new(gpu: &Gpu, dtype: DType, channels: usize, tracked: i64) -> Self {
        Self {
            mean: Tensor::new(gpu, dtype, &vec![0.0; channels], 0),
            var: Tensor::new(gpu, dtype, &vec![1.0; channels], 0),
            tracked: Some(Tensor::new(gpu, DType::I64, &[tracked as f64], 0)),
        }
    }

    pub fn views(&mut self, momentum: Option<f64>) -> RunningStats<'_, Cuda> {
        RunningStats {
            mean: self.mean.view_mut(),
            var: self.var.view_mut(),
            momentum,
            num_batches_tracked: self.tracked.as_mut().map(Tensor::view_mut),
        }
    }

    /// (mean, var, batches).
    pub fn read(&self, gpu: &Gpu) -> (Vec<f64>, Vec<f64>, f64) {
        let tracked = self.tracked.as_ref().map_or(f64::NAN, |tracked| tracked.read(gpu)[0]);
        (self.mean.read(gpu), self.var.read(gpu), tracked)
    }
}

impl Case {
    /// Random tensors; every third seed without weight and bias, every second misaligned, rows of both types.
    pub fn random(seed: usize, shape: BatchNormShape, dtype: DType) -> Self {
        let mut random = Random(seed as u64);
        let row_dtype = if seed.is_multiple_of(2) { dtype } else { DType::F32 };
        let affine = !seed.is_multiple_of(3);
        let mut row = || affine.then(|| random.values(row_dtype, shape.channels));
        let (weight, bias) = (row(), row());
        let [x, dy] = [0; 2].map(|_| random.values(dtype, shape.numel()));
        let running_dtype = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        Self { shape, dtype, row_dtype, running_dtype, x, dy, weight, bias, eps: 1e-5, offset: seed % 2 }
    }

    pub fn slot_bytes(&self) -> usize {
        slot_bytes(self.shape.channels, DType::F64)
    }

    pub fn tensor(&self, gpu: &Gpu, values: &[f64]) -> Tensor {
        Tensor::new(gpu, self.dtype, values, self.offset)
    }

    pub fn row(&self, gpu: &Gpu, values: Option<&Vec<f64>>) -> Option<Tensor> {
        values.map(|values| Tensor::new(gpu, self.row_dtype, values, 0))
    }

    fn output(&self, gpu: &Gpu, y: &Tensor, slot: Vec<u8>) -> Output {
        let (count, mean, invstd) = read_slot(&slot);
        Output { y: y.read(gpu), count, mean, invstd, slot }
    }

    /// Forward without an exchange.
    pub fn forward(&self, gpu: &Gpu, running: Option<(&mut Running, Option<f64>)>) -> Output {
        let x = self.tensor(gpu, &self.x);
        let (weight, bias) = (self.row(gpu, self.weight.as_ref()), self.row(gpu, self.bias.as_ref()));
        let mut y = Tensor::unwritten(gpu, self.dtype, self.x.len(), self.offset);
        let mut slot = gpu.buffer(self.slot_bytes());
        gpu.launches(2, || {
            gpu.cuda.forward(Forward {
                input: x.view(),
                shape: self.shape,
                weight: weight.as_ref().map(Tensor::view),
                bias: bias.as_ref().map(Tensor::view),
                eps: self.eps,
                running: running.map(|(running, momentum)| running.views(momentum)),
                output: y.view_mut(),
                statistics: &mut slot,
            })
        });
        self.output(gpu, &y, gpu.download(&slot))
    }

    /// This rank's statistics into `slot` of `messages`.
    pub fn stats(&self, gpu: &Gpu, messages: &mut CudaBuffer, slot: usize) {
        gpu.cuda.stats(self.tensor(gpu, &self.x).view(), self.shape, messages, slot).unwrap();
    }

    /// Normalisation with the messages of all ranks.
    pub fn normalize(&self, gpu: &Gpu, messages: &CudaBuffer, running: Option<(&mut Running, Option<f64>)>) -> Output {
        let x = self.tensor(gpu, &self.x);
        let (weight, bias) = (self.row(gpu, self.weight.as_ref()), self.row(gpu, self.bias.as_ref()));
        let mut y = Tensor::unwritten(gpu, self.dtype, self.x.len(), self.offset);
        let mut slot = gpu.buffer(self.slot_bytes());
        gpu.cuda
            .normalize(Normalize {
                input: x.view(),
                shape: self.shape,
                weight: weight.as_ref().map(Tensor::view),
                bias: bias.as_ref().map(Tensor::view),
                eps: self.eps,
                messages,
                world_size: messages.bytes() / self.slot_bytes(),
                running: running.map(|(running, momentum)| running.views(momentum)),
                output: y.view_mut(),
                statistics: &mut slot,
            })
            .unwrap();
        self.output(gpu, &y, gpu.download(&slot))
    }

    /// Normalisation with the statistics of `slot`.
    pub fn elemt(&self, gpu: &Gpu, slot: &[u8]) -> Vec<f64> {
        let (x, slot) = (self.tensor(gpu, &self.x), gpu.upload(slot));
        let (weight, bias) = (self.row(gpu, self.weight.as_ref()), self.row(gpu, self.bias.as_ref()));
        let mut y = Tensor::unwritten(gpu, self.dtype, self.x.len(), self.offset);
        gpu.cuda
            .elemt(Elemt {
                input: x.view(),
                shape: self.shape,
                weight: weight.as_ref().map(Tensor::view),
                bias: bias.as_ref().map(Tensor::view),
                statistics: &slot,
                output: y.view_mut(),
            })
            .unwrap();
        y.read(gpu)
    }

    /// dx, grad_weight and grad_bias, without an exchange.
    pub fn backward(&self, gpu: &Gpu, slot: &[u8], batch_statistics: bool) -> [Vec<f64>; 3] {
        let (x, dy, slot) = (self.tensor(gpu, &self.x), self.tensor(gpu, &self.dy), gpu.upload(slot));
        let weight = self.row(gpu, self.weight.as_ref());
        let mut dx = Tensor::unwritten(gpu, self.dtype, self.x.len(), self.offset);
        let mut rows = [0; 2].map(|_| Tensor::unwritten(gpu, self.row_dtype, self.shape.channels, 0));
        let [grad_weight, grad_bias] = rows.each_mut().map(Tensor::view_mut);
        gpu.launches(if self.x.is_empty() { 1 } else { 2 }, || {
            gpu.cuda.backward(Backward {
                input: x.view(),
                grad_output: dy.view(),
                shape: self.shape,
                weight: weight.as_ref().map(Tensor::view),
                statistics: &slot,
                batch_statistics,
                grad_input: Some(dx.view_mut()),
                grad_weight: Some(grad_weight),
                grad_bias: Some(grad_bias),
            })
        });
        [dx.read(gpu), rows[0].read(gpu), rows[1].read(gpu)]
    }
}
