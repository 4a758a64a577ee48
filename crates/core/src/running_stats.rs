//! The rule for running statistics: running = (1 − f)·running + f·new.
//!
//! f is the momentum, or 1/k at the k-th batch for the cumulative average; the new variance is the unbiased one over
//! all ranks, M2 / (count − 1). Source: PyTorch `torch.nn.BatchNorm2d` documentation.

/// The weight of the new batch. `num_batches_tracked` counts this batch already.
pub fn exponential_average_factor(momentum: Option<f64>, num_batches_tracked: u64) -> f64 {
    momentum.unwrap_or(1.0 / num_batches_tracked.max(1) as f64)
}

/// Unbiased variance M2 / (count − 1); `count` is at least 2.
pub fn unbiased_var(m2: f64, count: u64) -> f64 {
    m2 / (count as f64 - 1.0)
}

/// The updated running value.
pub fn update(running: f64, new: f64, factor: f64) -> f64 {
    (1.0 - factor) * running + factor * new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cumulative_average_is_the_mean_of_all_batches() {
        let batches = [3.0, 5.0, 10.0];
        let mut running = 0.0;
        for (index, new) in batches.into_iter().enumerate() {
            running = update(running, new, exponential_average_factor(None, index as u64 + 1));
        }
        assert!((running - 6.0).abs() <= 1e-15);
    }

    #[test]
    fn momentum_one_keeps_only_the_new_value() {
        assert_eq!(update(123.0, 4.5, exponential_average_factor(Some(1.0), 7)), 4.5);
    }
}
