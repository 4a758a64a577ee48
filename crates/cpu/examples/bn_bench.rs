//! Times batch norm training on the CPU: `cargo run --release -p syncbn-cpu --example bn_bench [threads]`.
//!
//! For each shape the fused forward and backward and the two-phase ones, medians in ms, and GB/s counted as the memory
//! each has to move at least: x and y for a fused forward, x twice and y in two phases; backward likewise with dy.
#![allow(clippy::print_stdout)]

use std::time::Instant;
use syncbn_core::kernels::{Backward, BackwardApply, BackwardReduce, Forward, Kernels, Normalize, RunningStats};
use syncbn_core::message::{slot_bytes, sums_bytes};
use syncbn_core::{BatchNormShape, DType};
use syncbn_cpu::{Cpu, HostBuffer, HostSlice, HostSliceMut, pool};

const SHAPES: [(&str, [usize; 3], bool); 9] = [
    ("(8,64,56,56) NCHW", [8, 64, 56 * 56], false),
    ("(32,64,112,112) NCHW", [32, 64, 112 * 112], false),
    ("(8,256,28,28) NHWC", [8, 256, 28 * 28], true),
    ("(32,64,112,112) NHWC", [32, 64, 112 * 112], true),
    ("(4,2048,7,7) NCHW", [4, 2048, 49], false),
    ("(64,512)", [64, 512, 1], true),
    ("(2,32,64,64,64) NCDHW", [2, 32, 64 * 64 * 64], false),
    ("(2,3,512,512) NCHW", [2, 3, 512 * 512], false),
    ("(64,3,64,64) NHWC", [64, 3, 64 * 64], true),
];

/// Tensors and rows of one layer.
struct Layer {
    shape: BatchNormShape,
    x: HostBuffer,
    dy: HostBuffer,
    out: HostBuffer,
    weight: Vec<f32>,
    bias: Vec<f32>,
    running: [Vec<f32>; 2],
    gradients: [Vec<f32>; 2],
    slot: Vec<u8>,
    messages: Vec<u8>,
    sums: Vec<u8>,
}

impl Layer {
    fn new([batch, channels, spatial]: [usize; 3], channels_last: bool) -> Self {
        let shape = BatchNormShape { batch, channels, spatial, channels_last };
        let values = |seed: usize| {
            let buffer = HostBuffer::new(DType::F32, shape.numel()).expect("memory");
            if let HostSliceMut::F32(values) = buffer.write().expect("unused").slice() {
                let value = |i: usize| ((i * 7919 + seed) % 10_007) as f32 / 5003.5 - 1.0;
                values.iter_mut().enumerate().for_each(|(i, to)| *to = value(i));
            }
            buffer
        };
        let row = |value: f32| vec![value; channels];
        Self {
            shape,
            x: values(1),
            dy: values(5000),
            out: values(0),
            weight: row(1.0),
            bias: row(0.0),
            running: [row(0.0), row(1.0)],
            gradients: [row(0.0), row(0.0)],
            slot: vec![0; slot_bytes(channels, DType::F64)],
            messages: vec![0; slot_bytes(channels, DType::F64)],
            sums: vec![0; sums_bytes(channels, 2, DType::F64)],
        }
    }

    fn forward(&mut self) {
        let x = self.x.read().expect("unused");
        let mut out = self.out.write().expect("unused");
        let [mean, var] = &mut self.running;
        let running = RunningStats {
            mean: HostSliceMut::F32(mean),
            var: HostSliceMut::F32(var),
            momentum: Some(0.1),
            num_batches_tracked: None,
        };
        let call = Forward {
            input: x.slice(),
            shape: self.shape,
            weight: Some(HostSlice::F32(&self.weight)),
            bias: Some(HostSlice::F32(&self.bias)),
            eps: 1e-5,
            running: Some(running),
            output: out.slice(),
            statistics: &mut self.slot,
        };
        Cpu.forward(call).expect("forward");
    }

