//! Kernels for contiguous tensors, where a channel is N runs of neighbouring elements.
//!
//! With u = x − p forward, about a pivot p, and u = dy backward, about the saved mean, both need Σu and Σu·(x − p).
//! Forward writes (x + m)·b + k, backward adds dy·a. So each loop exists once, and `GRAD` picks.

use super::coefficients::SharedCoefficients;
use super::moments::Moments;
use super::plan::{Block, Plan, Unit};
use crate::simd::{Real, Vector, prefetch};

/// From this length on a run is read as four streams: with one a core leaves a fifth of its memory bandwidth unused.
const STREAMS_LEN: usize = 1024;

/// Visits a run in vectors, `$k` elements from `$i` on; `$j` in 0..4 spreads them over four accumulators.
macro_rules! walk {
    ($V:ident, $len:expr, |$i:ident, $k:ident, $j:ident| $body:block) => {{
        let (len, lanes) = ($len, $V::LANES);
        let covered = len / (4 * lanes) * (4 * lanes);
        let (apart, step, end) =
            if len >= STREAMS_LEN { (covered / 4, lanes, covered / 4) } else { (lanes, 4 * lanes, covered) };
        let mut first = 0;
        while first < end {
            for $j in 0..4 {
                let ($i, $k) = (first + $j * apart, lanes);
                $body
            }
            first += step;
        }
        for $j in 0..3 {
            if $j < (len - covered) / lanes {
                let ($i, $k) = (covered + $j * lanes, lanes);
                $body
            }
        }
        if len % lanes > 0 {
            let ($i, $k, $j) = (len - len % lanes, len % lanes, 3);
            $body
        }
    }};
}

/// (Σu, Σu·(x − pivot)) over `runs` runs of `len` elements, `stride` apart.
///
/// # Safety
/// The runs are in memory, of `dy` too if `GRAD`; the CPU has the instructions of `V`.
#[inline(always)]
unsafe fn sums<V: Vector, const GRAD: bool>(
    x: *const V::Storage,
    dy: *const V::Storage,
    (stride, runs, len): (usize, usize, usize),
    pivot: V::Real,
) -> (f64, f64) {
    // SAFETY: every element touched is one of the runs'; the instructions are the caller's promise.
    unsafe {
        let minus = V::Real::from_f64(-pivot.to_f64());
        let (pivot, minus, zero) = (V::splat(pivot), V::splat(minus), V::splat(V::Real::from_f64(0.0)));
        let (mut s, mut q) = ([zero; 4], [zero; 4]);
        for run in 0..runs {
            let (x, dy) = (x.add(run * stride), dy.wrapping_add(run * stride));
            walk!(V, len, |i, k, j| {
                prefetch(x.add(i));
                if GRAD {
                    prefetch(dy.add(i));
                }
                let e = V::load(x.add(i), k, pivot).add(minus);
                let u = if GRAD { V::load(dy.add(i), k, zero) } else { e };
                s[j] = s[j].add(u);
                q[j] = u.mul_add(e, q[j]);
            });
        }
        let [s, q] = [s, q].map(|v| v[0].add(v[1]).add(v[2].add(v[3])).sum().to_f64());
        (s, q)
    }
}

/// The mean of a quarter of a block, at least: its first planes, or the first values of its planes. It is summed about
/// its first value, so that it is exact for a constant channel; an outlier there costs nothing (see [`Moments::add`]).
///
/// # Safety
/// As for [`sums`].
#[inline(always)]
unsafe fn first_pivot<V: Vector>(x: *const V::Storage, stride: usize, block: Block) -> V::Real {
    let (runs, len) =
        if block.planes >= 4 { (block.planes.div_ceil(4), block.len) } else { (block.planes, block.len.div_ceil(4)) };
    // SAFETY: the caller's promise; a block has a first element.
    unsafe {
        let zero = V::splat(V::Real::from_f64(0.0));
        let first = V::load(x, 1, zero).sum();
        let (s, _) = sums::<V, false>(x, x, (stride, runs, len), first);
        V::Real::from_f64(first.to_f64() + s / (runs * len) as f64)
    }
}

