//! AVX-512 and AVX2 vectors, and the functions kernels are inlined into.

use super::Kernel;
use super::vector::{Scalar, Vector};
use std::arch::x86_64::*;

/// Runs `kernel` compiled for AVX-512.
///
/// # Safety
/// The CPU has these features, and the kernel's memory is valid.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<S: Scalar, K: Kernel<S>>(kernel: K) {
    // SAFETY: the features are enabled here; the memory is the caller's promise.
    unsafe { kernel.run::<S::Avx512>() }
}

/// Runs `kernel` compiled for AVX2 and FMA.
///
/// # Safety
/// The CPU has these features, and the kernel's memory is valid.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<S: Scalar, K: Kernel<S>>(kernel: K) {
    // SAFETY: the features are enabled here; the memory is the caller's promise.
    unsafe { kernel.run::<S::Avx2>() }
}

macro_rules! vector {
    (
        $(#[$doc:meta])*
        $name:ident($register:ident) = $lanes:literal of $storage:ty as $real:ty;
        splat $splat:ident, add $add:ident, mul_add $mul_add:ident, real $load_real:ident $store_real:ident;
        load |$from:ident, $k:ident, $rest:ident| $load:expr, $load_head:expr;
        store |$to:ident, $v:ident| $store:expr, $store_head:expr;
        sum |$lanes_of:ident| $sum:expr
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name($register);

        impl Vector for $name {
            type Storage = $storage;
            type Real = $real;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(value: $real) -> Self {
                // SAFETY: the caller has this vector's instructions.
                Self(unsafe { $splat(value) })
            }

            #[inline(always)]
            unsafe fn load($from: *const $storage, $k: usize, Self($rest): Self) -> Self {
                // SAFETY: as in `splat`; the caller vouches for k elements, and a masked load touches no others.
                Self(unsafe { if $k < $lanes { $load_head } else { $load } })
            }

            #[inline(always)]
            unsafe fn store(self, $to: *mut $storage, $k: usize) {
                let Self($v) = self;
                // SAFETY: as in `load`.
                unsafe { if $k < $lanes { $store_head } else { $store } }
            }

            #[inline(always)]
            unsafe fn load_real(from: *const $real) -> Self {
                // SAFETY: as in `splat`; the caller vouches for a vector's worth of elements.
                Self(unsafe { $load_real(from) })
            }

            #[inline(always)]
            unsafe fn store_real(self, to: *mut $real) {
                // SAFETY: as in `load_real`.
                unsafe { $store_real(to, self.0) }
            }

            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: as in `splat`.
                Self(unsafe { $add(self.0, other.0) })
            }

            #[inline(always)]
            unsafe fn mul_add(self, a: Self, b: Self) -> Self {
                // SAFETY: as in `splat`.
                Self(unsafe { $mul_add(self.0, a.0, b.0) })
            }

            #[inline(always)]
            unsafe fn sum(self) -> $real {
                let Self($lanes_of) = self;
                // SAFETY: as in `splat`.
                unsafe { $sum }
            }
        }
    };
}

vector! {
    /// Sixteen float32.
    F32x16(__m512) = 16 of f32 as f32;
    splat _mm512_set1_ps, add _mm512_add_ps, mul_add _mm512_fmadd_ps, real _mm512_loadu_ps _mm512_storeu_ps;
    load |from, k, rest| _mm512_loadu_ps(from), _mm512_mask_loadu_ps(rest, (1 << k) - 1, from);
    store |to, v| _mm512_storeu_ps(to, v), _mm512_mask_storeu_ps(to, (1 << k) - 1, v);
    sum |v| _mm512_reduce_add_ps(v)
}

vector! {
    /// Eight float64.
    F64x8(__m512d) = 8 of f64 as f64;
    splat _mm512_set1_pd, add _mm512_add_pd, mul_add _mm512_fmadd_pd, real _mm512_loadu_pd _mm512_storeu_pd;
    load |from, k, rest| _mm512_loadu_pd(from), _mm512_mask_loadu_pd(rest, (1 << k) - 1, from);
    store |to, v| _mm512_storeu_pd(to, v), _mm512_mask_storeu_pd(to, (1 << k) - 1, v);
    sum |v| _mm512_reduce_add_pd(v)
}

vector! {
    /// Eight float32.
    F32x8(__m256) = 8 of f32 as f32;
    splat _mm256_set1_ps, add _mm256_add_ps, mul_add _mm256_fmadd_ps, real _mm256_loadu_ps _mm256_storeu_ps;
    load |from, k, rest| _mm256_loadu_ps(from),
        _mm256_blendv_ps(rest, _mm256_maskload_ps(from, first_32(k)), _mm256_castsi256_ps(first_32(k)));
    store |to, v| _mm256_storeu_ps(to, v), _mm256_maskstore_ps(to, first_32(k), v);
    sum |v| {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

vector! {
    /// Four float64.
    F64x4(__m256d) = 4 of f64 as f64;
    splat _mm256_set1_pd, add _mm256_add_pd, mul_add _mm256_fmadd_pd, real _mm256_loadu_pd _mm256_storeu_pd;
    load |from, k, rest| _mm256_loadu_pd(from),
        _mm256_blendv_pd(rest, _mm256_maskload_pd(from, first_64(k)), _mm256_castsi256_pd(first_64(k)));
    store |to, v| _mm256_storeu_pd(to, v), _mm256_maskstore_pd(to, first_64(k), v);
    sum |v| {
        let two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
        _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
    }
}

/// A mask of the first `k` of eight 32-bit lanes.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn first_32(k: usize) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(k as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

/// A mask of the first `k` of four 64-bit lanes.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn first_64(k: usize) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_cmpgt_epi64(_mm256_set1_epi64x(k as i64), _mm256_setr_epi64x(0, 1, 2, 3)) }
}
