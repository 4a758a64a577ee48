//! How a block's threads are shared out among the lines it reduces, kernels/lanes.cuh.

use super::family::THREADS;
use crate::launch::LaunchConfig;

/// Terms a thread adds at least, before a line gets more threads.
const TERMS_A_LANE: usize = 4;
/// Neighbouring lines a block reads together where those are dense in memory, so that it reads whole lines of it.
const LINES_TOGETHER: usize = 32;
/// Blocks of x; more lines than these take are walked over.
const MAX_BLOCKS: usize = 1 << 16;

/// The threads of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lanes {
    /// Threads of a line, a power of two.
    pub(super) lanes: u32,
    /// Whether neighbouring threads are neighbours in the line.
    pub(super) adjacent: u32,
}

impl Lanes {
    /// For `lines` lines of `terms` terms; `adjacent` if a line is denser in memory than its neighbours are.
    pub(super) fn new(lines: usize, terms: usize, adjacent: bool) -> Self {
        let wanted = terms.div_ceil(TERMS_A_LANE).next_power_of_two().min(THREADS);
        let most = if adjacent { THREADS } else { THREADS / lines.next_power_of_two().clamp(1, LINES_TOGETHER) };
        Self { lanes: wanted.min(most) as u32, adjacent: u32::from(adjacent) }
    }

    /// Blocks that take all of `lines` lines.
    pub(super) fn blocks(self, lines: usize) -> usize {
        lines.div_ceil(THREADS / self.lanes as usize).clamp(1, MAX_BLOCKS)
    }

    /// A launch for `lines` lines.
    pub(super) fn config(self, lines: usize) -> LaunchConfig {
        LaunchConfig::linear(self.blocks(lines) as u32, THREADS as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_get_a_block_and_short_ones_share_it() {
        assert_eq!(Lanes::new(3, 100_000, true).lanes, 256);
        assert_eq!(Lanes::new(1000, 10, true).lanes, 4);
        assert_eq!(Lanes::new(1000, 1, true).lanes, 1);
        assert_eq!(Lanes::new(1000, 0, true).lanes, 1);
    }

    #[test]
    fn neighbouring_lines_are_read_together() {
        assert_eq!(Lanes::new(1000, 100_000, false).lanes, 8);
        assert_eq!(Lanes::new(10, 100_000, false).lanes, 16);
        assert_eq!(Lanes::new(1, 100_000, false).lanes, 256);
        assert_eq!(Lanes::new(1000, 100_000, false).blocks(1000), 32);
    }
}
