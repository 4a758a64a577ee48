//! Index spaces as the kernels take them: the structs of kernels/indexing.cuh, made from shapes and strides.

use syncbn_core::ops;
use syncbn_core::{Code, Error, Result};

/// Dimensions of a [`Space`], after neighbours that are walked as one were joined.
const MAX_DIMENSIONS: usize = 8;

/// Mirror of `WideDivider`: n / d for n < 2⁶³ as a multiplication and a shift.
///
/// Granlund, Montgomery, "Division by Invariant Integers using Multiplication" (1994), figure 4.1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WideDivider {
    divisor: u64,
    multiplier: u64,
    shift: u64,
}

impl WideDivider {
    /// The divider of `divisor`; 0 becomes 1, for sizes of which nothing is visited.
    pub(super) fn new(divisor: usize) -> Self {
        let divisor = (divisor as u64).max(1);
        let shift = divisor.next_power_of_two().trailing_zeros();
        let multiplier = (u128::from((1 << shift) - divisor) << 64) / u128::from(divisor) + 1;
        Self { divisor, multiplier: multiplier as u64, shift: u64::from(shift) }
    }
}

/// Mirror of `Along`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Along {
    outer: u64,
    size: u64,
    inner: WideDivider,
}

impl From<ops::Along> for Along {
    fn from(along: ops::Along) -> Self {
        Self { outer: along.outer as u64, size: along.size as u64, inner: WideDivider::new(along.inner) }
    }
}

/// Sizes and the strides of K tensors, without dimensions of size 1 and with neighbours joined that all walk as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dimensions<const K: usize> {
    /// From slowest to fastest.
    pub(super) list: Vec<Dimension<K>>,
}

/// One dimension: its size and its stride in each tensor, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dimension<const K: usize> {
    pub(super) size: usize,
    pub(super) strides: [usize; K],
}

impl<const K: usize> Dimensions<K> {
    /// In the order given.
    pub(super) fn new(shape: &[usize], strides: [&[usize]; K]) -> Self {
        let dimension = |d: usize| Dimension { size: shape[d], strides: strides.map(|strides| strides[d]) };
        Self::joined((0..shape.len()).map(dimension))
    }

    /// Sorted so that the strides of tensor `k` fall.
    pub(super) fn sorted_by(shape: &[usize], strides: [&[usize]; K], k: usize) -> Self {
        let mut order: Vec<usize> = (0..shape.len()).collect();
        order.sort_by_key(|&d| std::cmp::Reverse(strides[k][d]));
        Self::joined(order.iter().map(|&d| Dimension { size: shape[d], strides: strides.map(|strides| strides[d]) }))
    }

    fn joined(dimensions: impl Iterator<Item = Dimension<K>>) -> Self {
        let mut list: Vec<Dimension<K>> = Vec::new();
        for next in dimensions.filter(|dimension| dimension.size != 1) {
            let continues = |last: &Dimension<K>| (0..K).all(|k| last.strides[k] == next.strides[k] * next.size);
            match list.last_mut().filter(|last| continues(last)) {
                Some(last) => *last = Dimension { size: last.size * next.size, ..next },
                None => list.push(next),
            }
        }
        Self { list }
    }

    /// Number of positions.
    pub(super) fn len(&self) -> usize {
        self.list.iter().map(|dimension| dimension.size).product()
    }

    /// Elements that tensor `k` must have.
    pub(super) fn reach(&self, k: usize) -> usize {
        if self.len() == 0 {
            return 0;
        }
        self.list.iter().map(|dimension| (dimension.size - 1) * dimension.strides[k]).sum::<usize>() + 1
    }

    /// Whether the positions are neighbours in every tensor.
    pub(super) fn is_dense(&self) -> bool {
        match self.list[..] {
            [] => true,
            [only] => only.strides == [1; K],
            _ => false,
        }
    }

    /// The stride of the fastest dimension in tensor `k`.
    pub(super) fn last_stride(&self, k: usize) -> Option<usize> {
        self.list.last().map(|dimension| dimension.strides[k])
    }

    /// As the kernels take it.
    pub(super) fn space(&self, op: &str) -> Result<Space<K>> {
        if self.list.len() > MAX_DIMENSIONS {
            let expected = format!("at most {MAX_DIMENSIONS} dimensions that are not dense together");
            return Err(Error::expected(Code::Shape, op, expected, self.list.len()));
        }
        let mut space = Space {
            dimensions: self.list.len() as u64,
            sizes: [WideDivider::new(1); MAX_DIMENSIONS],
            strides: [[0; MAX_DIMENSIONS]; K],
        };
        for (d, dimension) in self.list.iter().enumerate() {
            space.sizes[d] = WideDivider::new(dimension.size);
            (0..K).for_each(|k| space.strides[k][d] = dimension.strides[k] as u64);
        }
        Ok(space)
    }
}

/// Mirror of `Space`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Space<const K: usize> {
    dimensions: u64,
    sizes: [WideDivider; MAX_DIMENSIONS],
    strides: [[u64; MAX_DIMENSIONS]; K],
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernels compute.
    fn quotient(n: u64, divider: WideDivider) -> u64 {
        (((u128::from(n) * u128::from(divider.multiplier)) >> 64) as u64 + n) >> divider.shift
    }

    #[test]
    fn quotients_are_exact() {
        let largest = (1u64 << 63) - 1;
        let divisors = (1..300).chain([641, 6_700_417, 1 << 31, (1 << 31) + 1, 3 << 40, largest - 1, largest]);
        for divisor in divisors {
            let divider = WideDivider::new(divisor as usize);
            let multiples = [1, 2, 3, 1000, largest / divisor].map(|factor| divisor.saturating_mul(factor) & largest);
            for n in [0, 1, largest - 1, largest].into_iter().chain(multiples) {
                for n in [n.saturating_sub(1), n, (n + 1).min(largest)] {
                    assert_eq!(quotient(n, divider), n / divisor, "{n} / {divisor}");
                }
            }
        }
    }

    #[test]
    fn neighbours_that_walk_as_one_are_joined() {
        let dense = Dimensions::new(&[2, 1, 3, 5], [&[15, 99, 5, 1]]);
        assert_eq!(dense.list, [Dimension { size: 30, strides: [1] }]);
        assert!(dense.is_dense());
        let channels_last = Dimensions::new(&[2, 3, 4, 5], [&[60, 20, 5, 1], &[60, 1, 15, 3]]);
        let sizes: Vec<usize> = channels_last.list.iter().map(|dimension| dimension.size).collect();
        assert_eq!(sizes, [2, 3, 20]);
        assert_eq!(channels_last.reach(1), 120);
        let repeated = Dimensions::new(&[4, 3], [&[0, 0]]);
        assert_eq!((repeated.list.len(), repeated.reach(0)), (1, 1));
        assert_eq!(Dimensions::new(&[4, 0], [&[0, 1]]).reach(0), 0);
    }

    #[test]
    fn sorting_makes_a_permuted_tensor_dense() {
        let sorted = Dimensions::sorted_by(&[2, 3, 4], [&[1, 8, 2], &[1, 8, 2]], 1);
        assert!(sorted.is_dense());
        assert_eq!(sorted.len(), 24);
    }

    #[test]
    fn more_dimensions_than_kernels_walk_are_an_error() {
        let (shape, strides) = ([2; 9], [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536]);
        assert_eq!(Dimensions::new(&shape, [&strides]).space("copy").unwrap_err().code(), Code::Shape);
    }
}
