//! The gradients of the gradients, in float64 arithmetic and plain loops.
//!
//! With M the group's count, s = invstd, xmu = x − mean, xh = xmu·s, A = Σdy/M, B = s·Σdy·xmu/M, G' = w·G, Gm = ΣG'/M,
//! D = s·ΣG'·xmu/M and T = ΣG'·dy − M·Gm·A − M·B·D, all sums over the group:
//! - to dy: s·(G' − Gm − xh·D) + ggw·xh + ggb;
//! - to x: s·(h − mean(h) − xh·mean(h·xh)) − T·s²·xh/M, with h = ggw·dy − s·(D·dy + B·G'), so that
//!   mean(h) = ggw·A − s·(D·A + B·Gm) and mean(h·xh) = ggw·B − 2·s·B·D;
//! - to w: s·(ΣG·dy − A·ΣG − B·s·ΣG·xmu), with sums over this rank's elements.
//!
//! ggw may differ between ranks, so the group sums ggw·dy and ggw·dy·xmu themselves. Derived in docs/numerics.md.

use super::moments::Parts;
use super::plan::{Plan, Unit};
use crate::pool::{SharedMut, parallel};
use crate::simd::Scalar;

/// Rows of sums exchanged between ranks.
pub(super) const GROUP_ROWS: usize = 7;
/// Rows of sums that stay local.
pub(super) const LOCAL_ROWS: usize = 3;

/// What both halves read, tensors of the plan's shape and one number a channel.
pub(super) struct Inputs<'a, S> {
    pub(super) x: &'a [S],
    pub(super) dy: &'a [S],
    /// The gradient that arrives at dx.
    pub(super) g: &'a [S],
    /// The gradient that arrives at grad_weight.
    pub(super) ggw: &'a [f64],
    /// The gradient that arrives at grad_bias.
    pub(super) ggb: &'a [f64],
    pub(super) weight: &'a [f64],
    pub(super) mean: &'a [f64],
    pub(super) invstd: &'a [f64],
}

/// Σdy, Σdy·xmu, ΣG, ΣG·xmu, ΣG·dy of every channel: five rows.
fn local_sums<S: Scalar>(plan: &Plan, inputs: &Inputs<'_, S>) -> Vec<f64> {
    let mut parts = Parts::new(plan, 5);
    let out = SharedMut::new(&mut parts.values);
    parallel(3 * size_of_val(inputs.x), plan.units(), &|index| {
        let unit = plan.unit(index);
        let first = 5 * unit.part * plan.channels;
        // SAFETY: units have distinct channels of distinct parts.
        let mut rows = [0, 1, 2, 3, 4].map(|row| unsafe {
            out.slice(
                first + row * plan.channels + unit.channels.start..first + row * plan.channels + unit.channels.end,
            )
        });
        for_each(plan, &unit, |at, channel| {
            let (dy, g) = (inputs.dy[at].to_f64(), inputs.g[at].to_f64());
            let xmu = inputs.x[at].to_f64() - inputs.mean[channel];
            let terms = [dy, dy * xmu, g, g * xmu, g * dy];
            rows.iter_mut().zip(terms).for_each(|(row, term)| row[channel - unit.channels.start] += term);
        });
    });
    parts.sum()
}

/// This rank's seven rows for the group and its three local rows.
pub(super) fn reduce<S: Scalar>(plan: &Plan, inputs: &Inputs<'_, S>) -> (Vec<f64>, Vec<f64>) {
    let sums = local_sums(plan, inputs);
    let row = |row: usize| &sums[row * plan.channels..(row + 1) * plan.channels];
    let times = |factor: &[f64], sums: &[f64]| factor.iter().zip(sums).map(|(f, s)| f * s).collect::<Vec<f64>>();
    let group = [
        row(0).to_vec(),
        row(1).to_vec(),
        times(inputs.weight, row(2)),
        times(inputs.weight, row(3)),
        times(inputs.weight, row(4)),
        times(inputs.ggw, row(0)),
        times(inputs.ggw, row(1)),
    ];
    (group.concat(), sums[2 * plan.channels..].to_vec())
}

