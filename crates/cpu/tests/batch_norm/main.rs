//! Batch norm on the CPU against plain formulas written here, at every instruction set this machine has.
//!
//! Expected values come from `reference`: two passes in float64 with compensated sums. Where the contract allows an
//! error, it is that of the plain formula in the tested type, twice, or 4 ulp of the result's scale.

mod backward;
mod double_backward;
mod edges;
mod forward;
mod harness;
mod numerics;
mod reference;
