//! Calls of the kernels on vectors, random data, and the instruction sets and thread counts to try.

use std::sync::{Mutex, MutexGuard, PoisonError};
use syncbn_core::kernels::{Backward, Elemt, Forward, Kernels, Normalize, RunningStats};
use syncbn_core::message::{read_slot, slot_bytes};
use syncbn_core::{BatchNormShape, DType, Result};
use syncbn_cpu::simd::{self, Level};
use syncbn_cpu::{Cpu, HostSlice, HostSliceMut, pool};

/// The element types under test.
pub trait Num: Copy + PartialEq + std::fmt::Debug + Into<f64> + 'static {
    /// 2⁻²³ or 2⁻⁵².
    const EPSILON: f64;
    fn of(value: f64) -> Self;
    fn view(values: &[Self]) -> HostSlice<'_>;
    fn view_mut(values: &mut [Self]) -> HostSliceMut<'_>;
}

impl Num for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;

    fn of(value: f64) -> Self {
        value as f32
    }

    fn view(values: &[Self]) -> HostSlice<'_> {
        HostSlice::F32(values)
    }

    fn view_mut(values: &mut [Self]) -> HostSliceMut<'_> {
        HostSliceMut::F32(values)
    }
}

impl Num for f64 {
    const EPSILON: f64 = f64::EPSILON;

    fn of(value: f64) -> Self {
        value
    }

    fn view(values: &[Self]) -> HostSlice<'_> {
        HostSlice::F64(values)
    }

    fn view_mut(values: &mut [Self]) -> HostSliceMut<'_> {
        HostSliceMut::F64(values)
    }
}

pub fn shape(batch: usize, channels: usize, spatial: usize, channels_last: bool) -> BatchNormShape {
    BatchNormShape { batch, channels, spatial, channels_last }
}

/// Small odd shapes, all tail lengths, and shapes that are cut in every way a plan knows.
pub fn shapes() -> Vec<BatchNormShape> {
    let small = [(1, 1, 2), (2, 1, 1), (3, 5, 1), (2, 3, 35), (5, 17, 9), (4, 33, 49), (3, 2, 1025), (1, 70, 3)];
    let tails = (1..=70).map(|spatial| (2, 3, spatial));
    let large =
        [(3, 2, 4097), (2, 3, 33_333), (37, 5, 1_111), (1, 1, 200_003), (7, 2_050, 13), (301, 129, 9), (3, 90_001, 1)];
    let all = small.into_iter().chain(tails).chain(large);
    all.flat_map(|(n, c, s)| [false, true].map(|last| shape(n, c, s, last))).collect()
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

    pub fn values<T: Num>(&mut self, len: usize) -> Vec<T> {
        (0..len).map(|_| T::of(self.next())).collect()
    }
}

static SETTINGS: Mutex<()> = Mutex::new(());

/// Keeps other tests from changing the instruction set or the threads.
pub fn settings() -> MutexGuard<'static, ()> {
    SETTINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `test` once at each instruction set this machine has.
pub fn at_each_level(mut test: impl FnMut(Level)) {
    let _guard = settings();
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        if simd::set_level(level) == level {
            test(level);
        }
    }
    simd::set_level(Level::Avx512);
}

/// Calls `test` with 1 and then with 4 threads; the results must be the same.
pub fn same_with_threads<R: PartialEq + std::fmt::Debug>(what: &str, test: impl Fn() -> R) {
    let _guard = settings();
    pool::set_num_threads(1);
    let alone = test();
    pool::set_num_threads(4);
    for _ in 0..3 {
        assert!(alone == test(), "{what}: 1 and 4 threads differ");
    }
}

/// What forward leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Output<T> {
    pub y: Vec<T>,
    pub count: u64,
    pub mean: Vec<f64>,
    pub invstd: Vec<f64>,
    /// The slot itself, for backward.
    pub slot: Vec<u8>,
    pub running_mean: Vec<T>,
    pub running_var: Vec<T>,
    pub num_batches_tracked: i64,
}

pub struct Call<'a, T> {
    pub shape: BatchNormShape,
    pub x: &'a [T],
    pub weight: Option<&'a [T]>,
    pub bias: Option<&'a [T]>,
    pub eps: f64,
    pub momentum: Option<f64>,
}

/// Running statistics before any batch.
struct Buffers<T> {
    mean: Vec<T>,
    var: Vec<T>,
    tracked: [i64; 1],
}