/// The formulas of the module for one channel.
#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    mean: f64,
    s: f64,
    weight: f64,
    ggw: f64,
    ggb: f64,
    a: f64,
    b: f64,
    gm: f64,
    d: f64,
    mean_h: f64,
    mean_h_xh: f64,
    /// T·s²/M.
    t: f64,
}

impl Channel {
    fn new<S>(inputs: &Inputs<'_, S>, channel: usize) -> Self {
        Self {
            mean: inputs.mean[channel],
            s: inputs.invstd[channel],
            weight: inputs.weight[channel],
            ggw: inputs.ggw[channel],
            ggb: inputs.ggb[channel],
            ..Self::default()
        }
    }

    fn with_sums(mut self, sums: [f64; GROUP_ROWS], count: f64) -> Self {
        let [dy, dy_xmu, g, g_xmu, g_dy, ggw_dy, ggw_dy_xmu] = sums.map(|sum| sum / count);
        let s = self.s;
        (self.a, self.b, self.gm, self.d) = (dy, s * dy_xmu, g, s * g_xmu);
        self.mean_h = ggw_dy - s * (self.d * self.a + self.b * self.gm);
        self.mean_h_xh = s * ggw_dy_xmu - 2.0 * s * self.b * self.d;
        self.t = (g_dy - self.gm * self.a - self.b * self.d) * s * s;
        self
    }

    /// The gradients to dy and to x at one element.
    fn at(&self, x: f64, dy: f64, g: f64) -> (f64, f64) {
        let (s, xh, g) = (self.s, (x - self.mean) * self.s, self.weight * g);
        let to_dy = s * (g - self.gm - xh * self.d) + self.ggw * xh + self.ggb;
        let h = self.ggw * dy - s * (self.d * dy + self.b * g);
        (to_dy, s * (h - self.mean_h - xh * self.mean_h_xh) - self.t * xh)
    }
}

/// Writes the gradients to x and to dy; returns the gradient to w over this rank's elements.
///
/// `sums` is the group's seven rows and count; without them the statistics were constants.
pub(super) fn apply<S: Scalar>(
    plan: &Plan,
    inputs: &Inputs<'_, S>,
    sums: Option<(&[f64], f64)>,
    local: &[f64],
    [to_x, to_dy]: [&mut [S]; 2],
) -> Vec<f64> {
    let channels: Vec<Channel> = (0..plan.channels)
        .map(|channel| {
            let constant = Channel::new(inputs, channel);
            let of = |rows: &[f64]| std::array::from_fn(|row| rows[row * plan.channels + channel]);
            sums.map_or(constant, |(rows, count)| constant.with_sums(of(rows), count))
        })
        .collect();
    let (to_x, to_dy) = (SharedMut::new(to_x), SharedMut::new(to_dy));
    parallel(3 * size_of_val(inputs.x), plan.units(), &|index| {
        for_each(plan, &plan.unit(index), |at, channel| {
            let [x, dy, g] = [inputs.x, inputs.dy, inputs.g].map(|tensor| tensor[at].to_f64());
            let (dy, x) = channels[channel].at(x, dy, g);
            // SAFETY: units have distinct elements.
            unsafe { (to_x.slice(at..at + 1)[0], to_dy.slice(at..at + 1)[0]) = (S::from_f64(x), S::from_f64(dy)) }
        });
    });
    let row = |row: usize| &local[row * plan.channels..(row + 1) * plan.channels];
    let (g, g_xmu, g_dy) = (row(0), row(1), row(2));
    channels.iter().enumerate().map(|(c, of)| of.s * (g_dy[c] - of.a * g[c] - of.b * of.s * g_xmu[c])).collect()
}

/// Calls `f(index of the element, channel)` for every element of the unit.
#[inline]
fn for_each(plan: &Plan, unit: &Unit, mut f: impl FnMut(usize, usize)) {
    if plan.channels_last {
        for row in unit.values.clone() {
            unit.channels.clone().for_each(|channel| f(row * plan.channels + channel, channel));
        }
        return;
    }
    for (plane, run) in plan.runs_reversed(unit) {
        for channel in unit.channels.clone() {
            let first = (plane * plan.channels + channel) * plan.spatial;
            run.clone().for_each(|value| f(first + value, channel));
        }
    }
}
