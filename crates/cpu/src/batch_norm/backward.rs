//! The gradients: sums over each channel, then dx. In two phases or fused, as in [`super::forward`].

use super::coefficients::{self, Coefficients, SharedCoefficients};
use super::moments::Parts;
use super::plan::{Plan, Unit};
use super::{planes, rows};
use crate::pool::{SharedMut, parallel};
use crate::simd::{Kernel, Real, Scalar, Vector, dispatch};

/// What backward reads, tensors of the plan's shape and one number a channel.
pub(super) struct Inputs<'a, S> {
    pub(super) x: &'a [S],
    pub(super) dy: &'a [S],
    pub(super) mean: &'a [f64],
    pub(super) invstd: &'a [f64],
    pub(super) weight: &'a [f64],
}

impl<S: Scalar> Inputs<'_, S> {
    fn bytes(&self) -> usize {
        2 * size_of_val(self.x)
    }

    /// The means as the element type holds them.
    fn pivots(&self) -> Vec<S::Real> {
        self.mean.iter().map(|&mean| S::Real::from_f64(mean)).collect()
    }
}

/// Σdy and Σdy·(x − mean) of every channel: two rows.
pub(super) fn reduce<S: Scalar>(plan: &Plan, inputs: &Inputs<'_, S>) -> Vec<f64> {
    let mut parts = Parts::new(plan, 2);
    let (out, pivots) = (&SharedMut::new(&mut parts.values), &inputs.pivots());
    parallel(inputs.bytes(), plan.units(), &|index| {
        // SAFETY: the tensors have the plan's shape, and units have distinct rows of `out`.
        unsafe { dispatch(Reduce { plan, unit: &plan.unit(index), inputs, pivots, out }) }
    });
    let mut sums = parts.sum();
    let (sum_dy, sum_dy_xmu) = sums.split_at_mut(plan.channels);
    coefficients::about_exact_mean::<S::Real>(inputs.mean, sum_dy, sum_dy_xmu);
    sums
}

/// dx from the group's `sums` over 1/`over_count` values; with `over_count` 0, that of constant statistics.
pub(super) fn apply<S: Scalar>(plan: &Plan, inputs: &Inputs<'_, S>, sums: &[f64], over_count: f64, dx: &mut [S]) {
    let mut coefficients = Coefficients::new(plan.channels);
    let coefficients = &coefficients.shared();
    // SAFETY: nobody else uses the coefficients.
    unsafe { dispatch(Prepare { inputs, sums, over_count, coefficients }) };
    let dx = &SharedMut::new(dx);
    let units = plan.units();
    parallel(inputs.bytes(), units, &|index| {
        // The last units first: what the sums read last is still in the cache.
        let unit = &plan.unit(units - 1 - index);
        // SAFETY: all tensors have the plan's shape, and units have distinct elements of `dx`.
        unsafe { dispatch(Apply { plan, unit, inputs, dx, coefficients }) }
    });
}

/// [`reduce`] and [`apply`] in one, for batch statistics over this tensor alone: returns the sums.
pub(super) fn fused<S: Scalar>(plan: &Plan, inputs: &Inputs<'_, S>, dx: &mut [S]) -> Vec<f64> {
    let over_count = 1.0 / plan.count as f64;
    if !plan.fuses() {
        let sums = reduce(plan, inputs);
        apply(plan, inputs, &sums, over_count, dx);
        return sums;
    }
    let mut sums = vec![0.0; 2 * plan.channels];
    let mut coefficients = Coefficients::new(plan.channels);
    let (coefficients, out, dx) = (&coefficients.shared(), &SharedMut::new(&mut sums), &SharedMut::new(dx));
    let pivots = &inputs.pivots();
    parallel(inputs.bytes(), plan.units(), &|index| {
        let unit = &plan.unit(index);
        // SAFETY: all tensors have the plan's shape, and units have distinct channels.
        unsafe { dispatch(Fused { reduce: Reduce { plan, unit, inputs, pivots, out }, over_count, coefficients, dx }) }
    });
    sums
}

/// Σdy and Σdy·(x − pivot) of a unit, into the rows of its part.
struct Reduce<'a, S: Scalar> {
    plan: &'a Plan,
    unit: &'a Unit,
    inputs: &'a Inputs<'a, S>,
    pivots: &'a [S::Real],
    out: &'a SharedMut<'a, f64>,
}

