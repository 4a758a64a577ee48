//! Kernels for channels-last tensors, where a row is one value of every channel.
//!
//! As in [`super::planes`], Σu and Σu·(x − p) with u = x − p forward and u = dy backward. Sums are kept for a tile of
//! channels in registers over a batch of rows, then in scratch rows of the block's type, then in float64.

use super::coefficients::SharedCoefficients;
use super::moments::add_about;
use super::plan::{Plan, Unit};
use crate::simd::{MAX_LANES, Real, Scalar, Vector, prefetch};
use std::iter::Peekable;

/// Rows summed about one pivot, at most.
const BLOCK_ROWS: usize = 256;
/// Vectors of channels whose coefficients are held at once.
const APPLY_TILE: usize = 4;
/// Rows a block may have for each row its pivot is the mean of: see [`super::moments::Moments::add`].
const GROWTH: usize = 4;

/// Rows are read as four streams, four rows of each at a time.
#[derive(Clone, Copy, Debug)]
struct Batch {
    first: usize,
    streams: usize,
    apart: usize,
    rows: usize,
}

impl Batch {
    fn count(&self) -> usize {
        self.streams * self.rows
    }
}

fn batches(rows: usize) -> impl Iterator<Item = Batch> {
    let quarter = rows / 4;
    let body = (0..quarter).step_by(4).map(move |first| Batch {
        first,
        streams: 4,
        apart: quarter,
        rows: 4.min(quarter - first),
    });
    let rest = Batch { first: 4 * quarter, streams: 1, apart: 0, rows: rows - 4 * quarter };
    body.chain((rest.rows > 0).then_some(rest))
}

/// Where a unit's rows are: `x` and `dy` at its first element, rows `stride` apart.
#[derive(Clone, Copy)]
struct Rows<S> {
    x: *const S,
    dy: *const S,
    stride: usize,
}

/// Scratch rows of a unit, each padded to whole vectors.
struct Scratch<R> {
    width: usize,
    padded: usize,
    pivot: Vec<R>,
    /// Σu, then Σu·(x − p).
    sums: Vec<R>,
}

impl<R: Real> Scratch<R> {
    fn new(width: usize) -> Self {
        let (padded, zero) = (width.next_multiple_of(MAX_LANES), R::from_f64(0.0));
        Self { width, padded, pivot: vec![zero; padded], sums: vec![zero; 2 * padded] }
    }

    /// Σu and Σu·(x − p) of each channel so far.
    #[inline(always)]
    fn sums(&self) -> (&[R], &[R]) {
        (&self.sums[..self.width], &self.sums[self.padded..][..self.width])
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.sums.fill(R::from_f64(0.0));
    }
}

/// Adds a batch to the sums of K vectors of channels from `channel` on, or to those of `k` channels.
///
/// # Safety
/// The batch is in memory, and K vectors (or k channels) of it and of the scratch; the CPU has the instructions of `V`.
#[inline(always)]
unsafe fn add_tile<V: Vector, const GRAD: bool, const K: usize>(
    at: Rows<V::Storage>,
    batch: Batch,
    (channel, k): (usize, usize),
    scratch: &mut Scratch<V::Real>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (lanes, zero) = (V::LANES, V::splat(V::Real::from_f64(0.0)));
        let minus_one = V::splat(V::Real::from_f64(-1.0));
        let (x, dy, pivot) = (at.x.add(channel), at.dy.wrapping_add(channel), scratch.pivot.as_ptr().add(channel));
        let (mut minus, mut s, mut q) = ([zero; K], [zero; K], [zero; K]);
        for (j, minus) in minus.iter_mut().enumerate() {
            *minus = minus_one.mul_add(V::load_real(pivot.add(j * lanes)), zero);
        }
        for stream in 0..batch.streams {
            for row in 0..batch.rows {
                for j in 0..K {
                    let offset = (batch.first + stream * batch.apart + row) * at.stride + j * lanes;
                    let e = V::load(x.add(offset), k, zero).add(minus[j]);
                    let u = if GRAD { V::load(dy.add(offset), k, zero) } else { e };
                    s[j] = s[j].add(u);
                    q[j] = u.mul_add(e, q[j]);
                }
            }
        }
        let sums = scratch.sums.as_mut_ptr().add(channel);
        for j in 0..K {
            let (s_at, q_at) = (sums.add(j * lanes), sums.add(scratch.padded + j * lanes));
            V::load_real(s_at).add(s[j]).store_real(s_at);
            V::load_real(q_at).add(q[j]).store_real(q_at);
        }
    }
}

