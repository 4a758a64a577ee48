//! Vectors as arrays, for CPUs without a hand-written version. The loops are of constant length, so the compiler turns
//! them into whatever vectors the target has.

use super::vector::{Scalar, Vector};
use std::marker::PhantomData;

/// Eight lanes.
pub(crate) struct Portable<S: Scalar>([S::Real; LANES], PhantomData<S>);

const LANES: usize = 8;

impl<S: Scalar> Clone for Portable<S> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Scalar> Copy for Portable<S> {}

/// a · b + c in one instruction where the target has it; a library call otherwise, so two roundings instead.
macro_rules! fused {
    ($a:expr, $b:expr, $c:expr) => {
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { $a.mul_add($b, $c) } else { $a * $b + $c }
    };
}

macro_rules! portable {
    ($storage:ty, $real:ty, $widen:expr, $narrow:expr) => {
        impl Vector for Portable<$storage> {
            type Storage = $storage;
            type Real = $real;
            const LANES: usize = LANES;

            #[inline(always)]
            unsafe fn splat(value: $real) -> Self {
                Self([value; LANES], PhantomData)
            }

            #[inline(always)]
            unsafe fn load(from: *const $storage, k: usize, rest: Self) -> Self {
                let mut lanes = rest.0;
                for (i, lane) in lanes.iter_mut().enumerate().take(k.min(LANES)) {
                    // SAFETY: the caller vouches for k elements.
                    *lane = $widen(unsafe { from.add(i).read() });
                }
                Self(lanes, PhantomData)
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut $storage, k: usize) {
                for (i, lane) in self.0.into_iter().enumerate().take(k.min(LANES)) {
                    // SAFETY: the caller vouches for k elements.
                    unsafe { to.add(i).write($narrow(lane)) }
                }
            }

            #[inline(always)]
            unsafe fn load_real(from: *const $real) -> Self {
                // SAFETY: the caller vouches for LANES elements; an array needs no more alignment than its elements.
                Self(unsafe { from.cast::<[$real; LANES]>().read() }, PhantomData)
            }

            #[inline(always)]
            unsafe fn store_real(self, to: *mut $real) {
                // SAFETY: as in `load_real`.
                unsafe { to.cast::<[$real; LANES]>().write(self.0) }
            }

            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] + other.0[i]), PhantomData)
            }

            #[inline(always)]
            unsafe fn mul_add(self, a: Self, b: Self) -> Self {
                Self(std::array::from_fn(|i| fused!(self.0[i], a.0[i], b.0[i])), PhantomData)
            }

            #[inline(always)]
            unsafe fn sum(self) -> $real {
                let [a, b, c, d, e, f, g, h] = self.0;
                ((a + e) + (c + g)) + ((b + f) + (d + h))
            }
        }
    };
}

portable! { f32, f32, std::convert::identity, std::convert::identity }
portable! { f64, f64, std::convert::identity, std::convert::identity }

/// The vectors of each storage type. Here, because on targets without hand-written vectors this is all there is.
macro_rules! scalar {
    ($storage:ident, $real:ident, $avx512:ident, $avx2:ident) => {
        impl Scalar for $storage {
            type Real = $real;
            #[cfg(target_arch = "x86_64")]
            type Avx512 = super::x86::$avx512;
            #[cfg(target_arch = "x86_64")]
            type Avx2 = super::x86::$avx2;
            type Portable = Portable<$storage>;

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $storage
            }
        }
    };
}

scalar! { f32, f32, F32x16, F32x8 }
scalar! { f64, f64, F64x8, F64x4 }
