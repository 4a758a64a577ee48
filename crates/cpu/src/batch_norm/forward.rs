//! Statistics and normalisation: in two phases, as an exchange between ranks requires, or fused, where a unit of
//! contiguous channels goes through all phases while it is in cache. Both do the same arithmetic, bit for bit.

use super::coefficients::{self, Coefficients, SharedCoefficients};
use super::moments::Parts;
use super::plan::{Plan, Unit};
use super::{planes, rows};
use crate::pool::{SharedMut, parallel};
use crate::simd::{Kernel, Scalar, Vector, dispatch};

/// Scale and shift of every channel.
pub(super) struct Affine {
    pub(super) weight: Vec<f64>,
    pub(super) bias: Vec<f64>,
}

/// Mean and M2 of every channel: two rows.
pub(super) fn stats<S: Scalar>(plan: &Plan, x: &[S]) -> Vec<f64> {
    let mut parts = Parts::new(plan, 2);
    let out = &SharedMut::new(&mut parts.values);
    parallel(size_of_val(x), plan.units(), &|index| {
        // SAFETY: `x` has the plan's shape, and units have distinct rows of `out`.
        unsafe { dispatch(Stats { plan, unit: &plan.unit(index), x, out }) }
    });
    parts.merge(plan)
}

/// y = weight·(x − mean)·invstd + bias.
pub(super) fn elemt<S: Scalar>(plan: &Plan, x: &[S], y: &mut [S], [mean, invstd]: [&[f64]; 2], affine: &Affine) {
    let mut coefficients = Coefficients::new(plan.channels);
    let coefficients = &coefficients.shared();
    // SAFETY: nobody else uses the coefficients.
    unsafe { dispatch::<S, _>(Prepare { mean, invstd, affine, coefficients }) };
    let y = &SharedMut::new(y);
    let units = plan.units();
    parallel(size_of_val(x), units, &|index| {
        // The last units first: what the statistics read last is still in the cache.
        let unit = &plan.unit(units - 1 - index);
        // SAFETY: both tensors have the plan's shape, and units have distinct elements of `y`.
        unsafe { dispatch(Apply { plan, unit, x, y, coefficients }) }
    });
}

/// 1/√(M2/count + eps) of every channel.
pub(super) fn invstd<S: Scalar>(m2: &[f64], count: f64, eps: f64) -> Vec<f64> {
    let mut invstd = vec![0.0; m2.len()];
    // SAFETY: the kernel works on slices.
    unsafe { dispatch::<S, _>(Invstd { m2, count, eps, invstd: &mut invstd }) };
    invstd
}

/// [`stats`], [`invstd`] and [`elemt`] in one: returns the rows mean, M2 and invstd.
pub(super) fn fused<S: Scalar>(plan: &Plan, x: &[S], y: &mut [S], eps: f64, affine: &Affine) -> Vec<f64> {
    if !plan.fuses() {
        return one_after_the_other(plan, x, y, eps, affine);
    }
    let mut found = vec![0.0; 3 * plan.channels];
    let mut coefficients = Coefficients::new(plan.channels);
    let (coefficients, rows, y) = (&coefficients.shared(), &SharedMut::new(&mut found), &SharedMut::new(y));
    parallel(size_of_val(x), plan.units(), &|index| {
        let unit = &plan.unit(index);
        // SAFETY: both tensors have the plan's shape, and units have distinct channels.
        unsafe { dispatch(Fused { stats: Stats { plan, unit, x, out: rows }, eps, affine, coefficients, y }) }
    });
    found
}

fn one_after_the_other<S: Scalar>(plan: &Plan, x: &[S], y: &mut [S], eps: f64, affine: &Affine) -> Vec<f64> {
    let mut found = stats(plan, x);
    let (mean, m2) = found.split_at(plan.channels);
    let invstd = invstd::<S>(m2, plan.count as f64, eps);
    elemt(plan, x, y, [mean, &invstd], affine);
    found.extend(invstd);
    found
}

/// Mean and M2 of a unit, into the rows of its part.
struct Stats<'a, S> {
    plan: &'a Plan,
    unit: &'a Unit,
    x: &'a [S],
    out: &'a SharedMut<'a, f64>,
}

