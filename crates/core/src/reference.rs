//! Batch norm as it is written in the paper, in float64, in two passes, over all ranks at once.
//!
//! Ioffe & Szegedy, "Batch Normalization" (2015), algorithm 1 and the chain rule of §3. Nothing here is fast; every
//! faster version is measured against it.

use crate::shape::BatchNormShape;

/// One rank's batch.
#[derive(Clone, Copy, Debug)]
pub struct RankBatch<'a> {
    /// x in memory order.
    pub input: &'a [f64],
    /// Its shape; the number of channels is the same on all ranks.
    pub shape: BatchNormShape,
}

/// What a forward pass over all ranks gives.
#[derive(Clone, Debug)]
pub struct ReferenceForward {
    /// Values per channel, over all ranks.
    pub count: usize,
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Biased variance of each channel.
    pub var: Vec<f64>,
    /// 1/√(var + eps).
    pub invstd: Vec<f64>,
    /// y of each rank.
    pub outputs: Vec<Vec<f64>>,
}

/// What a backward pass over all ranks gives.
#[derive(Clone, Debug)]
pub struct ReferenceBackward {
    /// dL/dx of each rank, with L the sum of the ranks' losses.
    pub grad_inputs: Vec<Vec<f64>>,
    /// Each rank's own contribution to dL/dweight.
    pub grad_weights: Vec<Vec<f64>>,
    /// Each rank's own contribution to dL/dbias.
    pub grad_biases: Vec<Vec<f64>>,
}

/// Calls `visit(rank, channel, index)` for every element.
fn each(ranks: &[RankBatch<'_>], mut visit: impl FnMut(usize, usize, usize)) {
    for (rank, RankBatch { shape, .. }) in ranks.iter().enumerate() {
        for (sample, channel) in (0..shape.batch).flat_map(|n| (0..shape.channels).map(move |c| (n, c))) {
            let (start, step) = shape.run(sample, channel);
            (0..shape.spatial).for_each(|i| visit(rank, channel, start + i * step));
        }
    }
}

/// y = w·(x − mean)·invstd + b with the statistics of all ranks; weight and bias default to 1 and 0.
pub fn forward(ranks: &[RankBatch<'_>], weight: Option<&[f64]>, bias: Option<&[f64]>, eps: f64) -> ReferenceForward {
    let channels = ranks[0].shape.channels;
    let count: usize = ranks.iter().map(|rank| rank.shape.count()).sum();
    let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
    each(ranks, |rank, channel, i| mean[channel] += ranks[rank].input[i]);
    mean.iter_mut().for_each(|sum| *sum /= count.max(1) as f64);
    each(ranks, |rank, channel, i| var[channel] += (ranks[rank].input[i] - mean[channel]).powi(2));
    var.iter_mut().for_each(|sum| *sum /= count.max(1) as f64);
    let invstd: Vec<f64> = var.iter().map(|var| 1.0 / (var + eps).sqrt()).collect();
    let mut outputs: Vec<Vec<f64>> = ranks.iter().map(|rank| vec![0.0; rank.input.len()]).collect();
    each(ranks, |rank, c, i| {
        let normalized = (ranks[rank].input[i] - mean[c]) * invstd[c];
        outputs[rank][i] = weight.map_or(1.0, |w| w[c]) * normalized + bias.map_or(0.0, |b| b[c]);
    });
    ReferenceForward { count, mean, var, invstd, outputs }
}

/// dx = w·invstd·(dy − Σdy/n − (x − mean)·invstd²·Σdy·(x − mean)/n), sums over all ranks.
pub fn backward(
    ranks: &[RankBatch<'_>],
    grad_outputs: &[&[f64]],
    weight: Option<&[f64]>,
    forward: &ReferenceForward,
) -> ReferenceBackward {
    let (channels, count) = (ranks[0].shape.channels, forward.count.max(1) as f64);
    let centred = |rank: usize, c: usize, i: usize| ranks[rank].input[i] - forward.mean[c];
    let mut grad_biases = vec![vec![0.0; channels]; ranks.len()];
    let mut grad_weights = grad_biases.clone();
    each(ranks, |rank, c, i| {
        grad_biases[rank][c] += grad_outputs[rank][i];
        grad_weights[rank][c] += grad_outputs[rank][i] * centred(rank, c, i) * forward.invstd[c];
    });
    let total = |parts: &[Vec<f64>], c: usize| parts.iter().map(|part| part[c]).sum::<f64>();
    let mut grad_inputs: Vec<Vec<f64>> = ranks.iter().map(|rank| vec![0.0; rank.input.len()]).collect();
    each(ranks, |rank, c, i| {
        let normalized = centred(rank, c, i) * forward.invstd[c];
        let centred_grad =
            grad_outputs[rank][i] - total(&grad_biases, c) / count - normalized * total(&grad_weights, c) / count;
        grad_inputs[rank][i] = weight.map_or(1.0, |w| w[c]) * forward.invstd[c] * centred_grad;
    });
    ReferenceBackward { grad_inputs, grad_weights, grad_biases }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::Generator;
    use crate::memory_format::MemoryFormat;

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let shape = |n: usize| BatchNormShape::new("test", &[n, 2, 3], MemoryFormat::Contiguous).unwrap();
        let mut random = Generator::new(7);
        let mut inputs = [random.randn_f64(12), random.randn_f64(18)];
        let grads = [random.randn_f64(12), random.randn_f64(18)];
        let (weight, bias) = (random.randn_f64(2), random.randn_f64(2));
        let loss = |inputs: &[Vec<f64>; 2]| {
            let ranks =
                [RankBatch { input: &inputs[0], shape: shape(2) }, RankBatch { input: &inputs[1], shape: shape(3) }];
            let result = forward(&ranks, Some(&weight), Some(&bias), 1e-3);
            result.outputs.concat().iter().zip(grads.concat()).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let ranks =
            [RankBatch { input: &inputs[0], shape: shape(2) }, RankBatch { input: &inputs[1], shape: shape(3) }];
        let result = backward(
            &ranks,
            &[&grads[0], &grads[1]],
            Some(&weight),
            &forward(&ranks, Some(&weight), Some(&bias), 1e-3),
        );
        for rank in 0..2 {
            for i in 0..inputs[rank].len() {
                let at = inputs[rank][i];
                inputs[rank][i] = at + 1e-5;
                let above = loss(&inputs);
                inputs[rank][i] = at - 1e-5;
                let slope = (above - loss(&inputs)) / 2e-5;
                inputs[rank][i] = at;
                let difference = (slope - result.grad_inputs[rank][i]).abs();
                assert!(difference <= 1e-8, "rank {rank}, element {i}: {difference}");
            }
        }
    }
}