/// Adds a batch to the sums of all channels of the unit.
///
/// # Safety
/// The batch is in memory; the CPU has the instructions of `V`.
#[inline(always)]
unsafe fn add_batch<V: Vector, const GRAD: bool>(at: Rows<V::Storage>, batch: Batch, scratch: &mut Scratch<V::Real>) {
    let (mut channel, width) = (0, scratch.width);
    // SAFETY: tiles cover the unit's channels, the last one with the lanes that are left.
    unsafe {
        while channel + 4 * V::LANES <= width {
            add_tile::<V, GRAD, 4>(at, batch, (channel, V::LANES), scratch);
            channel += 4 * V::LANES;
        }
        while channel < width {
            add_tile::<V, GRAD, 1>(at, batch, (channel, width - channel), scratch);
            channel += V::LANES;
        }
    }
}

/// Adds batches to cleared sums until they hold `wanted` rows, or all are added; returns how many rows they hold.
///
/// # Safety
/// As for [`add_batch`].
#[inline(always)]
unsafe fn add_block<V: Vector, const GRAD: bool>(
    at: Rows<V::Storage>,
    remaining: &mut Peekable<impl Iterator<Item = Batch>>,
    wanted: usize,
    scratch: &mut Scratch<V::Real>,
) -> usize {
    let mut rows = 0;
    scratch.clear();
    while rows < wanted
        && let Some(batch) = remaining.next()
    {
        // SAFETY: the caller's promise.
        unsafe { add_batch::<V, GRAD>(at, batch, scratch) };
        rows += batch.count();
    }
    rows
}

/// Mean and M2 of each channel of the unit, over its rows; `x` is the tensor's first element.
///
/// The first pivot is the mean of the first batch, summed about the first row: exact for a constant channel. Later ones
/// are the mean so far; blocks grow up to [`BLOCK_ROWS`].
///
/// # Safety
/// The tensor has the plan's shape; the CPU has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn moments<V: Vector>(
    plan: &Plan,
    unit: &Unit,
    x: *const V::Storage,
    mean: &mut [f64],
    m2: &mut [f64],
) where
    V::Storage: Scalar<Real = V::Real>,
{
    // SAFETY: the unit lies in the tensor.
    let x = unsafe { x.add(unit.values.start * plan.channels + unit.channels.start) };
    let (rows, at) = (unit.values.len(), Rows { x, dy: x, stride: plan.channels });
    let mut scratch = Scratch::<V::Real>::new(unit.channels.len());
    // SAFETY: the first rows lie in the tensor.
    let mut known = unsafe { set_first_pivot::<V>(at, rows, &mut scratch) };
    let (mut count, mut remaining) = (0, batches(rows).peekable());
    while remaining.peek().is_some() {
        // SAFETY: batches lie in the unit; the rest is the caller's promise.
        let n = unsafe { add_block::<V, false>(at, &mut remaining, BLOCK_ROWS.min(GROWTH * known), &mut scratch) };
        merge_block(&mut scratch, (count as f64, n as f64), mean, m2);
        count += n;
        known = count;
    }
}

/// Returns how many rows the pivot is the mean of.
///
/// # Safety
/// The unit has `rows` rows, at least one; the CPU has the instructions of `V`.
#[inline(always)]
unsafe fn set_first_pivot<V: Vector>(at: Rows<V::Storage>, rows: usize, scratch: &mut Scratch<V::Real>) -> usize
where
    V::Storage: Scalar<Real = V::Real>,
{
    for channel in 0..scratch.width {
        // SAFETY: the first row lies in the tensor.
        scratch.pivot[channel] = V::Real::from_f64(unsafe { at.x.add(channel).read() }.to_f64());
    }
    let mut first = batches(rows).peekable();
    // SAFETY: the batch lies in the unit; the instructions are the caller's promise.
    let n = unsafe { add_block::<V, false>(at, &mut first, 1, scratch) };
    let weight = 1.0 / n as f64;
    for (pivot, sum) in scratch.pivot.iter_mut().zip(&scratch.sums) {
        *pivot = V::Real::from_f64(pivot.to_f64() + sum.to_f64() * weight);
    }
    n
}

/// Merges a block of n rows into the count rows so far, and moves the pivot to the new mean.
#[inline(always)]
fn merge_block<R: Real>(scratch: &mut Scratch<R>, (count, n): (f64, f64), mean: &mut [f64], m2: &mut [f64]) {
    let weight = 1.0 / (count + n);
    let width = scratch.width;
    // Rows of one known length: a check of bounds within the loop would keep it from becoming vectors.
    let (s, q) = (&scratch.sums[..width], &scratch.sums[scratch.padded..][..width]);
    let (pivot, mean, m2) = (&mut scratch.pivot[..width], &mut mean[..width], &mut m2[..width]);
    for c in 0..width {
        let p = pivot[c].to_f64();
        let before = if count == 0.0 { p } else { mean[c] };
        (mean[c], m2[c]) = add_about(before, m2[c], n, weight, p, s[c].to_f64(), q[c].to_f64());
        pivot[c] = R::from_f64(mean[c]);
    }
}

