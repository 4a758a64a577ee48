//! Merging what blocks and parts found, in float64.

use super::plan::Plan;

/// Count, mean and M2 = Σ (x − mean)² of the values so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    pub(super) count: f64,
    pub(super) mean: f64,
    pub(super) m2: f64,
}

impl Moments {
    /// Adds n values with s = Σ(x − p) and q = Σ(x − p)².
    ///
    /// Chan's merge (see [`syncbn_core::channel_stats`]) for sums about a pivot. What cancels in q is n·(p − mean)². With
    /// p the mean of m of the values, the merged M2 is at least m·(p − mean)², so no more than n/m times M2 cancels,
    /// whatever the values are. Callers keep n/m at 4 or below.
    #[inline(always)]
    pub(super) fn add(&mut self, n: f64, p: f64, s: f64, q: f64) {
        if self.count == 0.0 {
            self.mean = p;
        }
        let weight = 1.0 / (self.count + n);
        (self.mean, self.m2) = add_about(self.mean, self.m2, n, weight, p, s, q);
        self.count += n;
    }
}

/// [`Moments::add`] with weight = 1 / (count + n), for loops over channels that share their counts.
#[inline(always)]
pub(super) fn add_about(mean: f64, m2: f64, n: f64, weight: f64, p: f64, s: f64, q: f64) -> (f64, f64) {
    let e = mean - p;
    let (s, q) = (s - n * e, q - 2.0 * e * s + n * e * e);
    let m2 = m2 + (q - s * s * weight);
    // Rounding can leave a little less than nothing; a NaN stays one.
    (mean + s * weight, if m2 < 0.0 { 0.0 } else { m2 })
}

/// Rows of partial results: for each part `rows` rows of one number a channel.
pub(super) struct Parts {
    pub(super) values: Vec<f64>,
    rows: usize,
    channels: usize,
}

impl Parts {
    pub(super) fn new(plan: &Plan, rows: usize) -> Self {
        Self { values: vec![0.0; plan.parts * rows * plan.channels], rows, channels: plan.channels }
    }

    /// The rows added up over the parts, in order.
    pub(super) fn sum(mut self) -> Vec<f64> {
        let (first, others) = self.values.split_at_mut(self.rows * self.channels);
        for part in others.chunks_exact(self.rows * self.channels) {
            first.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        self.values.truncate(self.rows * self.channels);
        self.values
    }

    /// The rows (mean, M2) merged over the parts, in order.
    pub(super) fn merge(mut self, plan: &Plan) -> Vec<f64> {
        let (first, others) = self.values.split_at_mut(2 * self.channels);
        let (mean, m2) = first.split_at_mut(self.channels);
        let mut counts = plan.part_counts().map(|count| count as u64);
        let mut count = counts.next().unwrap_or(0);
        for (part, n) in others.chunks_exact(2 * self.channels).zip(counts) {
            let (part_mean, part_m2) = part.split_at(self.channels);
            syncbn_core::channel_stats::merge_into(count, mean, m2, n, part_mean, part_m2);
            count += n;
        }
        self.values.truncate(2 * self.channels);
        self.values
    }
}