impl<S: Scalar> Kernel<S> for Stats<'_, S> {
    #[inline(always)]
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self) {
        let Self { plan, unit, x, out } = self;
        let first = 2 * unit.part * plan.channels + unit.channels.start;
        // SAFETY: the rows are this unit's alone, `x` has the plan's shape, and the CPU has the instructions of `V`.
        unsafe {
            let mean = out.slice(first..first + unit.channels.len());
            let m2 = out.slice(first + plan.channels..first + plan.channels + unit.channels.len());
            if plan.channels_last {
                return rows::moments::<V>(plan, unit, x.as_ptr(), mean, m2);
            }
            for (i, channel) in unit.channels.clone().enumerate() {
                (mean[i], m2[i]) = planes::moments::<V>(plan, unit, x.as_ptr().add(channel * plan.spatial));
            }
        }
    }
}

/// y of a unit.
struct Apply<'a, S: Scalar> {
    plan: &'a Plan,
    unit: &'a Unit,
    x: &'a [S],
    y: &'a SharedMut<'a, S>,
    coefficients: &'a SharedCoefficients<'a, S::Real>,
}

impl<S: Scalar> Kernel<S> for Apply<'_, S> {
    #[inline(always)]
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self) {
        let Self { plan, unit, x, y, coefficients } = self;
        let (x, y) = (x.as_ptr(), y.as_mut_ptr());
        // SAFETY: the tensors have the plan's shape, the unit's elements of `y` are its alone, coefficients are ready.
        unsafe {
            if plan.channels_last {
                rows::apply::<V, false>(plan, unit, (x, x), y, coefficients);
            } else {
                planes::apply::<V, false>(plan, unit, x, x, y, coefficients);
            }
        }
    }
}

/// The coefficients of all channels.
struct Prepare<'a, R> {
    mean: &'a [f64],
    invstd: &'a [f64],
    affine: &'a Affine,
    coefficients: &'a SharedCoefficients<'a, R>,
}

impl<S: Scalar> Kernel<S> for Prepare<'_, S::Real> {
    #[inline(always)]
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self) {
        let rows = [self.mean, self.invstd, &self.affine.weight, &self.affine.bias];
        // SAFETY: nobody else uses the coefficients yet.
        unsafe { coefficients::forward(self.coefficients, 0..self.mean.len(), rows) }
    }
}

/// [`coefficients::invstd`] of all channels.
struct Invstd<'a> {
    m2: &'a [f64],
    count: f64,
    eps: f64,
    invstd: &'a mut [f64],
}

impl<S: Scalar> Kernel<S> for Invstd<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self) {
        coefficients::invstd(self.m2, self.count, self.eps, self.invstd);
    }
}

/// All phases of a unit; `stats.out` has a third row, for invstd.
struct Fused<'a, S: Scalar> {
    stats: Stats<'a, S>,
    eps: f64,
    affine: &'a Affine,
    coefficients: &'a SharedCoefficients<'a, S::Real>,
    y: &'a SharedMut<'a, S>,
}

impl<S: Scalar> Kernel<S> for Fused<'_, S> {
    #[inline(always)]
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self) {
        let Self { stats, eps, affine, coefficients, y } = self;
        let Stats { plan, unit, x, out } = stats;
        let channels = unit.channels.clone();
        let row = |row: usize| row * plan.channels + channels.start..row * plan.channels + channels.end;
        // SAFETY: the unit's channels are its alone in every row and in `y`; the rest is the caller's promise.
        unsafe {
            stats.run::<V>();
            let [mean, m2, invstd] = [0, 1, 2].map(|i| out.slice(row(i)));
            coefficients::invstd(m2, plan.count as f64, eps, invstd);
            let affine = [&affine.weight[channels.clone()], &affine.bias[channels.clone()]];
            coefficients::forward(coefficients, channels.clone(), [mean, invstd, affine[0], affine[1]]);
            Apply { plan, unit, x, y, coefficients }.run::<V>();
        }
    }
}
