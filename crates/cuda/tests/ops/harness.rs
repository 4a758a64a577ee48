//! The same call on the host and on the device, and what it gave on each.

use half::{bf16, f16};
use std::path::Path;
use std::sync::Once;
use syncbn_core::generator::Generator;
use syncbn_core::{DType, Device, Result};
use syncbn_cpu::{Cpu, HostSlice, HostSliceMut};
use syncbn_cuda::cublas::LIBRARY_NAMES;
use syncbn_cuda::{Cuda, CudaBuffer};

/// Orders of threads and blocks to try: up, down, shuffled.
pub const ORDERS: [u32; 3] = [0, 1, 5];

/// Where products are computed: by the library, or by our kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    Cublas,
    Own,
}

/// The fake device of this index.
fn open(ordinal: usize) -> Cuda {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: nothing but the fakes reads the environment other than through Rust's own lock, and they are loaded
        // after this.
        unsafe { std::env::set_var("FAKE_CUDA_DEVICES", "3") };
        syncbn_fake_cuda::install();
        syncbn_cuda::set_poison_freed(true);
    });
    Cuda::new(ordinal).unwrap()
}

/// A device whose matrix products are our own kernels'.
pub fn cuda() -> Cuda {
    let cuda = open(0);
    assert!(!cuda.use_cublas(&[]), "a device without cuBLAS");
    cuda
}

/// A device whose matrix products are made as asked.
pub fn cuda_with(products: Products) -> Cuda {
    if products == Products::Own {
        return cuda();
    }
    let cuda = open(1);
    assert!(cuda.use_cublas(&LIBRARY_NAMES.map(Path::new)), "a device with cuBLAS");
    cuda
}

/// A device no other test uses.
pub fn other() -> Cuda {
    open(2)
}

/// Elements on the host.
#[derive(Clone, Debug)]
pub enum Elements {
    F32(Vec<f32>),
    F64(Vec<f64>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

macro_rules! each {
    ($elements:expr, $values:ident => $body:expr) => {
        match $elements {
            Elements::F32($values) => $body,
            Elements::F64($values) => $body,
            Elements::F16($values) => $body,
            Elements::BF16($values) => $body,
            Elements::I32($values) => $body,
            Elements::I64($values) => $body,
        }
    };
}

impl Elements {
    pub fn new(dtype: DType, values: &[f64]) -> Self {
        match dtype {
            DType::F32 => Self::F32(values.iter().map(|&value| value as f32).collect()),
            DType::F64 => Self::F64(values.to_vec()),
            DType::F16 => Self::F16(values.iter().map(|&value| f16::from_f64(value)).collect()),
            DType::BF16 => Self::BF16(values.iter().map(|&value| bf16::from_f64(value)).collect()),
            DType::I32 => Self::I32(values.iter().map(|&value| value as i32).collect()),
            DType::I64 => Self::I64(values.iter().map(|&value| value as i64).collect()),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        each!(self, values => values.iter().flat_map(|value| value.to_ne_bytes()).collect())
    }

    fn from_bytes(dtype: DType, bytes: &[u8]) -> Self {
        macro_rules! read {
            ($variant:ident, $type:ty) => {
                Self::$variant(
                    bytes
                        .chunks_exact(size_of::<$type>())
                        .map(|bytes| <$type>::from_ne_bytes(bytes.try_into().unwrap()))
                        .collect(),
                )
            };
        }
        match dtype {
            DType::F32 => read!(F32, f32),
            DType::F64 => read!(F64, f64),
            DType::F16 => read!(F16, f16),
            DType::BF16 => read!(BF16, bf16),
            DType::I32 => read!(I32, i32),
            DType::I64 => read!(I64, i64),
        }
    }

    fn wide(&self) -> Vec<f64> {
        match self {
            Self::F32(values) => values.iter().map(|&value| f64::from(value)).collect(),
            Self::F64(values) => values.clone(),
            Self::F16(values) => values.iter().map(|value| value.to_f64()).collect(),
            Self::BF16(values) => values.iter().map(|value| value.to_f64()).collect(),
            Self::I32(values) => values.iter().map(|&value| f64::from(value)).collect(),
            Self::I64(values) => values.iter().map(|&value| value as f64).collect(),
        }
    }

    fn view(&self) -> HostSlice<'_> {
        match self {
            Self::F32(values) => HostSlice::F32(values),
            Self::F64(values) => HostSlice::F64(values),
            Self::F16(values) => HostSlice::F16(values),
            Self::BF16(values) => HostSlice::BF16(values),
            Self::I32(values) => HostSlice::I32(values),
            Self::I64(values) => HostSlice::I64(values),
        }
    }

    fn view_mut(&mut self) -> HostSliceMut<'_> {
        match self {
            Self::F32(values) => HostSliceMut::F32(values),
            Self::F64(values) => HostSliceMut::F64(values),
            Self::F16(values) => HostSliceMut::F16(values),
            Self::BF16(values) => HostSliceMut::BF16(values),
            Self::I32(values) => HostSliceMut::I32(values),
            Self::I64(values) => HostSliceMut::I64(values),
        }
    }
}

/// A tensor's elements on the host and on a device.
pub struct Values {
    dtype: DType,
    initial: Elements,
    host: Elements,
    cuda: Cuda,
    device: CudaBuffer,
    /// What earlier runs left on the device.
    runs: Vec<Vec<u8>>,
    written: bool,
}

impl Values {
    pub fn on(cuda: &Cuda, dtype: DType, values: &[f64]) -> Self {
        let initial = Elements::new(dtype, values);
        let device = cuda.tensor_buffer(dtype, &[values.len()]).unwrap();
        cuda.upload(&initial.bytes(), device.slice_mut(dtype)).unwrap();
        Self { dtype, host: initial.clone(), initial, cuda: cuda.clone(), device, runs: vec![], written: false }
    }

