//! Where the tests of a process run: on the CPU, or on fake GPUs, one for each rank.
//!
//! A test binary runs on the CPU. Tests that call [`run_again_on`] run the binary's other tests once more, in a process
//! of its own, on fakes.

use std::cell::Cell;
use std::process::Command;
use std::sync::OnceLock;
use syncbn_runtime::Device;

/// Tells a process where its tests run.
const VARIABLE: &str = "SYNCBN_TEST_PLACE";
/// Fake GPUs: the most ranks a test has.
const GPUS: &str = "4";

/// A device and how ranks exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Tensors on the CPU, exchanged by TCP.
    Cpu,
    /// Tensors on a GPU for each rank, exchanged by NCCL.
    CudaNccl,
    /// Tensors on a GPU for each rank, exchanged by TCP.
    CudaTcp,
}

/// Where this process's tests run.
pub fn place() -> Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    *PLACE.get_or_init(|| {
        let place = match std::env::var(VARIABLE).as_deref() {
            Ok("nccl") => Place::CudaNccl,
            Ok("tcp") => Place::CudaTcp,
            _ => return Place::Cpu,
        };
        syncbn_fake_cuda::install();
        syncbn_cuda::set_poison_freed(true);
        place
    })
}

thread_local! {
    static RANK: Cell<usize> = const { Cell::new(0) };
}

/// The rank whose tensors this thread makes from now on.
pub fn set_rank(rank: usize) {
    RANK.set(rank);
}

/// The device of this thread's rank.
pub fn device() -> Device {
    match place() {
        Place::Cpu => Device::Cpu,
        Place::CudaNccl | Place::CudaTcp => Device::parse("test", &format!("cuda:{}", RANK.get())).unwrap(),
    }
}

/// Runs this binary's tests again, `name` ("nccl" or "tcp") saying where. Does nothing in a process that is such a run.
#[track_caller]
pub fn run_again_on(name: &str) {
    run_on(name, &[]);
}

/// As [`run_again_on`], for the tests that only make sense there, which are marked as ignored.
#[track_caller]
pub fn run_ignored_on(name: &str) {
    run_on(name, &["--ignored"]);
}

#[track_caller]
fn run_on(name: &str, arguments: &[&str]) {
    if std::env::var_os(VARIABLE).is_some() || !cfg!(target_os = "linux") {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .env(VARIABLE, name)
        .env("FAKE_CUDA_DEVICES", GPUS)
        // The tests share the GPUs, and no two communicators may be at work on one at once.
        .env("RUST_TEST_THREADS", "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "on fakes ({name}):\n{}\n{}", text(&output.stdout), text(&output.stderr));
}
