//! Matrix products, by faer's GEMM.

use super::float::Float;
use crate::pool;
use faer::linalg::matmul::matmul as gemm;
use faer::{Accum, MatMut, MatRef, Par};
use syncbn_core::ops::Matmul;

/// Multiply-adds below which one thread is faster than sharing.
const SHARE_WORK: usize = 1 << 20;

/// How many threads a product of this many multiply-adds is worth.
pub fn parallelism(work: usize) -> Par {
    match pool::num_threads() {
        threads if threads > 1 && work >= SHARE_WORK => Par::rayon(threads),
        _ => Par::Seq,
    }
}

/// A row-major matrix, perhaps read as its transpose.
fn view<T>(data: &[T], rows: usize, columns: usize, transposed: bool) -> MatRef<'_, T> {
    if transposed {
        MatRef::from_row_major_slice(data, columns, rows).transpose()
    } else {
        MatRef::from_row_major_slice(data, rows, columns)
    }
}

/// C = A·B, or C += A·B.
pub fn product<T: Float>(c: MatMut<'_, T>, a: MatRef<'_, T>, b: MatRef<'_, T>, accumulate: bool) {
    let work = c.nrows() * c.ncols() * a.ncols();
    let accumulate = if accumulate { Accum::Add } else { Accum::Replace };
    gemm(c, accumulate, a, b, T::of(1.0), parallelism(work));
}

pub fn matmul<T: Float>(a: &[T], b: &[T], geometry: Matmul, output: &mut [T]) {
    let Matmul { batch, m, n, k, transpose_a, transpose_b, b_batch_stride, accumulate } = geometry;
    for index in 0..batch {
        let c = MatMut::from_row_major_slice_mut(&mut output[index * m * n..][..m * n], m, n);
        let a = view(&a[index * m * k..][..m * k], m, k, transpose_a);
        let b = view(&b[index * b_batch_stride..][..k * n], k, n, transpose_b);
        product(c, a, b, accumulate);
    }
}
