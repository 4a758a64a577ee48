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
#[cfg(target_os = "linux")]
#[path = "../sanitizers/mod.rs"]
mod sanitizers;

/// Both formats, vectors and single elements, several ranks and both backwards.
#[cfg(target_os = "linux")]
const UNDER_SANITIZERS: [&str; 4] = ["double_backward::", "edges::", "ranks::", "running::"];

#[cfg(target_os = "linux")]
#[test]
fn under_the_address_sanitizer() {
    sanitizers::run_again(syncbn_fake_cuda::Variant::Asan, &UNDER_SANITIZERS);
}

#[cfg(target_os = "linux")]
#[test]
fn under_the_thread_sanitizer() {
    sanitizers::run_again(syncbn_fake_cuda::Variant::Tsan, &UNDER_SANITIZERS);
}
