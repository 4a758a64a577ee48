//! Versions of NCCL.

use std::fmt;

/// A version of NCCL, ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

impl Version {
    /// The oldest version this crate works with: the first whose `ncclCommAbort` may be called while another thread's
    /// call is in progress in the background.
    pub const OLDEST: Self = Self::new(2, 20, 3);
    /// The first that lets several ranks share a device, with `NCCL_MULTI_RANK_GPU_ENABLE=1` in the environment.
    pub const MULTI_RANK_PER_GPU: Self = Self::new(2, 30, 3);

    /// `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// What `ncclGetVersion` means by `code`: 22809 is 2.28.9; up to NCCL 2.8, 2708 was 2.7.8.
    pub const fn from_code(code: u32) -> Self {
        let thousands = if code < 10_000 { 1_000 } else { 10_000 };
        Self::new(code / thousands, code % thousands / 100, code % 100)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn codes_of_both_kinds_are_read() {
        assert_eq!(Version::from_code(22_809), Version::new(2, 28, 9));
        assert_eq!(Version::from_code(22_003), Version::OLDEST);
        assert_eq!(Version::from_code(2_708), Version::new(2, 7, 8));
        assert_eq!(Version::from_code(22_809).to_string(), "2.28.9");
    }

    #[test]
    fn the_order_is_by_number_and_not_by_text() {
        assert!(Version::new(2, 9, 6) < Version::OLDEST);
        assert!(Version::OLDEST < Version::MULTI_RANK_PER_GPU);
    }
}
