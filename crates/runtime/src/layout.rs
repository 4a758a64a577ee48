//! Shape arithmetic: broadcasting, reductions, dimensions counted from the end.

use syncbn_core::ops::Along;
use syncbn_core::{Code, Error, Result};

/// Product of sizes, or [`Code::OutOfMemory`] if no memory could hold it.
pub fn numel(op: &str, shape: &[usize]) -> Result<usize> {
    shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).ok_or_else(|| {
        Error::new(Code::OutOfMemory, format!("{op}: a tensor of shape {shape:?} exceeds the address space"))
    })
}

/// The dimension `dim` of a tensor of `rank` dimensions; negative ones count from the end.
pub fn dimension(op: &str, dim: i64, rank: usize) -> Result<usize> {
    let index = if dim < 0 { dim + rank as i64 } else { dim };
    usize::try_from(index).ok().filter(|&index| index < rank).ok_or_else(|| {
        let range = format!("a dimension in [{}, {})", -(rank as i64), rank);
        Error::expected(Code::Argument, op, range, dim)
    })
}

/// The shape two operands broadcast to: aligned at the end, sizes equal or one of them 1.
pub fn broadcast_shape(op: &str, a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], dimension: usize| (dimension + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|dimension| match (size(a, dimension), size(b, dimension)) {
            (x, y) if x == y || y == 1 => Ok(x),
            (1, y) => Ok(y),
            _ => Err(Error::expected(Code::Shape, op, "shapes that broadcast", format!("{a:?} and {b:?}"))),
        })
        .collect()
}

/// The strides of a tensor of `shape` when it is repeated to `target`, to which it broadcasts; 0 where it is repeated.
pub fn broadcast_strides(shape: &[usize], strides: &[usize], target: &[usize]) -> Vec<usize> {
    let missing = target.len() - shape.len();
    (0..target.len())
        .map(|dimension| match dimension.checked_sub(missing) {
            Some(i) if shape[i] == target[dimension] && shape[i] != 1 => strides[i],
            _ => 0,
        })
        .collect()
}

/// A tensor of `shape` around dimension `dim`.
pub fn along(shape: &[usize], dim: usize) -> Along {
    Along { outer: shape[..dim].iter().product(), size: shape[dim], inner: shape[dim + 1..].iter().product() }
}

/// `shape` with one −1 replaced so that it has `numel` elements.
pub fn resolve_shape(op: &str, shape: &[i64], numel: usize) -> Result<Vec<usize>> {
    let wrong = || Error::expected(Code::Shape, op, format!("a shape of {numel} elements"), format!("{shape:?}"));
    let known: usize = shape.iter().filter(|&&size| size != -1).map(|&size| size.max(0) as usize).product();
    let unknown = shape.iter().filter(|&&size| size == -1).count();
    if unknown > 1 || shape.iter().any(|&size| size < -1) {
        return Err(wrong());
    }
    if unknown == 1 && (known == 0 || !numel.is_multiple_of(known)) || unknown == 0 && known != numel {
        return Err(wrong());
    }
    Ok(shape.iter().map(|&size| if size == -1 { numel / known } else { size as usize }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_from_the_end() {
        assert_eq!(broadcast_shape("add", &[3, 1, 5], &[4, 1]).unwrap(), [3, 4, 5]);
        assert_eq!(broadcast_shape("add", &[], &[2]).unwrap(), [2]);
        assert_eq!(broadcast_shape("add", &[0, 1], &[1, 3]).unwrap(), [0, 3]);
        assert_eq!(broadcast_shape("add", &[2], &[3]).unwrap_err().code(), Code::Shape);
        assert_eq!(broadcast_strides(&[4, 1], &[1, 1], &[3, 4, 5]), [0, 1, 0]);
    }

    #[test]
    fn one_size_may_be_left_open() {
        assert_eq!(resolve_shape("reshape", &[2, -1], 6).unwrap(), [2, 3]);
        assert_eq!(resolve_shape("reshape", &[0, 4], 0).unwrap(), [0, 4]);
        for wrong in [&[4, -1][..], &[-1, -1], &[-2, 3], &[5], &[0, -1]] {
            assert_eq!(resolve_shape("reshape", wrong, 6).unwrap_err().code(), Code::Shape, "{wrong:?}");
        }
    }

    #[test]
    fn dimensions_count_from_both_ends() {
        assert_eq!(dimension("sum", -1, 3).unwrap(), 2);
        assert!(dimension("sum", 3, 3).is_err() && dimension("sum", -4, 3).is_err());
    }
}
