//! Batch norm's kernels, on the CPU behind the fake driver, against plain formulas in float64.
//!
//! Where the contract allows an error, it is that of the plain formula in the type sums are made in, twice, or 4 ulp of
//! the result's scale; half types may round the result once more. Threads and blocks run in several orders.

mod backward;
mod double_backward;
mod edges;
mod forward;
mod harness;
mod numerics;
mod parts;
mod ranks;
mod reference;
mod rounding;
mod running;
