//! Test only: a fake CUDA driver, NCCL and cuBLAS, which run the real kernels of `crates/cuda/kernels` on the CPU.
//!
//! The libraries are compiled with the system's C++ compiler (`CXX`, else `c++`) when first asked for, and again when a
//! source has changed. They need Linux; elsewhere every function here panics and says so. What they check and what they
//! cannot is in the README.
//!
//! ```no_run
//! syncbn_fake_cuda::install(); // from here on, loading libcuda, libnccl or libcublas finds the fakes
//! syncbn_fake_cuda::set_order(3); // threads and blocks in another order
//! // ... run what is to be tested ...
//! assert_eq!(syncbn_fake_cuda::counters().host_waits, 0);
//! ```

mod compile;
mod counters;
mod library;
mod variant;

pub use counters::{Counters, counters, launched_kernels, reset_counters};
pub use library::{install, install_driver, set_order};
pub use variant::{Variant, command, folder};
