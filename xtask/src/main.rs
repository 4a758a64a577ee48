//! Chores of the repository: `cargo xtask tidy` checks what no compiler does, `cargo xtask error-codes` prints the table
//! of docs/errors.md, `cargo xtask kernel-table` what the launchers of GPU kernels believe of their parameters.
//!
//! A command fails with exit status 1 and what is wrong on standard error; an unknown one with 2 and how to call it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

mod error_codes;
mod repository;
mod tidy;

use repository::Repository;
use std::process::ExitCode;
use syncbn_cuda::kernel_table::{Entry, kernel_table};

const USAGE: &str = "usage: cargo xtask <tidy | error-codes | kernel-table>";

fn main() -> ExitCode {
    let commands: Vec<String> = std::env::args().skip(1).collect();
    match commands.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => report(&tidy::findings(&Repository::of_this_build())),
        ["error-codes"] => {
            let codes = error_codes::parse(&Repository::of_this_build().read(error_codes::SOURCE));
            print!("{}", error_codes::table(&codes));
            ExitCode::SUCCESS
        }
        ["kernel-table"] => {
            for Entry { module, name, bytes, alignment } in kernel_table() {
                println!("{module}\t{name}\t{bytes}\t{alignment}");
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn report(findings: &[String]) -> ExitCode {
    findings.iter().for_each(|finding| eprintln!("{finding}"));
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