/// Σdy and Σdy·(x − pivot) of each channel of the unit, over its rows; `x` and `dy` are the tensors' first elements.
///
/// # Safety
/// As for [`moments`], for both tensors.
#[inline(always)]
pub(super) unsafe fn grad_sums<V: Vector>(
    plan: &Plan,
    unit: &Unit,
    (x, dy): (*const V::Storage, *const V::Storage),
    pivot: &[V::Real],
    [sum_dy, sum_dy_xmu]: [&mut [f64]; 2],
) {
    let offset = unit.values.start * plan.channels + unit.channels.start;
    // SAFETY: the unit lies in the tensors.
    let at = unsafe { Rows { x: x.add(offset), dy: dy.add(offset), stride: plan.channels } };
    let mut scratch = Scratch::<V::Real>::new(unit.channels.len());
    scratch.pivot[..pivot.len()].copy_from_slice(pivot);
    let mut remaining = batches(unit.values.len()).peekable();
    while remaining.peek().is_some() {
        // SAFETY: batches lie in the unit; the rest is the caller's promise.
        unsafe { add_block::<V, true>(at, &mut remaining, BLOCK_ROWS, &mut scratch) };
        let (s, q) = scratch.sums();
        sum_dy.iter_mut().zip(s).for_each(|(sum, s)| *sum += s.to_f64());
        sum_dy_xmu.iter_mut().zip(q).for_each(|(sum, q)| *sum += q.to_f64());
    }
}

/// Writes (x + m)·b + dy·a + k for a unit; without dy·a unless `GRAD`.
///
/// # Safety
/// The tensors have the plan's shape, nobody else uses the unit's elements of `out` or writes its coefficients; the
/// CPU has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn apply<V: Vector, const GRAD: bool>(
    plan: &Plan,
    unit: &Unit,
    (x, dy): (*const V::Storage, *const V::Storage),
    out: *mut V::Storage,
    coefficients: &SharedCoefficients<'_, V::Real>,
) {
    let (width, offset) = (unit.channels.len(), unit.values.start * plan.channels + unit.channels.start);
    // SAFETY: the unit lies in the tensors.
    let (x, dy, out) = unsafe { (x.add(offset), dy.wrapping_add(offset), out.add(offset)) };
    let at = Rows { x, dy, stride: plan.channels };
    for batch in batches(unit.values.len()) {
        let mut c = 0;
        // SAFETY: tiles cover the unit's channels, the last one with the lanes that are left; coefficient rows are
        // padded; the rest is the caller's promise.
        unsafe {
            while c + APPLY_TILE * V::LANES <= width {
                let coefficients = coefficients.at(unit.channels.start + c);
                apply_tile::<V, GRAD, APPLY_TILE>(at, out, batch, (c, V::LANES), coefficients);
                c += APPLY_TILE * V::LANES;
            }
            while c < width {
                let coefficients = coefficients.at(unit.channels.start + c);
                apply_tile::<V, GRAD, 1>(at, out, batch, (c, width - c), coefficients);
                c += V::LANES;
            }
        }
    }
}

/// Writes a batch of rows for K vectors of channels from `channel` on, or for `k` channels. The coefficients are rows
/// from a first element on, so many elements apart.
///
/// # Safety
/// As for [`add_tile`], and for the output and the coefficients likewise.
#[inline(always)]
unsafe fn apply_tile<V: Vector, const GRAD: bool, const K: usize>(
    at: Rows<V::Storage>,
    out: *mut V::Storage,
    batch: Batch,
    (channel, k): (usize, usize),
    (first, apart): (*const V::Real, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (x, dy, out) = (at.x.add(channel), at.dy.wrapping_add(channel), out.add(channel));
        let zero = V::splat(V::Real::from_f64(0.0));
        let (mut m, mut a, mut b, mut constant) = ([zero; K], [zero; K], [zero; K], [zero; K]);
        for j in 0..K {
            let load = |row: usize| V::load_real(first.add(row * apart + j * V::LANES));
            (m[j], a[j], b[j], constant[j]) = (load(0), load(1), load(2), load(3));
        }
        for stream in 0..batch.streams {
            for row in 0..batch.rows {
                for j in 0..K {
                    let offset = (batch.first + stream * batch.apart + row) * at.stride + j * V::LANES;
                    prefetch(out.add(offset).cast_const());
                    let v = V::load(x.add(offset), k, m[j]).add(m[j]).mul_add(b[j], constant[j]);
                    let v = if GRAD { V::load(dy.add(offset), k, zero).mul_add(a[j], v) } else { v };
                    v.store(out.add(offset), k);
                }
            }
        }
    }
}
