//! Tensor operations: every check of shapes and types, then one call of the device's [`syncbn_core::Ops`].

mod convolution;
mod elementwise;
mod loss;
mod matmul;
mod optimizer;
mod pooling;
mod reduction;
mod rows;

pub use convolution::{ConvolutionOptions, conv2d, conv2d_backward_input, conv2d_backward_weight};
pub use elementwise::{add_in_place, binary, binary_scalar, expand, fill_in_place, relu, relu_backward};
pub use loss::{CrossEntropyForward, cross_entropy, cross_entropy_backward, softmax, softmax_backward};
pub use matmul::{linear, matmul};
pub use optimizer::{adamw_step, adamw_step_from, sgd_step};
pub use pooling::{
    PoolOptions, adaptive_avg_pool2d, adaptive_avg_pool2d_backward, avg_pool2d, avg_pool2d_backward, max_pool2d,
    max_pool2d_backward,
};
pub use reduction::{argmax, sum_dims, sum_to};
pub use rows::{slice_rows, stack};