    fn forward_two_phase(&mut self) {
        let x = self.x.read().expect("unused");
        let mut out = self.out.write().expect("unused");
        Cpu.stats(x.slice(), self.shape, &mut self.messages, 0).expect("stats");
        let [mean, var] = &mut self.running;
        let running = RunningStats {
            mean: HostSliceMut::F32(mean),
            var: HostSliceMut::F32(var),
            momentum: Some(0.1),
            num_batches_tracked: None,
        };
        let call = Normalize {
            input: x.slice(),
            shape: self.shape,
            weight: Some(HostSlice::F32(&self.weight)),
            bias: Some(HostSlice::F32(&self.bias)),
            eps: 1e-5,
            messages: &self.messages,
            world_size: 1,
            running: Some(running),
            output: out.slice(),
            statistics: &mut self.slot,
        };
        Cpu.normalize(call).expect("normalize");
    }

    fn backward(&mut self) {
        let x = self.x.read().expect("unused");
        let dy = self.dy.read().expect("unused");
        let mut out = self.out.write().expect("unused");
        let [weight, bias] = &mut self.gradients;
        let call = Backward {
            input: x.slice(),
            grad_output: dy.slice(),
            shape: self.shape,
            weight: Some(HostSlice::F32(&self.weight)),
            statistics: &self.slot,
            batch_statistics: true,
            grad_input: Some(out.slice()),
            grad_weight: Some(HostSliceMut::F32(weight)),
            grad_bias: Some(HostSliceMut::F32(bias)),
        };
        Cpu.backward(call).expect("backward");
    }

    fn backward_two_phase(&mut self) {
        let x = self.x.read().expect("unused");
        let dy = self.dy.read().expect("unused");
        let mut out = self.out.write().expect("unused");
        let [weight, bias] = &mut self.gradients;
        let call = BackwardReduce {
            input: x.slice(),
            grad_output: dy.slice(),
            shape: self.shape,
            statistics: &self.slot,
            sums: &mut self.sums,
            grad_weight: Some(HostSliceMut::F32(weight)),
            grad_bias: Some(HostSliceMut::F32(bias)),
        };
        Cpu.backward_reduce(call).expect("backward_reduce");
        let call = BackwardApply {
            input: x.slice(),
            grad_output: dy.slice(),
            shape: self.shape,
            weight: Some(HostSlice::F32(&self.weight)),
            statistics: &self.slot,
            sums: Some(&self.sums),
            grad_input: out.slice(),
        };
        Cpu.backward_apply(call).expect("backward_apply");
    }
}

/// Median milliseconds of each step, interleaved so that a busy machine hits all alike.
fn medians(layer: &mut Layer, steps: &[fn(&mut Layer)]) -> Vec<f64> {
    let rounds = (300_000_000 / layer.shape.numel()).clamp(9, 400);
    let mut times = vec![Vec::new(); steps.len()];
    for round in 0..rounds + 2 {
        for (step, times) in steps.iter().zip(&mut times) {
            let start = Instant::now();
            step(layer);
            if round >= 2 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}

fn main() {
    if let Some(threads) = std::env::args().nth(1) {
        pool::set_num_threads(threads.parse().expect("a number of threads"));
    }
    println!("float32, {} threads, {:?}", pool::num_threads(), syncbn_cpu::simd::level());
    println!(
        "{:24} {:>18} {:>18} {:>18} {:>18}",
        "ms (GB/s)", "forward", "backward", "two-phase forward", "two-phase backward"
    );
    for (name, shape, channels_last) in SHAPES {
        let mut layer = Layer::new(shape, channels_last);
        let steps: [fn(&mut Layer); 4] =
            [Layer::forward, Layer::backward, Layer::forward_two_phase, Layer::backward_two_phase];
        let times = medians(&mut layer, &steps);
        let bytes = layer.shape.numel() as f64 * 4.0;
        let cells: Vec<String> = times
            .iter()
            .zip([2.0, 3.0, 3.0, 5.0])
            .map(|(ms, tensors)| format!("{ms:9.3} ({:5.1})", tensors * bytes / ms / 1e6))
            .collect();
        println!("{name:24} {}", cells.iter().map(|cell| format!("{cell:>18}")).collect::<Vec<_>>().join(" "));
    }
}
