//! Matrix products, by our kernels and by (a fake) cuBLAS.

use crate::harness::{Products, Side, Values, both, code, cuda, cuda_with};
use std::path::Path;
use syncbn_core::ops::Matmul;
use syncbn_core::{Code, DType, Ops};
use syncbn_cuda::cublas::LIBRARY_NAMES;

const FLOATS: [DType; 2] = [DType::F32, DType::F64];
const WAYS: [Products; 2] = [Products::Own, Products::Cublas];

fn plain(m: usize, n: usize, k: usize) -> Matmul {
    Matmul { batch: 1, m, n, k, transpose_a: false, transpose_b: false, b_batch_stride: 0, accumulate: false }
}

#[track_caller]
fn check(products: Products, dtype: DType, geometry: Matmul) {
    let Matmul { batch, m, n, k, b_batch_stride, .. } = geometry;
    let Some(cuda) = cuda_with(products) else { return };
    let b_len = batch.saturating_sub(1) * b_batch_stride + k * n;
    let a = Values::random_on(&cuda, dtype, 1, batch * m * k);
    let b = Values::random_on(&cuda, dtype, 2, b_len);
    let mut c = if geometry.accumulate {
        Values::random_on(&cuda, dtype, 3, batch * m * n)
    } else {
        Values::unwritten_on(&cuda, dtype, batch * m * n)
    };
    both!(cuda.clone(), d => d.matmul(d.input(&a), d.input(&b), geometry, d.output(&mut c)));
    c.assert_rounded(k);
}

#[test]
fn every_form_of_product_is_the_cpus() {
    for (products, dtype) in WAYS.into_iter().flat_map(|products| FLOATS.map(|dtype| (products, dtype))) {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (64, 64, 16), (65, 63, 17), (2, 130, 33)] {
            for form in 0..8 {
                let (transpose_a, transpose_b, accumulate) = (form & 1 > 0, form & 2 > 0, form & 4 > 0);
                check(products, dtype, Matmul { transpose_a, transpose_b, accumulate, ..plain(m, n, k) });
            }
        }
    }
}

#[test]
fn batches_of_products() {
    for (products, dtype) in WAYS.into_iter().flat_map(|products| FLOATS.map(|dtype| (products, dtype))) {
        for form in 0..8 {
            let (transpose_a, transpose_b, accumulate) = (form & 1 > 0, form & 2 > 0, form & 4 > 0);
            for b_batch_stride in [0, 7 * 5, 7 * 5 + 3] {
                let geometry =
                    Matmul { batch: 3, transpose_a, transpose_b, accumulate, b_batch_stride, ..plain(9, 5, 7) };
                check(products, dtype, geometry);
            }
        }
    }
}

#[test]
fn more_products_than_blocks_are_walked_over() {
    for accumulate in [false, true] {
        check(Products::Own, DType::F32, Matmul { batch: 1030, b_batch_stride: 6, accumulate, ..plain(3, 2, 3) });
    }
}

#[test]
fn long_products_are_shared_among_blocks() {
    for (dtype, form) in FLOATS.into_iter().flat_map(|dtype| (0..8).map(move |form| (dtype, form))) {
        let (transpose_a, transpose_b, accumulate) = (form & 1 > 0, form & 2 > 0, form & 4 > 0);
        check(Products::Own, dtype, Matmul { transpose_a, transpose_b, accumulate, ..plain(5, 66, 1030) });
    }
    check(Products::Own, DType::F32, Matmul { batch: 2, b_batch_stride: 3 * 600, ..plain(4, 3, 600) });
}

#[test]
fn products_of_nothing() {
    for products in WAYS {
        for accumulate in [false, true] {
            check(products, DType::F32, Matmul { accumulate, ..plain(4, 3, 0) });
            check(products, DType::F32, Matmul { accumulate, ..plain(0, 3, 2) });
            check(products, DType::F32, Matmul { accumulate, ..plain(4, 0, 2) });
            check(products, DType::F32, Matmul { accumulate, batch: 0, ..plain(4, 3, 2) });
        }
    }
}

#[test]
fn not_a_number_reaches_its_row_alone() {
    for products in WAYS {
        let Some(cuda) = cuda_with(products) else { continue };
        let mut values = vec![1.0; 12];
        values[5] = f64::NAN;
        let a = Values::on(&cuda, DType::F32, &values);
        let b = Values::random_on(&cuda, DType::F32, 2, 8);
        let mut c = Values::unwritten_on(&cuda, DType::F32, 6);
        both!(cuda.clone(), d => d.matmul(d.input(&a), d.input(&b), plain(3, 2, 4), d.output(&mut c)));
        c.assert_rounded(4);
        assert_eq!(
            c.results().iter().map(|value| value.is_nan()).collect::<Vec<_>>(),
            [false, false, true, true, false, false]
        );
    }
}

#[test]
fn who_multiplies_can_be_asked() {
    for products in WAYS {
        let Some(name) = cuda_with(products).map(|cuda| cuda.gemm_backend()) else { continue };
        match products {
            Products::Own => assert_eq!(name, "own kernel"),
            Products::Cublas => assert!(name.starts_with("cublas 13.") || name.starts_with("cublas 12."), "{name}"),
        }
    }
}

#[test]
fn where_no_candidate_is_cublas_our_kernels_multiply() {
    // On a GPU this process's only device may have cuBLAS.
    if cuda_with(Products::Own).is_none() {
        return;
    }
    let cuda = crate::harness::other();
    assert!(!cuda.use_cublas(&["/nowhere/libcublas.so.13", "libc.so.6"].map(Path::new)));
    assert_eq!(cuda.gemm_backend(), "own kernel");
    // Decided once.
    assert!(!cuda.use_cublas(&LIBRARY_NAMES.map(Path::new)));
}

#[test]
fn wrong_types_and_sizes_are_errors() {
    let cuda = cuda();
    let (a, b) = (Values::random(DType::F32, 1, 6), Values::random(DType::F32, 2, 5));
    let half = Values::random(DType::F16, 2, 6);
    let (mut c, mut half_c) = (Values::unwritten(DType::F32, 4), Values::unwritten(DType::F16, 4));
    assert_eq!(code(cuda.matmul(cuda.input(&a), cuda.input(&b), plain(2, 2, 3), cuda.output(&mut c))), Code::Shape);
    assert_eq!(code(cuda.matmul(cuda.input(&a), cuda.input(&half), plain(2, 2, 3), cuda.output(&mut c))), Code::DType);
    let halves = cuda.matmul(cuda.input(&half), cuda.input(&half), plain(2, 2, 3), cuda.output(&mut half_c));
    assert_eq!(code(halves), Code::DType);
}
