//! Vector instructions, chosen at run time: AVX-512, AVX2 with FMA, or whatever the compiler makes of plain loops.
//!
//! A [`Kernel`] is written once over [`Vector`] and compiled once for each instruction set, inside a function that
//! carries the `#[target_feature]`. Everything it calls must be `#[inline(always)]`, closures included: an intrinsic
//! that is not inlined into such a function is a call, and the kernel four times slower.

mod portable;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use vector::{MAX_LANES, Real, Scalar, Vector, prefetch};

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// The target's baseline.
    Portable = 1,
    /// AVX2 and FMA, 256 bits.
    Avx2 = 2,
    /// AVX-512 F, BW, VL and DQ, 512 bits.
    Avx512 = 3,
}

/// The level in use; 0 before it is known.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The best level this CPU has.
pub fn detect() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! has { ($($feature:tt)*) => { true $(&& is_x86_feature_detected!($feature))* } }
        if has!("avx2" "fma" "f16c") {
            return if has!("avx512f" "avx512bw" "avx512vl" "avx512dq") { Level::Avx512 } else { Level::Avx2 };
        }
    }
    Level::Portable
}

/// The level the kernels run at.
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => set_level(Level::Avx512),
    }
}

/// Runs the kernels at `wanted`, or at the best level this CPU has if that is lower; returns the level now in use.
/// For tests: the levels differ in the last bits of sums.
pub fn set_level(wanted: Level) -> Level {
    let level = wanted.min(detect());
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}

/// Work on memory of scalars `S`, written over vectors.
pub(crate) trait Kernel<S: Scalar> {
    /// Does the work. Mark it `#[inline(always)]`.
    ///
    /// # Safety
    /// The CPU has the instructions of `V`, and the memory the kernel points to is valid for what it does.
    unsafe fn run<V: Vector<Storage = S, Real = S::Real>>(self);
}

/// Runs `kernel` with the vectors of the level in use.
///
/// # Safety
/// The memory the kernel points to is valid for what it does.
pub(crate) unsafe fn dispatch<S: Scalar, K: Kernel<S>>(kernel: K) {
    #[cfg(target_arch = "x86_64")]
    match level() {
        // SAFETY: the level was detected on this CPU; the rest is the caller's promise.
        Level::Avx512 => return unsafe { x86::run_avx512(kernel) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { x86::run_avx2(kernel) },
        Level::Portable => {}
    }
    // SAFETY: portable vectors need no special instructions; the rest is the caller's promise.
    unsafe { kernel.run::<S::Portable>() }
}
