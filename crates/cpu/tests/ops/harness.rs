//! Element types, random numbers, comparisons, and the thread counts to try.

use std::sync::{Mutex, PoisonError};
use syncbn_core::generator::Generator;
use syncbn_cpu::{HostSlice, HostSliceMut, pool};

/// The element types under test.
pub trait Num: Copy + PartialEq + std::fmt::Debug + Into<f64> + 'static {
    /// 2⁻²³ or 2⁻⁵².
    const EPSILON: f64;
    fn of(value: f64) -> Self;
    fn view(values: &[Self]) -> HostSlice<'_>;
    fn view_mut(values: &mut [Self]) -> HostSliceMut<'_>;
}

macro_rules! num {
    ($type:ident, $variant:ident) => {
        impl Num for $type {
            const EPSILON: f64 = $type::EPSILON as f64;

            fn of(value: f64) -> Self {
                value as $type
            }

            fn view(values: &[Self]) -> HostSlice<'_> {
                HostSlice::$variant(values)
            }

            fn view_mut(values: &mut [Self]) -> HostSliceMut<'_> {
                HostSliceMut::$variant(values)
            }
        }
    };
}

num!(f32, F32);
num!(f64, F64);

/// Standard normals, the same for the same seed.
pub fn random<T: Num>(seed: u64, len: usize) -> Vec<T> {
    Generator::new(seed).randn_f64(len).into_iter().map(T::of).collect()
}

pub fn wide<T: Num>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// What an operation that writes `len` elements gave, from memory that held NaN.
pub fn made<T: Num>(len: usize, write: impl FnOnce(HostSliceMut<'_>) -> syncbn_core::Result<()>) -> Vec<T> {
    let mut output = vec![T::of(f64::NAN); len];
    write(T::view_mut(&mut output)).unwrap();
    output
}

/// Asserts that results made of about `terms` terms each are right up to rounding.
#[track_caller]
pub fn assert_close<T: Num>(what: &str, got: &[T], expected: &[f64], terms: usize) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().filter(|value| value.is_finite()).fold(1.0, |scale: f64, value| scale.max(value.abs()));
    let allowed = 4.0 * T::EPSILON * scale * (terms as f64).sqrt().max(1.0);
    for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let same = got.into() == expected || (got.into().is_nan() && expected.is_nan());
        let close = (got.into() - expected).abs() <= allowed;
        assert!(same || close, "{what}, element {index}: {got:?} instead of {expected}, allowed {allowed:e}");
    }
}

/// Runs `test` with 1 and then with 4 threads; the results must be the same. Work on less than a mebibyte stays on one
/// thread, so every operation is also tried on more.
#[track_caller]
pub fn same_with_threads<R: PartialEq>(what: &str, test: impl Fn() -> R) -> R {
    static THREADS: Mutex<()> = Mutex::new(());
    let _guard = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    pool::set_num_threads(1);
    let alone = test();
    pool::set_num_threads(4);
    let same = (0..3).all(|_| test() == alone);
    pool::set_num_threads(1);
    assert!(same, "{what}: 1 and 4 threads differ");
    alone
}

/// The bits of numbers, to compare NaN too.
pub fn bits<T: Num>(values: &[T]) -> Vec<u64> {
    values.iter().map(|&value| value.into().to_bits()).collect()
}
