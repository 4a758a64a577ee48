//! One batch norm over several ranks: its numbers, the calls that compute it, and what they gave.

#![allow(dead_code, reason = "each test binary uses a part")]

use crate::support::{ranks, tensor, values};
use syncbn_core::generator::Generator;
use syncbn_core::{DType, MemoryFormat, Result};
use syncbn_runtime::array::Options;
use syncbn_runtime::batch_norm::{self, Needs, Parameters};
use syncbn_runtime::{ProcessGroup, Tensor, gpu};

/// The nearest number of `dtype`.
pub fn round(dtype: DType, value: f64) -> f64 {
    if dtype == DType::F32 { f64::from(value as f32) } else { value }
}

/// All ranks' numbers, in row-major order and exact in `dtype`.
#[derive(Clone, Debug)]
pub struct Problem {
    pub dtype: DType,
    pub format: MemoryFormat,
    /// (N, C, *) of each rank.
    pub shapes: Vec<Vec<usize>>,
    pub x: Vec<Vec<f64>>,
    pub dy: Vec<Vec<f64>>,
    pub weight: Option<Vec<f64>>,
    pub bias: Option<Vec<f64>>,
    pub eps: f64,
    pub momentum: Option<f64>,
}

impl Problem {
    /// Standard normal inputs, upstream gradients, weights and biases.
    pub fn new(shapes: &[&[usize]], dtype: DType, format: MemoryFormat, seed: u64) -> Self {
        let mut random = Generator::new(seed);
        let mut draw =
            |len: usize| -> Vec<f64> { random.randn_f64(len).into_iter().map(|x| round(dtype, x)).collect() };
        let channels = shapes[0][1];
        let mut each = || shapes.iter().map(|shape| draw(shape.iter().product())).collect::<Vec<_>>();
        let (x, dy) = (each(), each());
        Self {
            dtype,
            format,
            shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
            x,
            dy,
            weight: Some(draw(channels)),
            bias: Some(draw(channels)),
            eps: 1e-5,
            momentum: Some(0.1),
        }
    }

    /// Replaces every input by `make(rank, index, standard normal)`.
    pub fn with_input(mut self, make: impl Fn(usize, usize, f64) -> f64) -> Self {
        for (rank, x) in self.x.iter_mut().enumerate() {
            x.iter_mut().enumerate().for_each(|(i, x)| *x = round(self.dtype, make(rank, i, *x)));
        }
        self
    }

    pub fn channels(&self) -> usize {
        self.shapes[0][1]
    }

    pub fn ranks(&self) -> usize {
        self.shapes.len()
    }

    /// The channel of element `index` of `rank`.
    pub fn channel(&self, rank: usize, index: usize) -> usize {
        let spatial: usize = self.shapes[rank][2..].iter().product();
        index / spatial % self.channels()
    }

    /// (rank, index) of every element of `channel`, in rank order.
    pub fn elements(&self, channel: usize) -> Vec<(usize, usize)> {
        let of_rank = |rank: usize| (0..self.x[rank].len()).map(move |i| (rank, i));
        (0..self.ranks()).flat_map(of_rank).filter(|&(rank, i)| self.channel(rank, i) == channel).collect()
    }

    pub fn options(&self) -> Options {
        Options { training: true, momentum: self.momentum, eps: self.eps }
    }

    /// The tensors of one rank before the first step.
    pub fn layer(&self, rank: usize) -> Layer {
        let row = |values: &[f64]| tensor(values, &[values.len()], self.dtype, MemoryFormat::Contiguous);
        let (zeros, ones) = (vec![0.0; self.channels()], vec![1.0; self.channels()]);
        Layer {
            x: tensor(&self.x[rank], &self.shapes[rank], self.dtype, self.format),
            dy: tensor(&self.dy[rank], &self.shapes[rank], self.dtype, self.format),
            weight: self.weight.as_deref().map(row),
            bias: self.bias.as_deref().map(row),
            running_mean: row(&zeros),
            running_var: row(&ones),
            num_batches_tracked: tensor(&[0.0], &[], DType::I64, MemoryFormat::Contiguous),
        }
    }

    /// One training step of one rank.
    pub fn step(&self, rank: usize, group: Option<&ProcessGroup>) -> Result<Step> {
        self.layer(rank).step(self.options(), group)
    }

    /// One training step on all ranks of a world of their own.
    pub fn run(&self) -> Vec<Step> {
        ranks(self.ranks(), |group| self.step(group.member_rank().unwrap(), Some(group)).unwrap())
    }
}

/// One rank's tensors.
#[derive(Clone, Debug)]
pub struct Layer {
    pub x: Tensor,
    pub dy: Tensor,
    pub weight: Option<Tensor>,
    pub bias: Option<Tensor>,
    pub running_mean: Tensor,
    pub running_var: Tensor,
    pub num_batches_tracked: Tensor,
}

/// What one training step gave, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub y: Vec<f64>,
    pub format: MemoryFormat,
    pub dtype: DType,
    pub dx: Vec<f64>,
    pub grad_weight: Vec<f64>,
    pub grad_bias: Vec<f64>,
    /// (values per channel over all ranks, mean, 1/√(var + eps)).
    pub saved: (u64, Vec<f64>, Vec<f64>),
    pub running: Running,
}

/// The buffers of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    pub mean: Vec<f64>,
    pub var: Vec<f64>,
    pub num_batches_tracked: f64,
}

/// Every gradient.
pub const ALL: Needs = Needs { input: true, weight: true, bias: true };

impl Layer {
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters {
            weight: self.weight.as_ref(),
            bias: self.bias.as_ref(),
            running_mean: Some(&self.running_mean),
            running_var: Some(&self.running_var),
            num_batches_tracked: Some(&self.num_batches_tracked),
        }
    }

    pub fn running(&self) -> Running {
        Running {
            mean: values(&self.running_mean),
            var: values(&self.running_var),
            num_batches_tracked: values(&self.num_batches_tracked)[0],
        }
    }

    /// Forward and backward.
    pub fn step(&self, options: Options, group: Option<&ProcessGroup>) -> Result<Step> {
        let (y, saved) = batch_norm::forward(&self.x, self.parameters(), options, group)?;
        let grads = batch_norm::backward(&self.dy, &self.x, self.weight.as_ref(), &saved, ALL)?;
        // What only the device can see is an error of the step.
        gpu::synchronize(&self.x.device())?;
        let read = |gradient: Option<Tensor>| values(&gradient.expect("asked for"));
        Ok(Step {
            y: values(&y),
            format: y.format(),
            dtype: y.dtype(),
            dx: read(grads.input),
            grad_weight: read(grads.weight),
            grad_bias: read(grads.bias),
            saved: saved.values()?,
            running: self.running(),
        })
    }
}
