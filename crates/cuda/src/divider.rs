//! Division by a number the kernels do not know when they are compiled.

use syncbn_core::{Error, Result};

/// Mirror of `Divider` in kernels/common.cuh: n / d for n < 2³¹ as a multiplication and a shift.
///
/// Granlund, Montgomery, "Division by Invariant Integers using Multiplication" (1994), figure 4.1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Divider {
    divisor: u32,
    multiplier: u32,
    shift: u32,
    unused: u32,
}

impl Divider {
    /// The divider of `divisor`, which is at least 1 and below 2³¹.
    ///
    /// # Errors
    /// [`syncbn_core::Code::Internal`] for any other divisor: launchers cut larger sizes into parts first.
    pub(crate) fn new(divisor: usize) -> Result<Self> {
        if !(1..1 << 31).contains(&divisor) {
            return Err(Error::internal(format!("division by {divisor} is not in the range of the kernels")));
        }
        let divisor = divisor as u64;
        let shift = divisor.next_power_of_two().trailing_zeros();
        let multiplier = (((1 << shift) - divisor) << 32) / divisor + 1;
        Ok(Self { divisor: divisor as u32, multiplier: multiplier as u32, shift, unused: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the kernels compute.
    fn quotient(n: u32, divider: Divider) -> u32 {
        (((u64::from(n) * u64::from(divider.multiplier)) >> 32) as u32 + n) >> divider.shift
    }

    proptest! {
        #[test]
        fn quotients_are_exact(n in 0u32..1 << 31, bits in 0u32..31, low in any::<u32>()) {
            let divisor = (1 << bits) | (low & ((1 << bits) - 1));
            for n in [n, n / divisor * divisor, (n / divisor * divisor).saturating_sub(1), (1 << 31) - 1] {
                prop_assert_eq!(quotient(n, Divider::new(divisor as usize).unwrap()), n / divisor);
            }
        }
    }

    #[test]
    fn divisors_out_of_range_are_errors() {
        for divisor in [0, 1 << 31, 1 << 40] {
            assert_eq!(Divider::new(divisor).unwrap_err().code(), syncbn_core::Code::Internal);
        }
    }
}