/// Mean and M2 of one channel's values in `unit`; `x` is where the channel's first plane starts.
///
/// # Safety
/// The tensor has the plan's shape; the CPU has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn moments<V: Vector>(plan: &Plan, unit: &Unit, x: *const V::Storage) -> (f64, f64) {
    let stride = plan.channels * plan.spatial;
    let mut sofar = Moments::default();
    for block in plan.blocks(unit) {
        let n = (block.planes * block.len) as f64;
        // SAFETY: blocks lie in the tensor; the rest is the caller's promise.
        unsafe {
            let x = x.add(block.plane * stride + block.start);
            let pivot =
                if 4.0 * sofar.count < n { first_pivot::<V>(x, stride, block) } else { V::Real::from_f64(sofar.mean) };
            let (s, q) = sums::<V, false>(x, x, (stride, block.planes, block.len), pivot);
            sofar.add(n, pivot.to_f64(), s, q);
        }
    }
    (sofar.mean, sofar.m2)
}

/// Σdy and Σdy·(x − pivot) of one channel's values in `unit`; `x` and `dy` are where its first plane starts.
///
/// # Safety
/// As for [`moments`].
#[inline(always)]
pub(super) unsafe fn grad_sums<V: Vector>(
    plan: &Plan,
    unit: &Unit,
    x: *const V::Storage,
    dy: *const V::Storage,
    pivot: V::Real,
) -> (f64, f64) {
    let stride = plan.channels * plan.spatial;
    let mut sum = (0.0, 0.0);
    for block in plan.blocks(unit) {
        let offset = block.plane * stride + block.start;
        // SAFETY: as in `moments`.
        let (s, q) =
            unsafe { sums::<V, true>(x.add(offset), dy.add(offset), (stride, block.planes, block.len), pivot) };
        sum = (sum.0 + s, sum.1 + q);
    }
    sum
}

/// out = (x + m)·b + dy·a + k for one run; without dy·a unless `GRAD`.
///
/// # Safety
/// `len` elements are in memory, of `dy` too if `GRAD`; nobody else uses those of `out`.
#[inline(always)]
unsafe fn apply_run<V: Vector, const GRAD: bool>(
    x: *const V::Storage,
    dy: *const V::Storage,
    out: *mut V::Storage,
    len: usize,
    coefficients: [V::Real; 4],
) {
    // SAFETY: every element touched is one of the runs'; the instructions are the caller's promise.
    unsafe {
        let [m, a, b, k_] = coefficients;
        let (m, a, b, constant) = (V::splat(m), V::splat(a), V::splat(b), V::splat(k_));
        walk!(V, len, |i, k, _j| {
            prefetch(x.add(i));
            prefetch(out.add(i).cast_const());
            if GRAD {
                prefetch(dy.add(i));
            }
            let v = V::load(x.add(i), k, m).add(m).mul_add(b, constant);
            let v = if GRAD { V::load(dy.add(i), k, m).mul_add(a, v) } else { v };
            v.store(out.add(i), k);
        });
    }
}

/// Writes the output of a unit, last planes first: what was read last is still in the cache.
///
/// # Safety
/// The tensors have the plan's shape, nobody else uses the unit's elements of `out` or writes its coefficients; the
/// CPU has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn apply<V: Vector, const GRAD: bool>(
    plan: &Plan,
    unit: &Unit,
    x: *const V::Storage,
    dy: *const V::Storage,
    out: *mut V::Storage,
    coefficients: &SharedCoefficients<'_, V::Real>,
) {
    for (plane, run) in plan.runs_reversed(unit) {
        for channel in unit.channels.clone() {
            let offset = (plane * plan.channels + channel) * plan.spatial + run.start;
            // SAFETY: runs lie in the tensors; the rest is the caller's promise.
            unsafe {
                let (x, dy, out) = (x.add(offset), dy.wrapping_add(offset), out.add(offset));
                apply_run::<V, GRAD>(x, dy, out, run.len(), coefficients.get(channel));
            }
        }
    }
}
