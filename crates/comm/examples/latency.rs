//! How long an exchange takes between ranks of this machine: `cargo run --release --example latency -p syncbn-comm`.
//!
//! Starts itself as 2 and 4 processes and prints p50 and p99 over the loopback interface of an all_gather of 6 KB from
//! each rank (the forward message of 768 float32 channels), an all_reduce of 12 KB, and the rate of an all_reduce of
//! 64 MB. Every result is checked first.

#![allow(clippy::print_stdout, reason = "a program that reports to its user")]

use std::env;
use std::error::Error;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use syncbn_comm::{Environment, Group, InitOptions, init};
use syncbn_core::collective::ReduceOp;
use syncbn_core::dtype::DType;

const WARM_UP: usize = 500;
const CALLS: usize = 5000;
const GATHER_BYTES: usize = 6 << 10;
const REDUCE_BYTES: usize = 12 << 10;
const LARGE_BYTES: usize = 64 << 20;
const LARGE_CALLS: usize = 5;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    if env::var_os("RANK").is_some() { measure() } else { [2, 4].into_iter().try_for_each(launch) }
}

fn launch(ranks: usize) -> Outcome {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let start = |rank: usize| -> std::io::Result<Child> {
        let mut command = Command::new(env::current_exe()?);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", ranks.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string()).spawn()
    };
    let children = (0..ranks).map(start).collect::<Result<Vec<_>, _>>()?;
    for mut child in children {
        if !child.wait()?.success() {
            return Err("a rank failed".into());
        }
    }
    Ok(())
}

fn measure() -> Outcome {
    let options = InitOptions { timeout: Duration::from_secs(60), ..InitOptions::default() };
    let world = init(&options, &Environment::from_process())?;
    let group = world.default_group();
    let (rank, ranks) = (world.rank(), world.size());
    check(&group, rank)?;

    let mut slots = vec![rank as u8; ranks * GATHER_BYTES];
    let gather = sample(|| group.all_gather(&mut slots))?;
    let mut sums = vec![0; REDUCE_BYTES];
    let reduce = sample(|| group.all_reduce(&mut sums, DType::F32, ReduceOp::Sum))?;
    let mut large = vec![0; LARGE_BYTES];
    group.all_reduce(&mut large, DType::F32, ReduceOp::Sum)?;
    let start = Instant::now();
    (0..LARGE_CALLS).try_for_each(|_| group.all_reduce(&mut large, DType::F32, ReduceOp::Sum))?;
    let seconds = start.elapsed().as_secs_f64() / LARGE_CALLS as f64;
    if rank == 0 {
        let row = |name: &str, times: &[f64]| println!("{ranks} ranks  {name:<18} {}", percentiles(times));
        row("all_gather 6 KB", &gather);
        row("all_reduce 12 KB", &reduce);
        let rate = LARGE_BYTES as f64 / seconds / 1e9;
        println!("{ranks} ranks  all_reduce 64 MB   {:.0} ms, {rate:.2} GB/s of payload", seconds * 1e3);
    }
    world.destroy();
    Ok(())
}

/// Both collectives give the right answer.
fn check(group: &Group, rank: usize) -> Outcome {
    let ranks = group.size();
    let mut slots = vec![rank as u8 + 1; ranks * GATHER_BYTES];
    group.all_gather(&mut slots)?;
    let gathered = slots.chunks(GATHER_BYTES).enumerate().all(|(rank, slot)| slot.iter().all(|&b| b == rank as u8 + 1));
    let mut sums: Vec<_> = (0..REDUCE_BYTES / 4).flat_map(|_| (rank as f32 + 1.0).to_ne_bytes()).collect();
    group.all_reduce(&mut sums, DType::F32, ReduceOp::Sum)?;
    let expected = ((ranks * (ranks + 1) / 2) as f32).to_ne_bytes();
    let summed = sums.chunks(4).all(|sum| *sum == expected);
    if gathered && summed { Ok(()) } else { Err("wrong result".into()) }
}

/// Microseconds of each call, sorted.
fn sample<E>(mut call: impl FnMut() -> Result<(), E>) -> Result<Vec<f64>, E> {
    (0..WARM_UP).try_for_each(|_| call())?;
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn percentiles(times: &[f64]) -> String {
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("p50 {:6.1} µs   p99 {:6.1} µs", at(0.5), at(0.99))
}