    pub fn of(dtype: DType, values: &[f64]) -> Self {
        Self::on(&cuda(), dtype, values)
    }

    /// Standard normals, the same for the same seed; integers are below 100.
    pub fn random(dtype: DType, seed: u64, len: usize) -> Self {
        Self::random_on(&cuda(), dtype, seed, len)
    }

    pub fn random_on(cuda: &Cuda, dtype: DType, seed: u64, len: usize) -> Self {
        let factor = if dtype.is_float() { 1.0 } else { 30.0 };
        let values: Vec<f64> = Generator::new(seed).randn_f64(len).into_iter().map(|value| value * factor).collect();
        Self::on(cuda, dtype, &values)
    }

    /// For an operation to write: NaN, or -77.
    pub fn unwritten(dtype: DType, len: usize) -> Self {
        Self::unwritten_on(&cuda(), dtype, len)
    }

    pub fn unwritten_on(cuda: &Cuda, dtype: DType, len: usize) -> Self {
        Self::on(cuda, dtype, &vec![if dtype.is_float() { f64::NAN } else { -77.0 }; len])
    }

    fn device_bytes(&self) -> Vec<u8> {
        self.device.to_host(&|| Ok(())).unwrap()
    }

    /// The device's elements, which every run must have left in the same bits.
    #[track_caller]
    pub fn results(&self) -> Vec<f64> {
        let last = self.device_bytes();
        assert!(self.runs.iter().all(|run| *run == last), "orders of threads differ");
        Elements::from_bytes(self.dtype, &last).wide()
    }

    /// The device's elements after the last run, whatever the others were.
    pub fn latest(&self) -> Vec<f64> {
        Elements::from_bytes(self.dtype, &self.device_bytes()).wide()
    }

    /// Asserts that host and device differ by `allowed` at most; NaN is NaN.
    #[track_caller]
    fn assert_within(&self, allowed: f64) {
        let (got, expected) = (self.results(), self.host.wide());
        assert_eq!(got.len(), expected.len());
        for (i, (got, expected)) in got.into_iter().zip(expected).enumerate() {
            let same = got == expected || (got.is_nan() && expected.is_nan());
            let close = (got - expected).abs() <= allowed;
            assert!(same || close, "element {i}: {got:e} on the device, {expected:e} on the host, allowed {allowed:e}");
        }
    }

    /// Asserts that host and device agree up to the rounding of sums of `terms` terms.
    #[track_caller]
    pub fn assert_rounded(&self, terms: usize) {
        let epsilon = if self.dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
        let expected = self.host.wide();
        let finite = expected.iter().filter(|value| value.is_finite());
        let scale = finite.fold(1.0, |scale: f64, value| scale.max(value.abs()));
        self.assert_within(4.0 * epsilon * scale * (terms as f64).sqrt().max(1.0));
    }

    /// The same for sums that are made in float64 on both sides: those of float32 are rounded once.
    #[track_caller]
    pub fn assert_summed(&self, terms: usize) {
        self.assert_rounded(if self.dtype == DType::F64 { terms } else { 1 });
    }

    /// Asserts that host and device agree exactly.
    #[track_caller]
    pub fn assert_same(&self) {
        self.assert_within(0.0);
    }
}

/// Where a call runs.
pub trait Side: Device {
    fn input<'a>(&self, values: &'a Values) -> Self::In<'a>;

    /// Memory as it was before any run.
    fn output<'a>(&self, values: &'a mut Values) -> Self::Out<'a>;
}

impl Side for Cpu {
    fn input<'a>(&self, values: &'a Values) -> HostSlice<'a> {
        values.host.view()
    }

    fn output<'a>(&self, values: &'a mut Values) -> HostSliceMut<'a> {
        values.host.view_mut()
    }
}

impl Side for Cuda {
    fn input<'a>(&self, values: &'a Values) -> Self::In<'a> {
        assert_eq!(*self, values.cuda, "a tensor of another device");
        values.device.slice(values.dtype)
    }

    fn output<'a>(&self, values: &'a mut Values) -> Self::Out<'a> {
        assert_eq!(*self, values.cuda, "a tensor of another device");
        if std::mem::replace(&mut values.written, true) {
            let bytes = values.device_bytes();
            values.runs.push(bytes);
            self.upload(&values.initial.bytes(), values.device.slice_mut(values.dtype)).unwrap();
        }
        values.device.slice_mut(values.dtype)
    }
}

/// Runs `$call` on the host and, in every order of threads, on a device.
macro_rules! both {
    ($device:ident => $call:expr) => { both!(crate::harness::cuda(), $device => $call) };
    ($cuda:expr, $device:ident => $call:expr) => {{
        #[allow(unused_imports)]
        use crate::harness::Side as _;
        {
            let $device = &syncbn_cpu::Cpu;
            $call.unwrap();
        }
        let cuda: syncbn_cuda::Cuda = $cuda;
        for order in crate::harness::ORDERS {
            syncbn_fake_cuda::set_order(order);
            let $device = &cuda;
            $call.unwrap();
            cuda.synchronize(&|| Ok(())).unwrap();
        }
    }};
}
pub(crate) use both;

/// The error a call on the device gives.
#[track_caller]
pub fn code(result: Result<()>) -> syncbn_core::Code {
    result.expect_err("an error").code()
}
