//! Per-channel statistics and how two sets of them become one.
//!
//! A set is (count, mean, M2) with M2 = Σ (x − mean)². Chan, Golub & LeVeque, "Updating Formulae and a Pairwise
//! Algorithm for Computing Sample Variances" (1979), eq. 2.1: with δ = mean_b − mean_a and n = n_a + n_b,
//! mean = mean_a + δ·n_b/n and M2 = M2_a + M2_b + δ²·n_a·n_b/n.

use crate::error::{Code, Error, Result};

/// Count, mean and M2 of every channel of one batch, or of several merged.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelStats {
    /// Values per channel.
    pub count: u64,
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Σ (x − mean)² of each channel.
    pub m2: Vec<f64>,
}

impl ChannelStats {
    /// Statistics of no values at all: the neutral element of [`merge`](Self::merge).
    pub fn empty(channels: usize) -> Self {
        Self { count: 0, mean: vec![0.0; channels], m2: vec![0.0; channels] }
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Adds the values `other` stands for. The order of merges decides the last bits: ranks merge in rank order.
    ///
    /// # Errors
    /// [`Code::Shape`] if the numbers of channels differ.
    pub fn merge(&mut self, other: &ChannelStats) -> Result<()> {
        if self.channels() != other.channels() || other.m2.len() != other.channels() {
            return Err(Error::expected(
                Code::Shape,
                "mergeStats",
                format!("{} channels", self.channels()),
                format!("{} means and {} m2", other.channels(), other.m2.len()),
            ));
        }
        merge_into(self.count, &mut self.mean, &mut self.m2, other.count, &other.mean, &other.m2);
        self.count += other.count;
        Ok(())
    }

    /// Merges many in order. Without any, the result has no channels.
    pub fn merge_all(stats: &[ChannelStats]) -> Result<Self> {
        let mut merged = Self::empty(stats.first().map_or(0, Self::channels));
        stats.iter().try_for_each(|other| merged.merge(other))?;
        Ok(merged)
    }

    /// Biased variance of `channel`: M2 / count, and 0 for no values.
    pub fn var(&self, channel: usize) -> f64 {
        self.m2[channel] / self.count.max(1) as f64
    }
}

/// Merges `(other_count, other_mean, other_m2)` into `(count, mean, m2)`; the caller adds the counts.
pub fn merge_into(
    count: u64,
    mean: &mut [f64],
    m2: &mut [f64],
    other_count: u64,
    other_mean: &[f64],
    other_m2: &[f64],
) {
    if other_count == 0 {
        return;
    }
    if count == 0 {
        mean.copy_from_slice(other_mean);
        m2.copy_from_slice(other_m2);
        return;
    }
    let (a, b) = (count as f64, other_count as f64);
    let (share, between) = (b / (a + b), a * b / (a + b));
    for c in 0..mean.len() {
        let delta = other_mean[c] - mean[c];
        mean[c] += delta * share;
        m2[c] += other_m2[c] + delta * delta * between;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stats_of(values: &[f64]) -> ChannelStats {
        let count = values.len() as u64;
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        let m2 = values.iter().map(|x| (x - mean).powi(2)).sum();
        ChannelStats { count, mean: vec![mean], m2: vec![m2] }
    }

    proptest! {
        #[test]
        fn merging_parts_equals_the_whole(values in prop::collection::vec(-1e3f64..1e3, 1..60), cut in 0usize..60, offset in -1e6f64..1e6) {
            let values: Vec<f64> = values.iter().map(|x| x + offset).collect();
            let cut = cut.min(values.len());
            let (whole, parts) = (stats_of(&values), [stats_of(&values[..cut]), stats_of(&values[cut..])]);
            let merged = ChannelStats::merge_all(&parts).unwrap();
            prop_assert_eq!(merged.count, whole.count);
            prop_assert!((merged.mean[0] - whole.mean[0]).abs() <= 1e-14 * (1.0 + offset.abs()) + 1e-11);
            prop_assert!((merged.m2[0] - whole.m2[0]).abs() <= 1e-8 * (1.0 + whole.m2[0]));
        }
    }

    #[test]
    fn empty_is_neutral_on_both_sides() {
        let some = stats_of(&[1.0, 2.0, 4.0]);
        let merged = ChannelStats::merge_all(&[ChannelStats::empty(1), some.clone(), ChannelStats::empty(1)]).unwrap();
        assert_eq!(merged, some);
    }

    #[test]
    fn channel_counts_must_agree() {
        let error = ChannelStats::empty(2).merge(&ChannelStats::empty(3)).unwrap_err();
        assert_eq!(error.code(), Code::Shape);
    }
}
