//! What a kernel may do with a vector.

use crate::slice::Element;

/// A number of the type arithmetic is done in.
pub(crate) trait Real: Copy + Send + Sync + 'static {
    /// Rounds to this type.
    fn from_f64(value: f64) -> Self;
    /// The same value as float64.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}

/// A type tensors hold, with its vectors at each level.
pub(crate) trait Scalar: Element {
    /// The type sums within a block are made in.
    type Real: Real;
    /// 512 bits of [`Self::Real`].
    #[cfg(target_arch = "x86_64")]
    type Avx512: Vector<Storage = Self, Real = Self::Real>;
    /// 256 bits of [`Self::Real`].
    #[cfg(target_arch = "x86_64")]
    type Avx2: Vector<Storage = Self, Real = Self::Real>;
    /// An array of [`Self::Real`].
    type Portable: Vector<Storage = Self, Real = Self::Real>;

    /// The same value as float64.
    fn to_f64(self) -> f64;
    /// Rounds to this type.
    fn from_f64(value: f64) -> Self;
}

/// The widest vector of any level, in lanes: scratch rows are padded to a multiple of it.
pub(crate) const MAX_LANES: usize = 16;

/// A vector of `Real` loaded from and stored to memory of `Storage`.
///
/// # Safety
/// Every function needs the instructions the implementing type names, and pointers valid for the elements it touches.
pub(crate) trait Vector: Copy {
    /// What memory holds.
    type Storage: Copy;
    /// What a lane holds.
    type Real: Real;
    /// Lanes of a vector.
    const LANES: usize;

    /// The same value in every lane.
    unsafe fn splat(value: Self::Real) -> Self;
    /// The first `k` elements of memory and then lanes of `rest`; all lanes from memory if `k` ≥ LANES.
    unsafe fn load(from: *const Self::Storage, k: usize, rest: Self) -> Self;
    /// Stores the first `k` lanes; all if `k` ≥ LANES.
    unsafe fn store(self, to: *mut Self::Storage, k: usize);
    /// A whole vector from memory of `Real`.
    unsafe fn load_real(from: *const Self::Real) -> Self;
    /// Stores all lanes to memory of `Real`.
    unsafe fn store_real(self, to: *mut Self::Real);
    /// self + other.
    unsafe fn add(self, other: Self) -> Self;
    /// self · a + b, rounded once where the CPU can.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// The sum of the lanes.
    unsafe fn sum(self) -> Self::Real;
}

/// Asks for memory a little ahead of `at`.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch reads nothing the program can see, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(512));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
