//! The gradients of the gradients against central differences in float64, over one rank and over two.
//!
//! L(x, dy, w) = Σ G·dx + Σ ggw·grad_weight + Σ ggb·grad_bias, where dx and the parameter gradients come from the plain
//! formulas; its differences in x, dy and w must be what the kernels say.

use crate::harness::*;
use syncbn_core::BatchNormShape;
use syncbn_core::DType;
use syncbn_core::kernels::{DoubleBackwardApply, DoubleBackwardReduce, Kernels};
use syncbn_core::message::{read_row, sums_bytes, write_row, write_slot};
use syncbn_cpu::Cpu;

const EPS: f64 = 1e-3;

/// Everything, for ranks whose samples follow each other in contiguous tensors.
#[derive(Clone)]
struct Problem {
    x: Vec<f64>,
    dy: Vec<f64>,
    g: Vec<f64>,
    w: Vec<f64>,
    /// For each rank, one number a channel.
    ggw: Vec<Vec<f64>>,
    ggb: Vec<Vec<f64>>,
    /// Samples of each rank.
    ranks: Vec<usize>,
    channels: usize,
    spatial: usize,
    /// Mean and variance, if they are not the batch's.
    constant: Option<(f64, f64)>,
}

impl Problem {
    fn new(ranks: &[usize], channels: usize, spatial: usize, constant: Option<(f64, f64)>) -> Self {
        let mut random = Random(21);
        let numel = ranks.iter().sum::<usize>() * channels * spatial;
        let [x, dy, g] = [0; 3].map(|_| random.values(numel));
        let w = random.values(channels);
        let [ggw, ggb] = [0; 2].map(|_| ranks.iter().map(|_| random.values(channels)).collect());
        Self { x, dy, g, w, ggw, ggb, ranks: ranks.to_vec(), channels, spatial, constant }
    }

    fn samples(&self) -> usize {
        self.ranks.iter().sum()
    }

    fn at(&self, sample: usize, channel: usize, value: usize) -> usize {
        (sample * self.channels + channel) * self.spatial + value
    }

    fn rank_of(&self, sample: usize) -> usize {
        let ends = self.ranks.iter().scan(0, |end, n| {
            *end += n;
            Some(*end)
        });
        ends.take_while(|&end| end <= sample).count()
    }

    /// Mean and invstd of a channel.
    fn statistics(&self, channel: usize) -> (f64, f64) {
        let all = || {
            (0..self.samples())
                .flat_map(|n| (0..self.spatial).map(move |i| (n, i)))
                .map(|(n, i)| self.x[self.at(n, channel, i)])
        };
        let n = (self.samples() * self.spatial) as f64;
        let mean = all().sum::<f64>() / n;
        let (mean, var) = self.constant.unwrap_or((mean, all().map(|x| (x - mean).powi(2)).sum::<f64>() / n));
        (mean, 1.0 / (var + EPS).sqrt())
    }

    /// L of one channel, with the weight gradients of each rank counted for themselves.
    fn loss(&self, channel: usize) -> f64 {
        let (mean, s) = self.statistics(channel);
        let n = (self.samples() * self.spatial) as f64;
        let all: Vec<(usize, usize)> = (0..self.samples())
            .flat_map(|n| (0..self.spatial).map(move |i| (self.rank_of(n), self.at(n, channel, i))))
            .collect();
        let batch = if self.constant.is_some() { 0.0 } else { 1.0 };
        let a = batch * all.iter().map(|&(_, i)| self.dy[i]).sum::<f64>() / n;
        let b = batch * all.iter().map(|&(_, i)| self.dy[i] * (self.x[i] - mean) * s).sum::<f64>() / n;
        all.iter()
            .map(|&(rank, i)| {
                let xh = (self.x[i] - mean) * s;
                let dx = self.w[channel] * s * (self.dy[i] - a - xh * b);
                self.g[i] * dx + self.dy[i] * (self.ggw[rank][channel] * xh + self.ggb[rank][channel])
            })
            .sum()
    }
}

/// A rank's tensors in the layout asked for, its own shape, and its buffers.
struct Rank {
    shape: BatchNormShape,
    x: Vec<f64>,
    dy: Vec<f64>,
    g: Vec<f64>,
    /// Where its elements are in the problem's tensors.
    place: Vec<usize>,
    sums: Vec<u8>,
    local: Vec<u8>,
}

impl Rank {
    fn new(problem: &Problem, rank: usize, channels_last: bool) -> Self {
        let first: usize = problem.ranks[..rank].iter().sum();
        let shape = shape(problem.ranks[rank], problem.channels, problem.spatial, channels_last);
        let mut place = vec![0; shape.numel()];
        for sample in 0..shape.batch {
            for channel in 0..shape.channels {
                let (start, step) = shape.run(sample, channel);
                (0..shape.spatial).for_each(|i| place[start + i * step] = problem.at(first + sample, channel, i));
            }
        }
        let of = |tensor: &[f64]| place.iter().map(|&at| tensor[at]).collect();
        let bytes = |rows: usize| vec![0xAA; sums_bytes(shape.channels, rows, DType::F64)];
        Self {
            shape,
            x: of(&problem.x),
            dy: of(&problem.dy),
            g: of(&problem.g),
            place,
            sums: bytes(7),
            local: bytes(3),
        }
    }

