//! Tensor operations on the fake driver, which runs the real kernels on the CPU, against [`syncbn_cpu::Cpu`] on the same
//! data: odd sizes, both layouts, every element type, and several orders of threads and blocks, which must agree in every
//! bit.

#[path = "ops/harness.rs"]
mod harness;

#[cfg(target_os = "linux")]
mod sanitizers;

#[path = "ops/conv2d.rs"]
mod conv2d;
#[path = "ops/elementwise.rs"]
mod elementwise;
#[path = "ops/layout.rs"]
mod layout;
#[path = "ops/loss.rs"]
mod loss;
#[path = "ops/matmul.rs"]
mod matmul;
#[path = "ops/optimizer.rs"]
mod optimizer;
#[path = "ops/pool2d.rs"]
mod pool2d;
#[path = "ops/reduce.rs"]
mod reduce;

#[cfg(target_os = "linux")]
#[test]
fn under_the_address_sanitizer() {
    sanitizers::run_again(syncbn_fake_cuda::Variant::Asan, &[]);
}

/// Those whose threads share memory.
#[cfg(target_os = "linux")]
#[test]
fn under_the_thread_sanitizer() {
    sanitizers::run_again(syncbn_fake_cuda::Variant::Tsan, &["loss::", "matmul::", "reduce::"]);
}
