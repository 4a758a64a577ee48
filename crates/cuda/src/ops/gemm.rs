//! Matrix products of row-major matrices: by cuBLAS where it is there, else by gemm.cu.

use super::family::{FLOATS, Family, THREADS, expect_dtype, expect_len, expect_one_of, suffix};
use super::space::WideDivider;
use crate::kernel_table::Entry;
use crate::launch::{LaunchConfig, Params};
use crate::module::{Kernel, Module};
use crate::{Cuda, CudaSlice, CudaSliceMut};
use syncbn_core::ops::Matmul;
use syncbn_core::{DType, Result};

/// Rows and columns of C that a block of gemm.cu computes.
const TILE: usize = 64;
/// Terms it multiplies at once.
const DEPTH: usize = 16;
/// Blocks below which several share the terms of a tile.
const FEW_BLOCKS: usize = 128;
/// Terms that a block multiplies at least, if it shares them.
const LEAST_SPLIT: usize = 256;
/// Memory for the partial products of blocks that share terms.
const MAX_PARTIAL_BYTES: usize = 64 << 20;
/// Blocks for the products of a batch; more products than these are walked over.
const BATCH_BLOCKS: usize = 1024;

/// `batch` products C = op(A)·op(B), or C += op(A)·op(B): op(A) is m × k, op(B) k × n. Leading dimensions and strides
/// count elements; a stride of 0 uses the same matrix for each product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) lda: usize,
    pub(crate) ldb: usize,
    pub(crate) ldc: usize,
    pub(crate) transpose_a: bool,
    pub(crate) transpose_b: bool,
    pub(crate) batch: usize,
    pub(crate) stride_a: usize,
    pub(crate) stride_b: usize,
    pub(crate) stride_c: usize,
    pub(crate) accumulate: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GemmParams {
    a: u64,
    b: u64,
    c: u64,
    m: u64,
    n: u64,
    k: u64,
    lda: u64,
    ldb: u64,
    ldc: u64,
    stride_a: u64,
    stride_b: u64,
    stride_c: u64,
    batch: u64,
    split_terms: u64,
    split_stride: u64,
    accumulate: u32,
    unused: u32,
}
// SAFETY: repr(C), as the struct of kernels/gemm.cu.
unsafe impl Params for GemmParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct GemmCombineParams {
    partial: u64,
    c: u64,
    splits: u64,
    batch: u64,
    m: u64,
    n: WideDivider,
    ldc: u64,
    stride_c: u64,
    accumulate: u32,
    unused: u32,
}
// SAFETY: repr(C), as the struct of kernels/gemm.cu.
unsafe impl Params for GemmCombineParams {}

const COMBINE: Family<GemmCombineParams> = Family::new(Module::Gemm, "gemm_combine", FLOATS);

fn name(transpose_a: bool, transpose_b: bool, dtype: DType) -> String {
    let letter = |transpose| if transpose { 't' } else { 'n' };
    format!("gemm_{}{}_{}", letter(transpose_a), letter(transpose_b), suffix(dtype))
}

pub(super) fn table() -> Vec<Entry> {
    let forms = [(false, false), (false, true), (true, false), (true, true)];
    let products = FLOATS.iter().flat_map(|&dtype| forms.map(|(a, b)| name(a, b, dtype)));
    products.map(|name| Entry::of::<GemmParams>(Module::Gemm, name)).chain(COMBINE.entries()).collect()
}

/// Enqueues the products of matrices at these addresses, which the caller has checked.
///
/// # Errors
/// [`syncbn_core::Code::DType`] for other types than float32 and float64.
pub(super) fn gemm(cuda: &Cuda, op: &str, dtype: DType, [a, b, c]: [u64; 3], gemm: &Gemm) -> Result<()> {
    expect_one_of(op, FLOATS, dtype)?;
    if gemm.m * gemm.n * gemm.batch == 0 {
        return Ok(());
    }
    if gemm.k > 0 && cuda.cublas_gemm(dtype, [a, b, c], gemm)? {
        return Ok(());
    }
    own_gemm(cuda, op, dtype, [a, b, c], gemm)
}

/// How many blocks share the terms of a tile of C: some where C has few tiles and products are long.
fn splits(gemm: &Gemm, dtype: DType) -> usize {
    let blocks = gemm.m.div_ceil(TILE) * gemm.n.div_ceil(TILE) * gemm.batch;
    if blocks >= FEW_BLOCKS {
        return 1;
    }
    let bytes = gemm.m * gemm.n * gemm.batch * dtype.size();
    (2 * FEW_BLOCKS / blocks).min(gemm.k / LEAST_SPLIT).min(MAX_PARTIAL_BYTES / bytes).max(1)
}

