//! Putting samples together and taking them apart, along a first dimension.

use crate::region::Region;
use crate::tensor::Tensor;
use syncbn_core::{Code, Error, MemoryFormat, Result};

/// Tensors of one shape and type become rows of a new first dimension; contiguous.
pub fn stack(tensors: &[Tensor]) -> Result<Tensor> {
    let Some(first) = tensors.first() else {
        return Err(Error::expected(Code::Argument, "stack", "at least one tensor", 0));
    };
    for tensor in tensors {
        tensor.expect_shape("stack", first.shape())?;
        tensor.expect_dtype("stack", "tensors", first.dtype())?;
    }
    let shape = [&[tensors.len()], first.shape()].concat();
    let (output, row) = (first.new_empty("stack", &shape, first.dtype(), MemoryFormat::Contiguous)?, first.numel());
    for (index, tensor) in tensors.iter().enumerate() {
        Region::new(&output, index * row..(index + 1) * row).copy_from(&tensor.contiguous()?)?;
    }
    Ok(output)
}

/// Rows `start..end` of the first dimension, copied; contiguous.
pub fn slice_rows(tensor: &Tensor, start: usize, end: usize) -> Result<Tensor> {
    let rows = tensor.shape().first().copied().unwrap_or(0);
    if start > end || end > rows {
        return Err(Error::expected(
            Code::Argument,
            "slice",
            format!("0 <= start <= end <= {rows}"),
            format!("{start}..{end}"),
        ));
    }
    let shape = [&[end - start], tensor.shape().get(1..).unwrap_or(&[])].concat();
    let output = tensor.new_empty("slice", &shape, tensor.dtype(), MemoryFormat::Contiguous)?;
    let (tensor, row) = (tensor.contiguous()?, tensor.numel() / rows.max(1));
    Region::new(&tensor, start * row..end * row).copy_to(&output)?;
    Ok(output)
}
