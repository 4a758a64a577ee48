//! The variants of the fake libraries and the folders they lie in.

use crate::compile;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// How the fake libraries are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Optimised. Checks barriers, alignment, and memory by poison and fences.
    Plain,
    /// With AddressSanitizer and UndefinedBehaviorSanitizer: every access outside an allocation is found.
    Asan,
    /// With ThreadSanitizer: every pair of accesses that no barrier or fence orders is found, whatever the schedule.
    Tsan,
}

impl Variant {
    /// Every variant.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Asan, Self::Tsan];

    /// The name on the command line and of the folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Asan => "asan",
            Self::Tsan => "tsan",
        }
    }

    /// The run-time library that must be loaded before everything else in a process that uses this variant.
    fn sanitizer(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Asan => Some("libasan.so"),
            Self::Tsan => Some("libtsan.so"),
        }
    }
}

/// The folder that holds a variant's `libcuda.so.1` (also as `libcuda.so`), `libnccl.so.2` and `libcublas.so.13`,
/// compiled first where they are missing or older than their sources. For `LD_LIBRARY_PATH` of another process.
///
/// # Panics
/// If the compiler fails, with its messages, and on systems other than Linux.
pub fn folder(variant: Variant) -> &'static Path {
    static FOLDERS: [OnceLock<PathBuf>; 3] = [const { OnceLock::new() }; 3];
    FOLDERS[variant as usize].get_or_init(|| compile::build(variant))
}

/// A command that runs `program` with a variant of the fakes: they are what it loads by name, and a sanitizer's run-time
/// library is there before it starts. A sanitizer's first finding ends the process with an error.
///
/// # Panics
/// As [`folder`].
pub fn command(variant: Variant, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", folder(variant)).env("SYNCBN_FAKE_CUDA_VARIANT", variant.name());
    if let Some(library) = variant.sanitizer() {
        command.env("LD_PRELOAD", compile::compilers_own_file(library));
        // What Rust and the driver keep for ever is no leak to report.
        command.env("ASAN_OPTIONS", "detect_leaks=0:halt_on_error=1");
        command.env("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1");
        // Rust's code is not instrumented, and so neither are its locks: only what kernels and fakes do is looked at.
        let options = "halt_on_error=1:report_signal_unsafe=0:ignore_noninstrumented_modules=1";
        command.env("TSAN_OPTIONS", options);
    }
    command
}

/// The variant this process is to use: that of [`command`], else the plain one.
pub(crate) fn of_this_process() -> Variant {
    let name = std::env::var("SYNCBN_FAKE_CUDA_VARIANT").unwrap_or_default();
    Variant::ALL.into_iter().find(|variant| variant.name() == name).unwrap_or(Variant::Plain)
}