fn own_gemm(cuda: &Cuda, op: &str, dtype: DType, [a, b, c]: [u64; 3], gemm: &Gemm) -> Result<()> {
    let splits = splits(gemm, dtype);
    if splits == 1 {
        return launch(cuda, dtype, [a, b, c], gemm, 1);
    }
    let size = gemm.m * gemm.n;
    let partial = cuda.buffer(splits * gemm.batch * size * dtype.size())?;
    let shared = Gemm { ldc: gemm.n, stride_c: size, accumulate: false, ..*gemm };
    launch(cuda, dtype, [a, b, partial.pointer()], &shared, splits)?;
    let params = GemmCombineParams {
        partial: partial.pointer(),
        c,
        splits: splits as u64,
        batch: gemm.batch as u64,
        m: gemm.m as u64,
        n: WideDivider::new(gemm.n),
        ldc: gemm.ldc as u64,
        stride_c: gemm.stride_c as u64,
        accumulate: u32::from(gemm.accumulate),
        unused: 0,
    };
    let grid = (size.div_ceil(THREADS) as u32, gemm.batch.min(BATCH_BLOCKS) as u32, 1);
    let config = LaunchConfig { grid, block: (THREADS as u32, 1, 1), shared_bytes: 0 };
    COMBINE.launch(cuda, op, dtype, config, &params)
}

fn launch(cuda: &Cuda, dtype: DType, [a, b, c]: [u64; 3], gemm: &Gemm, splits: usize) -> Result<()> {
    let params = GemmParams {
        a,
        b,
        c,
        m: gemm.m as u64,
        n: gemm.n as u64,
        k: gemm.k as u64,
        lda: gemm.lda as u64,
        ldb: gemm.ldb as u64,
        ldc: gemm.ldc as u64,
        stride_a: gemm.stride_a as u64,
        stride_b: gemm.stride_b as u64,
        stride_c: gemm.stride_c as u64,
        batch: gemm.batch as u64,
        split_terms: gemm.k.div_ceil(splits).next_multiple_of(DEPTH) as u64,
        split_stride: (gemm.batch * gemm.m * gemm.n) as u64,
        accumulate: u32::from(gemm.accumulate),
        unused: 0,
    };
    let tiles = gemm.m.div_ceil(TILE) * gemm.n.div_ceil(TILE);
    let grid = (tiles as u32, splits as u32, gemm.batch.min(BATCH_BLOCKS) as u32);
    let config = LaunchConfig { grid, block: (THREADS as u32, 1, 1), shared_bytes: 0 };
    let name = name(gemm.transpose_a, gemm.transpose_b, dtype);
    cuda.launch(Kernel { module: Module::Gemm, name: &name }, config, &params)
}

pub(super) fn matmul(
    cuda: &Cuda,
    a: CudaSlice<'_>,
    b: CudaSlice<'_>,
    geometry: Matmul,
    output: &CudaSliceMut<'_>,
) -> Result<()> {
    let Matmul { batch, m, n, k, transpose_a, transpose_b, b_batch_stride, accumulate } = geometry;
    expect_dtype("matmul", a.dtype(), b.dtype())?;
    expect_dtype("matmul", a.dtype(), output.dtype())?;
    expect_len("matmul", "the first operand", batch * m * k, a.len())?;
    expect_len("matmul", "the second operand", batch.saturating_sub(1) * b_batch_stride + k * n, b.len())?;
    expect_len("matmul", "the output", batch * m * n, output.len())?;
    let product = Gemm {
        m,
        n,
        k,
        lda: if transpose_a { m } else { k },
        ldb: if transpose_b { k } else { n },
        ldc: n,
        transpose_a,
        transpose_b,
        batch,
        stride_a: m * k,
        stride_b: b_batch_stride,
        stride_c: m * n,
        accumulate,
    };
    // Matrices that lie one after another and meet the same B are one.
    let joined = Gemm { m: batch * m, batch: 1, ..product };
    let product = if b_batch_stride == 0 && !transpose_a { joined } else { product };
    gemm(cuda, "matmul", a.dtype(), [a.pointer(), b.pointer(), output.pointer()], &product)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(m: usize, n: usize, k: usize, batch: usize) -> Gemm {
        let (transpose_a, transpose_b, accumulate) = (false, false, false);
        let (stride_a, stride_b, stride_c) = (m * k, k * n, m * n);
        Gemm {
            m,
            n,
            k,
            lda: k,
            ldb: n,
            ldc: n,
            transpose_a,
            transpose_b,
            batch,
            stride_a,
            stride_b,
            stride_c,
            accumulate,
        }
    }

    #[test]
    fn long_products_of_small_matrices_are_shared() {
        assert_eq!(splits(&product(64, 64, 100_000, 1), DType::F32), 256);
        assert_eq!(splits(&product(64, 64, 1000, 1), DType::F32), 3);
        assert_eq!(splits(&product(64, 64, 255, 1), DType::F32), 1);
        assert_eq!(splits(&product(1024, 1024, 100_000, 1), DType::F32), 1);
        assert_eq!(splits(&product(64, 64, 100_000, 200), DType::F32), 1);
    }
}
