//! Prints the folder of the fake libraries, for `LD_LIBRARY_PATH` of processes that are not written in Rust.

use std::process::ExitCode;
use syncbn_fake_cuda::{Variant, folder};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.get(1).map_or("plain", String::as_str);
    let variant = Variant::ALL.into_iter().find(|variant| variant.name() == name);
    match (arguments.first().map(String::as_str), variant) {
        (Some("path"), Some(variant)) if arguments.len() <= 2 => {
            println!("{}", folder(variant).display());
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: cargo run -p syncbn-fake-cuda -- path [plain|asan|tsan]");
            ExitCode::FAILURE
        }
    }
}
