//! Tensor operations against plain float64 loops written from their definitions, on odd sizes, in float32 and float64,
//! and with one and several threads.

#[path = "ops/harness.rs"]
mod harness;

#[path = "ops/conv2d.rs"]
mod conv2d;
#[path = "ops/elementwise.rs"]
mod elementwise;
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