impl<S: Scalar> Kernel<S> for Reduce<'_, S> {
    #[inline(always)]
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self) {
        let Self { plan, unit, inputs, pivots, out } = self;
        let (x, dy) = (inputs.x.as_ptr(), inputs.dy.as_ptr());
        let first = 2 * unit.part * plan.channels + unit.channels.start;
        // SAFETY: the rows are this unit's alone, the tensors have the plan's shape, the CPU has V's instructions.
        unsafe {
            let sum_dy = out.slice(first..first + unit.channels.len());
            let sum_dy_xmu = out.slice(first + plan.channels..first + plan.channels + unit.channels.len());
            if plan.channels_last {
                let pivots = &pivots[unit.channels.clone()];
                return rows::grad_sums::<V>(plan, unit, (x, dy), pivots, [sum_dy, sum_dy_xmu]);
            }
            for (i, channel) in unit.channels.clone().enumerate() {
                let (x, dy) = (x.add(channel * plan.spatial), dy.add(channel * plan.spatial));
                (sum_dy[i], sum_dy_xmu[i]) = planes::grad_sums::<V>(plan, unit, x, dy, pivots[channel]);
            }
        }
    }
}

/// dx of a unit.
struct Apply<'a, S: Scalar> {
    plan: &'a Plan,
    unit: &'a Unit,
    inputs: &'a Inputs<'a, S>,
    dx: &'a SharedMut<'a, S>,
    coefficients: &'a SharedCoefficients<'a, S::Real>,
}

impl<S: Scalar> Kernel<S> for Apply<'_, S> {
    #[inline(always)]
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self) {
        let Self { plan, unit, inputs, dx, coefficients } = self;
        let (x, dy, dx) = (inputs.x.as_ptr(), inputs.dy.as_ptr(), dx.as_mut_ptr());
        // SAFETY: the tensors have the plan's shape, the unit's elements of `dx` are its alone, coefficients are ready.
        unsafe {
            if plan.channels_last {
                rows::apply::<V, true>(plan, unit, (x, dy), dx, coefficients);
            } else {
                planes::apply::<V, true>(plan, unit, x, dy, dx, coefficients);
            }
        }
    }
}

/// The coefficients of all channels.
struct Prepare<'a, S: Scalar> {
    inputs: &'a Inputs<'a, S>,
    sums: &'a [f64],
    over_count: f64,
    coefficients: &'a SharedCoefficients<'a, S::Real>,
}

impl<S: Scalar> Kernel<S> for Prepare<'_, S> {
    #[inline(always)]
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self) {
        let Self { inputs, sums, over_count, coefficients } = self;
        let channels = inputs.mean.len();
        let rows = [inputs.mean, inputs.invstd, inputs.weight, &sums[..channels], &sums[channels..]];
        // SAFETY: nobody else uses the coefficients yet.
        unsafe { coefficients::backward(coefficients, 0..channels, rows, over_count) }
    }
}

/// All phases of a unit.
struct Fused<'a, S: Scalar> {
    reduce: Reduce<'a, S>,
    over_count: f64,
    coefficients: &'a SharedCoefficients<'a, S::Real>,
    dx: &'a SharedMut<'a, S>,
}

impl<S: Scalar> Kernel<S> for Fused<'_, S> {
    #[inline(always)]
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self) {
        let Self { reduce, over_count, coefficients, dx } = self;
        let Reduce { plan, unit, inputs, out, .. } = reduce;
        let channels = unit.channels.clone();
        let [mean, invstd, weight] = [inputs.mean, inputs.invstd, inputs.weight].map(|row| &row[channels.clone()]);
        // SAFETY: the unit's channels are its alone in every row and in `dx`; the rest is the caller's promise.
        unsafe {
            reduce.run::<V>();
            let sum_dy = out.slice(channels.clone());
            let sum_dy_xmu = out.slice(plan.channels + channels.start..plan.channels + channels.end);
            coefficients::about_exact_mean::<S::Real>(mean, sum_dy, sum_dy_xmu);
            let rows = [mean, invstd, weight, sum_dy, sum_dy_xmu];
            coefficients::backward(coefficients, channels.clone(), rows, over_count);
            Apply { plan, unit, inputs, dx, coefficients }.run::<V>();
        }
    }
}