    fn reduce(&mut self, problem: &Problem, rank: usize, slot: &Vec<u8>) {
        Cpu.double_backward_reduce(DoubleBackwardReduce {
            input: f64::view(&self.x),
            grad_output: f64::view(&self.dy),
            grad_grad_input: f64::view(&self.g),
            grad_grad_weight: Some(f64::view(&problem.ggw[rank])),
            weight: Some(f64::view(&problem.w)),
            shape: self.shape,
            statistics: slot,
            sums: &mut self.sums,
            local_sums: &mut self.local,
        })
        .unwrap();
    }

    /// The gradients to x, to dy and to w.
    fn apply(&self, problem: &Problem, rank: usize, slot: &Vec<u8>, sums: Option<&Vec<u8>>) -> [Vec<f64>; 3] {
        let nan = f64::NAN;
        let (mut to_x, mut to_dy) = (vec![nan; self.x.len()], vec![nan; self.x.len()]);
        let mut to_w = vec![nan; self.shape.channels];
        Cpu.double_backward_apply(DoubleBackwardApply {
            input: f64::view(&self.x),
            grad_output: f64::view(&self.dy),
            grad_grad_input: f64::view(&self.g),
            grad_grad_weight: Some(f64::view(&problem.ggw[rank])),
            grad_grad_bias: Some(f64::view(&problem.ggb[rank])),
            weight: Some(f64::view(&problem.w)),
            shape: self.shape,
            statistics: slot,
            sums,
            local_sums: &self.local,
            grad_input: f64::view_mut(&mut to_x),
            grad_grad_output: f64::view_mut(&mut to_dy),
            grad_weight: Some(f64::view_mut(&mut to_w)),
        })
        .unwrap();
        [to_x, to_dy, to_w]
    }
}

/// (L(v + h) − L(v − h)) / 2h for the value `pick` finds.
fn difference(problem: &Problem, channel: usize, pick: impl Fn(&mut Problem) -> &mut f64) -> f64 {
    let h = 1e-5;
    let at = |step: f64| {
        let mut moved = problem.clone();
        *pick(&mut moved) += step;
        moved.loss(channel)
    };
    (at(h) - at(-h)) / (2.0 * h)
}

fn check(problem: &Problem, channels_last: bool) {
    let channels = problem.channels;
    let statistics: Vec<(f64, f64)> = (0..channels).map(|channel| problem.statistics(channel)).collect();
    let (mean, invstd): (Vec<f64>, Vec<f64>) = statistics.into_iter().unzip();
    let count = if problem.constant.is_some() { 0 } else { (problem.samples() * problem.spatial) as u64 };
    let mut ranks: Vec<Rank> = (0..problem.ranks.len()).map(|rank| Rank::new(problem, rank, channels_last)).collect();
    let mut slot = messages(ranks[0].shape, 1);
    write_slot(&mut slot, count, &mean, &invstd);

    let mut group = vec![0.0; 7 * channels];
    for (index, rank) in ranks.iter_mut().enumerate() {
        rank.reduce(problem, index, &slot);
        group.iter_mut().zip(read_row(&rank.sums)).for_each(|(sum, value)| *sum += value);
    }
    let mut sums = vec![0; group.len() * 8];
    write_row(&mut sums, &group);

    let mut to_w = vec![0.0; channels];
    for (index, rank) in ranks.iter().enumerate() {
        let got = rank.apply(problem, index, &slot, problem.constant.is_none().then_some(&sums));
        to_w.iter_mut().zip(&got[2]).for_each(|(sum, value)| *sum += value);
        for (i, &at) in rank.place.iter().enumerate() {
            let channel = at / problem.spatial % channels;
            let expected =
                [difference(problem, channel, |p| &mut p.x[at]), difference(problem, channel, |p| &mut p.dy[at])];
            for (name, got, expected) in [("x", got[0][i], expected[0]), ("dy", got[1][i], expected[1])] {
                assert!(
                    (got - expected).abs() <= 1e-7 * (1.0 + expected.abs()),
                    "to {name} at {at}: {got}, expected {expected}"
                );
            }
        }
    }
    for (channel, got) in to_w.into_iter().enumerate() {
        let expected = difference(problem, channel, |p| &mut p.w[channel]);
        assert!((got - expected).abs() <= 1e-7 * (1.0 + expected.abs()), "to w: {got}, expected {expected}");
    }
}

#[test]
fn batch_statistics_over_one_rank() {
    for channels_last in [false, true] {
        check(&Problem::new(&[3], 2, 5, None), channels_last);
        check(&Problem::new(&[4], 3, 1, None), channels_last);
    }
}

#[test]
fn batch_statistics_over_two_ranks_of_which_gradients_differ() {
    for channels_last in [false, true] {
        check(&Problem::new(&[2, 3], 2, 3, None), channels_last);
        check(&Problem::new(&[2, 0, 1], 3, 4, None), channels_last);
    }
}

#[test]
fn constant_statistics() {
    for channels_last in [false, true] {
        check(&Problem::new(&[3], 2, 5, Some((0.3, 0.7))), channels_last);
    }
}
