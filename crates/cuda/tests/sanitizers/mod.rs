//! Runs tests of this binary once more with kernels under sanitizers: AddressSanitizer finds every access outside an
//! allocation, ThreadSanitizer every missing barrier and fence, whatever the schedule.
//!
//! They take long, so they run when `SYNCBN_FAKE_SANITIZERS=1` asks for them, as `npm test` does. On a GPU its own
//! sanitizer does this work.

use std::process::Command;
use syncbn_fake_cuda::{Variant, command};

/// Set in the processes started here.
const VARIABLE: &str = "SYNCBN_FAKE_CUDA_VARIANT";

/// Runs the tests whose names begin with one of `prefixes`, without prefixes all, under `variant`.
#[track_caller]
pub fn run_again(variant: Variant, prefixes: &[&str]) {
    let set = |name: &str| std::env::var(name).is_ok_and(|value| value == "1");
    if std::env::var_os(VARIABLE).is_some() || set("REQUIRE_GPU") {
        return;
    }
    if !set("SYNCBN_FAKE_SANITIZERS") {
        return skipped(variant);
    }
    let program = std::env::current_exe().unwrap();
    let tests = list(&program);
    let chosen: Vec<&String> =
        tests.iter().filter(|name| prefixes.is_empty() || prefixes.iter().any(|p| name.starts_with(p))).collect();
    assert!(!chosen.is_empty(), "no test begins with any of {prefixes:?}");
    let output = command(variant, &program)
        .args(["--exact", "--nocapture"])
        .args(chosen)
        // Rarer repetitions: a sanitizer needs one.
        .env("SYNCBN_TEST_REPEATS", "4")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "under {}:\n{out}\n{err}", variant.name());
    assert!(err.contains(&format!("FAKE CUDA: {} libraries", variant.name())), "it ran on other libraries:\n{err}");
}

/// The tests of this binary, without those that would run themselves again.
fn list(program: &std::path::Path) -> Vec<String> {
    let output = Command::new(program).args(["--list", "--format", "terse"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    names.filter(|name| !name.contains("under_")).map(String::from).collect()
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn skipped(variant: Variant) {
    eprintln!("SKIPPED: nothing ran under {}, since SYNCBN_FAKE_SANITIZERS is not 1", variant.name());
}
