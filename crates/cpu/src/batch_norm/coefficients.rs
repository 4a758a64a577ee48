//! What the element-wise pass needs of each channel: out = (x + m)·b + dy·a + k.
//!
//! The mean is subtracted first, so that large means cancel before anything is scaled. The part of the float64 mean
//! that the element type cannot hold ("lo") goes into the constant k. Plain loops over rows: the compiler turns the
//! divisions and roots into vectors.

use crate::pool::SharedMut;
use crate::simd::{MAX_LANES, Real};
use std::ops::Range;

/// Four rows of one number a channel, each padded to whole vectors.
pub(super) struct Coefficients<R> {
    values: Vec<R>,
    stride: usize,
}

impl<R: Real> Coefficients<R> {
    pub(super) fn new(channels: usize) -> Self {
        let stride = channels.next_multiple_of(MAX_LANES);
        Self { values: vec![R::from_f64(0.0); 4 * stride], stride }
    }

    pub(super) fn shared(&mut self) -> SharedCoefficients<'_, R> {
        SharedCoefficients { values: SharedMut::new(&mut self.values), stride: self.stride }
    }
}

/// [`Coefficients`] several threads write and read, each those of its own channels, or all only read.
pub(super) struct SharedCoefficients<'a, R> {
    values: SharedMut<'a, R>,
    stride: usize,
}

impl<R: Real> SharedCoefficients<'_, R> {
    /// The address of the first of the rows m, a, b, k at `channel`; they lie `stride` apart.
    #[inline(always)]
    pub(super) fn at(&self, channel: usize) -> (*const R, usize) {
        (self.values.as_mut_ptr().wrapping_add(channel).cast_const(), self.stride)
    }

    /// m, a, b and k of one channel.
    ///
    /// # Safety
    /// Nobody writes them meanwhile.
    #[inline(always)]
    pub(super) unsafe fn get(&self, channel: usize) -> [R; 4] {
        debug_assert!(channel < self.stride);
        let first = self.values.as_mut_ptr().cast_const();
        // SAFETY: four rows of `stride` numbers; no writer, says the caller.
        [0, 1, 2, 3].map(|row| unsafe { first.add(row * self.stride + channel).read() })
    }

    /// The rows m, a, b and k of `channels`.
    ///
    /// # Safety
    /// Nobody else uses them meanwhile.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    unsafe fn rows(&self, channels: Range<usize>) -> [&mut [R]; 4] {
        // SAFETY: the four ranges are distinct; no other user, says the caller.
        [0, 1, 2, 3].map(|row| unsafe {
            self.values.slice(row * self.stride + channels.start..row * self.stride + channels.end)
        })
    }
}

/// 1/√(M2/count + eps) of each channel.
#[inline(always)]
pub(super) fn invstd(m2: &[f64], count: f64, eps: f64, invstd: &mut [f64]) {
    for (invstd, m2) in invstd.iter_mut().zip(m2) {
        *invstd = 1.0 / (m2 / count + eps).sqrt();
    }
}

/// For y = weight·(x − mean)·invstd + bias of `channels`; every row begins at the first of them.
///
/// # Safety
/// Nobody else uses the coefficients of these channels meanwhile.
#[inline(always)]
pub(super) unsafe fn forward<R: Real>(
    out: &SharedCoefficients<'_, R>,
    channels: Range<usize>,
    [mean, invstd, weight, bias]: [&[f64]; 4],
) {
    let len = channels.len();
    // Rows of one known length: a check of bounds within the loop would keep it from becoming vectors.
    let [mean, invstd, weight, bias] = [mean, invstd, weight, bias].map(|row| &row[..len]);
    // SAFETY: the caller's promise.
    let [m, _, b, k] = unsafe { out.rows(channels) }.map(|row| &mut row[..len]);
    for i in 0..len {
        let hi = R::from_f64(mean[i]);
        let (lo, scale) = (mean[i] - hi.to_f64(), weight[i] * invstd[i]);
        m[i] = R::from_f64(-hi.to_f64());
        b[i] = R::from_f64(scale);
        k[i] = R::from_f64(bias[i] - lo * scale);
    }
}

/// For dx = weight·invstd·(dy − Σdy/n − (x − mean)·invstd²·Σdy·(x − mean)/n) of `channels`, with 1/n = `over_count`;
/// with 0 instead, for the dx of constant statistics. Every row begins at the first of the channels.
///
/// # Safety
/// Nobody else uses the coefficients of these channels meanwhile.
#[inline(always)]
pub(super) unsafe fn backward<R: Real>(
    out: &SharedCoefficients<'_, R>,
    channels: Range<usize>,
    [mean, invstd, weight, sum_dy, sum_dy_xmu]: [&[f64]; 5],
    over_count: f64,
) {
    let len = channels.len();
    // One known length, as above.
    let [mean, invstd, weight] = [mean, invstd, weight].map(|row| &row[..len]);
    let [sum_dy, sum_dy_xmu] = [sum_dy, sum_dy_xmu].map(|row| &row[..len]);
    // SAFETY: the caller's promise.
    let [m, a, b, k] = unsafe { out.rows(channels) }.map(|row| &mut row[..len]);
    for i in 0..len {
        let hi = R::from_f64(mean[i]);
        let (lo, scale) = (mean[i] - hi.to_f64(), weight[i] * invstd[i]);
        let slope = -scale * invstd[i] * invstd[i] * sum_dy_xmu[i] * over_count;
        m[i] = R::from_f64(-hi.to_f64());
        a[i] = R::from_f64(scale);
        b[i] = R::from_f64(slope);
        k[i] = R::from_f64(-scale * sum_dy[i] * over_count - slope * lo);
    }
}

/// Turns Σdy·(x − hi) into Σdy·(x − mean), where hi is the mean as the element type holds it.
#[inline(always)]
pub(super) fn about_exact_mean<R: Real>(mean: &[f64], sum_dy: &[f64], sum_dy_xmu: &mut [f64]) {
    for ((dot, sum_dy), &mean) in sum_dy_xmu.iter_mut().zip(sum_dy).zip(mean) {
        *dot -= (mean - R::from_f64(mean).to_f64()) * sum_dy;
    }
}
