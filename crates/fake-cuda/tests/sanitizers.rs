//! The sanitizer variants: what only they find. They compile every kernel again, so they run when
//! `SYNCBN_FAKE_SANITIZERS=1` asks for them.

mod common;

use common::{Gpu, Params, assert_died, assert_success, in_child_of};
use std::process::Output;
use syncbn_fake_cuda::{Variant, command};

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn wanted() -> bool {
    let wanted = std::env::var("SYNCBN_FAKE_SANITIZERS").is_ok_and(|value| value == "1");
    if !wanted {
        eprintln!("SKIPPED: SYNCBN_FAKE_SANITIZERS is not 1");
    }
    wanted
}

/// Runs the named test again under a sanitizer, launching one kernel on 8 blocks of 128 threads.
fn launch_under(variant: Variant, name: &str, kernel: &str, count: u32) -> Output {
    let (kernel_variable, count_variable) = ("KERNEL", "COUNT");
    let program = std::env::current_exe().unwrap();
    let count = count.to_string();
    let variables = [(kernel_variable, kernel), (count_variable, count.as_str())];
    in_child_of(command(variant, program), name, &variables, || {
        let kernel = std::env::var(kernel_variable).unwrap();
        let count = std::env::var(count_variable).unwrap().parse().unwrap();
        let gpu = Gpu::new(0);
        let mut x = vec![1.0; 1026];
        x[0] = 0.0; // the counter of finished blocks
        let (stream, x, y) = (gpu.stream(), gpu.upload(&x), gpu.allocate(1024));
        gpu.launch(stream, &kernel, 8, 128, Params { x, y, value: 1.0, count });
        gpu.wait(stream);
    })
}

#[test]
fn accesses_outside_an_allocation() {
    let name = "accesses_outside_an_allocation";
    if !wanted() {
        return;
    }
    assert_success(&launch_under(Variant::Asan, name, "fake_test_sum", 1000));
    assert_success(&launch_under(Variant::Asan, name, "fake_test_copy_vectors", 1024));
    let output = launch_under(Variant::Asan, name, "fake_test_copy_vectors", 1028);
    assert_died(&output, "heap-buffer-overflow");
    assert_died(&output, "fake_test_copy_vectors");
}

#[test]
fn missing_barriers_and_fences() {
    let name = "missing_barriers_and_fences";
    if !wanted() {
        return;
    }
    for kernel in ["fake_test_sum", "fake_test_local_arrays"] {
        assert_success(&launch_under(Variant::Tsan, name, kernel, 1000));
    }
    for kernel in ["fake_test_sum_without_sync", "fake_test_sum_without_fence", "fake_test_shared_array"] {
        let output = launch_under(Variant::Tsan, name, kernel, 1000);
        assert_died(&output, "ThreadSanitizer: data race");
        assert_died(&output, kernel);
    }
}
