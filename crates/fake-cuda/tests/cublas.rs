//! The fake cuBLAS: batched products of matrices, in the order of the stream.

mod common;

use common::{Gpu, assert_success, in_child};
use cudarc::driver::sys::CUstream;
use libloading::os::unix::{Library, RTLD_NOW, Symbol};
use std::ffi::{c_int, c_longlong, c_void};
use std::ptr::null_mut;

type Handle = *mut c_void;
type Sgemm = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const f32,
    u64,
    c_int,
    c_longlong,
    u64,
    c_int,
    c_longlong,
    *const f32,
    u64,
    c_int,
    c_longlong,
    c_int,
) -> c_int;

fn symbol<T>(name: &str) -> Symbol<T> {
    syncbn_fake_cuda::install();
    // SAFETY: the library is loaded already; the callers name the types of cublas_v2.h.
    unsafe { Library::open(Some("libcublas.so.13"), RTLD_NOW).unwrap().get(name.as_bytes()).unwrap() }
}

fn create() -> (c_int, Handle) {
    let mut handle = null_mut();
    // SAFETY: the pointer is to a live variable.
    let status = unsafe { symbol::<unsafe extern "C" fn(*mut Handle) -> c_int>("cublasCreate_v2")(&mut handle) };
    (status, handle)
}

#[test]
fn batches_of_products_in_every_transposition() {
    let gpu = Gpu::new(0);
    let stream = gpu.stream();
    let (status, handle) = create();
    assert_eq!(status, 0);
    // SAFETY: the handle and the stream exist.
    unsafe {
        let set_stream = symbol::<unsafe extern "C" fn(Handle, CUstream) -> c_int>("cublasSetStream_v2");
        assert_eq!(set_stream(handle, stream), 0);
    }
    let (m, n, k, batch) = (3usize, 5usize, 4usize, 2usize);
    let value = |seed: usize, i: usize| ((i * 7 + seed) % 11) as f32 - 5.0;
    let a: Vec<f32> = (0..batch * m * k).map(|i| value(1, i)).collect();
    let b: Vec<f32> = (0..batch * k * n).map(|i| value(2, i)).collect();
    for (transpose_a, transpose_b) in [(false, false), (true, false), (false, true), (true, true)] {
        let (x, y, z) = (gpu.upload(&a), gpu.upload(&b), gpu.allocate(batch * m * n));
        let (lda, ldb) = (if transpose_a { k } else { m }, if transpose_b { n } else { k });
        let sgemm = symbol::<Sgemm>("cublasSgemmStridedBatched");
        // What z holds is poison: with beta 0 it must not be read.
        let (alpha, beta) = (2.0, 0.0);
        gpu.stall(stream, 20);
        // SAFETY: the matrices lie within their memory.
        let status = unsafe {
            sgemm(
                handle,
                transpose_a.into(),
                transpose_b.into(),
                m as c_int,
                n as c_int,
                k as c_int,
                &alpha,
                x,
                lda as c_int,
                (m * k) as c_longlong,
                y,
                ldb as c_int,
                (k * n) as c_longlong,
                &beta,
                z,
                m as c_int,
                (m * n) as c_longlong,
                batch as c_int,
            )
        };
        assert_eq!(status, 0);
        let got = gpu.download(stream, z, batch * m * n);
        let element = |data: &[f32], transposed: bool, leading: usize, row: usize, column: usize| {
            data[if transposed { column + row * leading } else { row + column * leading }]
        };
        for index in 0..batch {
            for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let expected: f32 = (0..k)
                    .map(|i| {
                        element(&a[index * m * k..], transpose_a, lda, row, i)
                            * element(&b[index * k * n..], transpose_b, ldb, i, column)
                    })
                    .sum();
                assert_eq!(got[index * m * n + row + column * m], 2.0 * expected);
            }
        }
    }
}

#[test]
fn it_may_refuse_to_start() {
    assert_success(&in_child("it_may_refuse_to_start", &[("FAKE_CUBLAS", "0")], || {
        assert_eq!(create(), (1, null_mut()));
    }));
}
