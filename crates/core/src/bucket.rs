//! Which gradients travel together.
//!
//! Parameters become ready roughly in the reverse of their registration order, so buckets are filled in that order.
//! The first bucket is small, so that the first all_reduce starts early. Source: Li et al., "PyTorch Distributed:
//! Experiences on Accelerating Data Parallel Training" (VLDB 2020), §4.2.

use crate::dtype::DType;

/// What the plan needs to know of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterSize {
    /// Elements.
    pub numel: usize,
    /// Element type; a bucket holds one.
    pub dtype: DType,
}

/// Gradients reduced by one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Element type of all of them.
    pub dtype: DType,
    /// Indices of the parameters, in the order they lie in the bucket.
    pub parameters: Vec<usize>,
    /// First element of each parameter in the bucket.
    pub offsets: Vec<usize>,
    /// Elements in all.
    pub numel: usize,
}

/// Deals parameters, given in registration order, to buckets of at most `cap` bytes, the first of at most `first_cap`.
/// A parameter above the cap gets a bucket of its own.
pub fn plan_buckets(parameters: &[ParameterSize], first_cap: usize, cap: usize) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    for (index, size) in parameters.iter().enumerate().rev() {
        let limit = if buckets.len() == 1 { first_cap } else { cap };
        let fits =
            |bucket: &Bucket| bucket.dtype == size.dtype && (bucket.numel + size.numel) * size.dtype.size() <= limit;
        match buckets.last_mut() {
            Some(bucket) if fits(bucket) => add(bucket, index, size.numel),
            _ => {
                let mut bucket = Bucket { dtype: size.dtype, parameters: vec![], offsets: vec![], numel: 0 };
                add(&mut bucket, index, size.numel);
                buckets.push(bucket);
            }
        }
    }
    buckets
}

fn add(bucket: &mut Bucket, index: usize, numel: usize) {
    bucket.parameters.push(index);
    bucket.offsets.push(bucket.numel);
    bucket.numel += numel;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes(numels: &[usize]) -> Vec<ParameterSize> {
        numels.iter().map(|&numel| ParameterSize { numel, dtype: DType::F32 }).collect()
    }

    #[test]
    fn fills_in_reverse_with_a_small_first_bucket() {
        let plan = plan_buckets(&sizes(&[10, 10, 10, 2, 2]), 16, 80);
        let indices: Vec<_> = plan.iter().map(|bucket| bucket.parameters.clone()).collect();
        assert_eq!(indices, [vec![4, 3], vec![2, 1], vec![0]]);
        assert_eq!(plan[1].offsets, [0, 10]);
    }

    #[test]
    fn dtypes_do_not_mix() {
        let mut parameters = sizes(&[1, 1, 1]);
        parameters[1].dtype = DType::F64;
        assert_eq!(plan_buckets(&parameters, 1 << 20, 1 << 20).len(), 3);
    }

    proptest! {
        #[test]
        fn every_parameter_has_one_place_and_caps_hold(numels in prop::collection::vec(1usize..50, 0..40), first in 4usize..100, cap in 4usize..400) {
            let plan = plan_buckets(&sizes(&numels), first, cap);
            let mut seen: Vec<usize> = plan.iter().flat_map(|bucket| bucket.parameters.clone()).collect();
            prop_assert!(seen.windows(2).all(|pair| pair[0] > pair[1]));
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..numels.len()).collect::<Vec<_>>());
            for (index, bucket) in plan.iter().enumerate() {
                let limit = if index == 0 { first } else { cap.max(first) };
                prop_assert!(bucket.numel * 4 <= limit || bucket.parameters.len() == 1);
            }
        }
    }
}
