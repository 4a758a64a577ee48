//! Which samples each rank sees: the rule of `torch.utils.data.DistributedSampler`, bit for bit.

use crate::error::{Code, Error, Result};
use crate::generator::Generator;

/// How a data set is dealt to ranks.
#[derive(Clone, Copy, Debug)]
pub struct DistributedSampling {
    /// Samples in the data set.
    pub length: usize,
    /// Ranks that share it.
    pub num_replicas: usize,
    /// This rank.
    pub rank: usize,
    /// Permute with seed + epoch first.
    pub shuffle: bool,
    /// Seed of the permutation, the same on all ranks.
    pub seed: u64,
    /// Changes the permutation; see `setEpoch`.
    pub epoch: u64,
    /// Drop the tail instead of repeating samples from the start.
    pub drop_last: bool,
}

impl DistributedSampling {
    /// Samples each rank gets: ⌈L/R⌉, or ⌈(L − R)/R⌉ where a tail is dropped.
    pub fn num_samples(&self) -> usize {
        let (length, replicas) = (self.length, self.num_replicas);
        if self.drop_last && !length.is_multiple_of(replicas) {
            return length.saturating_sub(replicas).div_ceil(replicas);
        }
        length.div_ceil(replicas)
    }

    /// This rank's indices: every R-th of the padded or truncated permutation.
    ///
    /// # Errors
    /// [`Code::Argument`] for no replicas, a rank that is none of them, or a data set beyond 2³² samples.
    pub fn indices(&self) -> Result<Vec<u32>> {
        if self.num_replicas == 0 {
            return Err(Error::expected(Code::Argument, "DistributedSampler", "numReplicas of at least 1", 0));
        }
        if self.rank >= self.num_replicas {
            let interval = format!("a rank in the interval [0, {}]", self.num_replicas - 1);
            return Err(Error::expected(Code::Argument, "DistributedSampler", interval, self.rank));
        }
        if u32::try_from(self.length).is_err() {
            return Err(Error::expected(Code::Argument, "DistributedSampler", "fewer than 2^32 samples", self.length));
        }
        let order = if self.shuffle {
            Generator::new(self.seed.wrapping_add(self.epoch)).randperm(self.length)
        } else {
            (0..self.length as u32).collect()
        };
        let total = if self.length == 0 { 0 } else { self.num_samples() * self.num_replicas };
        Ok((self.rank..total).step_by(self.num_replicas).map(|i| order[i % self.length]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deal(length: usize, num_replicas: usize, drop_last: bool) -> Vec<Vec<u32>> {
        let rule = DistributedSampling { length, num_replicas, rank: 0, shuffle: false, seed: 0, epoch: 0, drop_last };
        (0..num_replicas).map(|rank| DistributedSampling { rank, ..rule }.indices().unwrap()).collect()
    }

    #[test]
    fn pads_from_the_start_or_drops_the_tail() {
        assert_eq!(deal(10, 4, false), [[0, 4, 8], [1, 5, 9], [2, 6, 0], [3, 7, 1]]);
        assert_eq!(deal(10, 4, true), [[0, 4], [1, 5], [2, 6], [3, 7]]);
        assert_eq!(deal(3, 8, false).concat(), [0, 1, 2, 0, 1, 2, 0, 1]);
        assert!(deal(3, 8, true).concat().is_empty());
        assert!(deal(0, 2, false).concat().is_empty());
    }

    #[test]
    fn epochs_and_seeds_add_up() {
        let rule = DistributedSampling {
            length: 103,
            num_replicas: 2,
            rank: 1,
            shuffle: true,
            seed: 5,
            epoch: 2,
            drop_last: false,
        };
        let same = DistributedSampling { seed: 0, epoch: 7, ..rule };
        assert_eq!(rule.indices().unwrap(), same.indices().unwrap());
        assert_ne!(rule.indices().unwrap(), DistributedSampling { epoch: 3, ..rule }.indices().unwrap());
    }

    #[test]
    fn a_rank_outside_is_an_error() {
        let rule = DistributedSampling {
            length: 4,
            num_replicas: 2,
            rank: 2,
            shuffle: false,
            seed: 0,
            epoch: 0,
            drop_last: false,
        };
        assert!(rule.indices().unwrap_err().message().contains("[0, 1]"));
        assert!(DistributedSampling { num_replicas: 0, ..rule }.indices().is_err());
    }
}
