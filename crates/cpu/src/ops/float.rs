//! The two element types arithmetic is done in.

use crate::slice::Element;
use faer::traits::RealField;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Sub, SubAssign};

/// float32 or float64.
pub trait Float:
    Element
    + RealField
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// The nearest value.
    fn of(value: f64) -> Self;
    /// The exact value.
    fn wide(self) -> f64;
    /// Square root.
    fn root(self) -> Self;
    /// Whether it is NaN.
    fn nan(self) -> bool;
}

macro_rules! float {
    ($type:ident) => {
        impl Float for $type {
            fn of(value: f64) -> Self {
                value as $type
            }
            fn wide(self) -> f64 {
                f64::from(self)
            }
            fn root(self) -> Self {
                $type::sqrt(self)
            }
            fn nan(self) -> bool {
                self.is_nan()
            }
        }
    };
}

float!(f32);
float!(f64);

/// Whether `a` replaces the maximum `b`: larger, or the first NaN.
pub fn exceeds<T: Float>(a: T, b: T) -> bool {
    a > b || (a.nan() && !b.nan())
}
