//! Launchers of restride.cu.

use super::family::{SizeFamily, THREADS, expect_dtype, expect_len, walk};
use super::space::{Dimension, Dimensions, Space};
use crate::kernel_table::Entry;
use crate::launch::{LaunchConfig, Params};
use crate::module::Module;
use crate::{Cuda, CudaSlice, CudaSliceMut};
use syncbn_core::Result;
use syncbn_core::ops::Restride;

/// Rows and columns of a tile that goes through shared memory.
const TILE: usize = 32;
/// Sizes below which most of a tile would be empty.
const SMALLEST_TILED: usize = 8;
/// The widest element the kernels move.
const WIDEST: usize = 8;
/// Blocks for the positions around the tiles; more positions than these are walked over.
const OUTER_BLOCKS: usize = 1024;

const INPUT: usize = 0;
const OUTPUT: usize = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct RestrideParams {
    input: u64,
    output: u64,
    len: u64,
    space: Space<2>,
}
// SAFETY: repr(C), as the struct of kernels/restride.cu.
unsafe impl Params for RestrideParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct TransposeParams {
    input: u64,
    output: u64,
    rows: u64,
    columns: u64,
    input_stride: u64,
    output_stride: u64,
    outer_len: u64,
    outer: Space<2>,
}
// SAFETY: repr(C), as the struct of kernels/restride.cu.
unsafe impl Params for TransposeParams {}

const RESTRIDE: SizeFamily<RestrideParams> = SizeFamily::new(Module::Restride, "restride");
const TRANSPOSE: SizeFamily<TransposeParams> = SizeFamily::new(Module::Restride, "transpose");

pub(super) fn table() -> Vec<Entry> {
    [RESTRIDE.entries(), TRANSPOSE.entries()].concat()
}

pub(super) fn restride(cuda: &Cuda, input: CudaSlice<'_>, layout: &Restride, output: CudaSliceMut<'_>) -> Result<()> {
    expect_dtype("copy", output.dtype(), input.dtype())?;
    let dimensions = Dimensions::sorted_by(&layout.shape, [&layout.input, &layout.output], OUTPUT);
    expect_len("copy", "the input", dimensions.reach(INPUT), input.len())?;
    expect_len("copy", "the output", dimensions.reach(OUTPUT), output.len())?;
    if dimensions.len() == 0 {
        return Ok(());
    }
    if dimensions.is_dense() && input.len() == output.len() {
        return cuda.copy_bytes(input, output);
    }
    let (input, output, bytes) = (input.pointer(), output.pointer(), input.dtype().size());
    if let Some((rows, columns, outer)) = tiled(&dimensions) {
        let params = TransposeParams {
            input,
            output,
            rows: rows.size as u64,
            columns: columns.size as u64,
            input_stride: columns.strides[INPUT] as u64,
            output_stride: rows.strides[OUTPUT] as u64,
            outer_len: outer.len() as u64,
            outer: outer.space("copy")?,
        };
        let tiles = rows.size.div_ceil(TILE) * columns.size.div_ceil(TILE);
        let grid = (tiles as u32, outer.len().min(OUTER_BLOCKS) as u32, 1);
        let config = LaunchConfig { grid, block: (TILE as u32, (THREADS / TILE) as u32, 1), shared_bytes: 0 };
        return TRANSPOSE.launch(cuda, bytes, config, &params);
    }
    let (dimensions, bytes) = widened(dimensions, bytes, input | output);
    let params = RestrideParams { input, output, len: dimensions.len() as u64, space: dimensions.space("copy")? };
    RESTRIDE.launch(cuda, bytes, walk(dimensions.len()), &params)
}

/// Where the fastest dimension of the output is another than the fastest of the input: that of the input, that of the
/// output, and the rest.
fn tiled(dimensions: &Dimensions<2>) -> Option<(Dimension<2>, Dimension<2>, Dimensions<2>)> {
    let (&columns, others) = dimensions.list.split_last()?;
    let rows = others.iter().position(|dimension| dimension.strides[INPUT] == 1)?;
    let fits = columns.strides[OUTPUT] == 1
        && columns.strides[INPUT] > 1
        && columns.size >= SMALLEST_TILED
        && others[rows].size >= SMALLEST_TILED;
    let outer = others.iter().enumerate().filter(|(d, _)| *d != rows).map(|(_, &dimension)| dimension).collect();
    fits.then(|| (others[rows], columns, Dimensions { list: outer }))
}

/// The same copy in wider elements, where rows are dense on both sides and everything is aligned to them.
fn widened(mut dimensions: Dimensions<2>, mut bytes: usize, addresses: u64) -> (Dimensions<2>, usize) {
    while bytes < WIDEST && addresses.is_multiple_of(2 * bytes as u64) {
        let Some((row, others)) = dimensions.list.split_last_mut() else { break };
        let even = |dimension: &Dimension<2>| dimension.strides.iter().all(|stride| stride.is_multiple_of(2));
        if row.strides != [1, 1] || !row.size.is_multiple_of(2) || !others.iter().all(even) {
            break;
        }
        row.size /= 2;
        others.iter_mut().for_each(|dimension| dimension.strides = dimension.strides.map(|stride| stride / 2));
        bytes *= 2;
    }
    (dimensions, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_memory_format_is_tiled() {
        let dimensions = Dimensions::sorted_by(&[2, 16, 5, 7], [&[560, 35, 7, 1], &[560, 1, 112, 16]], OUTPUT);
        let (rows, columns, outer) = tiled(&dimensions).unwrap();
        assert_eq!((rows.size, columns.size, outer.len()), (35, 16, 2));
        assert_eq!((columns.strides[INPUT], rows.strides[OUTPUT]), (35, 16));
    }

    #[test]
    fn dense_rows_are_moved_in_wider_elements() {
        let rows = Dimensions::new(&[3, 12], [&[0, 1], &[12, 1]]);
        let (wide, bytes) = widened(rows.clone(), 2, 0x100);
        assert_eq!((wide.len(), wide.list[0].strides, bytes), (9, [0, 3], 8));
        assert_eq!(widened(rows.clone(), 2, 0x104).1, 4);
        assert_eq!(widened(rows, 2, 0x102).1, 2);
        let odd = Dimensions::new(&[3, 4], [&[5, 1], &[4, 1]]);
        assert_eq!(widened(odd, 4, 0).1, 4);
    }
}