impl<T: Num> Buffers<T> {
    fn new(channels: usize) -> Self {
        Self { mean: vec![T::of(0.0); channels], var: vec![T::of(1.0); channels], tracked: [0] }
    }

    fn views(&mut self, momentum: Option<f64>) -> RunningStats<'_, Cpu> {
        RunningStats {
            mean: T::view_mut(&mut self.mean),
            var: T::view_mut(&mut self.var),
            momentum,
            num_batches_tracked: Some(HostSliceMut::I64(&mut self.tracked)),
        }
    }

    fn output(self, y: Vec<T>, slot: Vec<u8>) -> Output<T> {
        let (count, mean, invstd) = read_slot(&slot);
        let (running_mean, running_var, num_batches_tracked) = (self.mean, self.var, self.tracked[0]);
        Output { y, count, mean, invstd, slot, running_mean, running_var, num_batches_tracked }
    }
}

impl<T: Num> Call<'_, T> {
    /// The fused forward.
    pub fn forward(&self) -> Result<Output<T>> {
        let mut y = vec![T::of(f64::NAN); self.x.len()];
        let mut slot = vec![0; slot_bytes(self.shape.channels, DType::F64)];
        let mut buffers = Buffers::new(self.shape.channels);
        Cpu.forward(Forward {
            input: T::view(self.x),
            shape: self.shape,
            weight: self.weight.map(T::view),
            bias: self.bias.map(T::view),
            eps: self.eps,
            running: Some(buffers.views(self.momentum)),
            output: T::view_mut(&mut y),
            statistics: &mut slot,
        })?;
        Ok(buffers.output(y, slot))
    }

    /// Statistics and normalisation as two calls, the messages of other ranks beside ours at `slot`.
    pub fn two_phase(&self, messages: &mut Vec<u8>, slot: usize) -> Result<Output<T>> {
        Cpu.stats(T::view(self.x), self.shape, messages, slot)?;
        self.normalize(messages)
    }

    pub fn normalize(&self, messages: &Vec<u8>) -> Result<Output<T>> {
        let size = slot_bytes(self.shape.channels, DType::F64);
        let (mut y, mut kept) = (vec![T::of(f64::NAN); self.x.len()], vec![0; size]);
        let mut buffers = Buffers::new(self.shape.channels);
        Cpu.normalize(Normalize {
            input: T::view(self.x),
            shape: self.shape,
            weight: self.weight.map(T::view),
            bias: self.bias.map(T::view),
            eps: self.eps,
            messages,
            world_size: messages.len() / size,
            running: Some(buffers.views(self.momentum)),
            output: T::view_mut(&mut y),
            statistics: &mut kept,
        })?;
        Ok(buffers.output(y, kept))
    }

    /// Normalisation with the statistics of `slot`.
    #[allow(clippy::ptr_arg)]
    pub fn elemt(&self, slot: &Vec<u8>) -> Vec<T> {
        let mut y = vec![T::of(f64::NAN); self.x.len()];
        Cpu.elemt(Elemt {
            input: T::view(self.x),
            shape: self.shape,
            weight: self.weight.map(T::view),
            bias: self.bias.map(T::view),
            statistics: slot,
            output: T::view_mut(&mut y),
        })
        .unwrap();
        y
    }

    /// dx, grad_weight and grad_bias of the fused backward.
    pub fn backward(&self, dy: &[T], slot: &Vec<u8>, batch_statistics: bool) -> [Vec<T>; 3] {
        let (nan, channels) = (T::of(f64::NAN), self.shape.channels);
        let (mut dx, mut gw, mut gb) = (vec![nan; self.x.len()], vec![nan; channels], vec![nan; channels]);
        Cpu.backward(Backward {
            input: T::view(self.x),
            grad_output: T::view(dy),
            shape: self.shape,
            weight: self.weight.map(T::view),
            statistics: slot,
            batch_statistics,
            grad_input: Some(T::view_mut(&mut dx)),
            grad_weight: Some(T::view_mut(&mut gw)),
            grad_bias: Some(T::view_mut(&mut gb)),
        })
        .unwrap();
        [dx, gw, gb]
    }
}

/// A buffer of `world_size` slots.
pub fn messages(shape: BatchNormShape, world_size: usize) -> Vec<u8> {
    vec![0xAA; world_size * slot_bytes(shape.channels, DType::F64)]
}
