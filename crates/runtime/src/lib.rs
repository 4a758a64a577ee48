//! What joins the crates: tensors with owned storage, operations dispatched by device, batch norm over process groups,
//! the gradient reducer, checkpoints.
//!
//! The language bindings hold [`Tensor`], [`ProcessGroup`] and [`Reducer`] handles and call the functions here; nothing
//! above this crate knows where memory lies or how ranks talk.
//!
//! Rust programs use it directly. A batch norm step over the ranks of a group; with `None` it is plain batch norm:
//!
//! ```
//! use syncbn_core::{DType, MemoryFormat, Result};
//! use syncbn_cpu::HostSlice;
//! use syncbn_runtime::batch_norm::{self, Needs, Parameters};
//! use syncbn_runtime::{ProcessGroup, Tensor, array::Options};
//!
//! fn step(x: &Tensor, grad_output: &Tensor, group: Option<&ProcessGroup>) -> Result<(Tensor, Tensor)> {
//!     let options = Options { training: true, momentum: Some(0.1), eps: 1e-5 };
//!     let (y, saved) = batch_norm::forward(x, Parameters::default(), options, group)?;
//!     let needs = Needs { input: true, weight: false, bias: false };
//!     let gradients = batch_norm::backward(grad_output, x, None, &saved, needs)?;
//!     Ok((y, gradients.input.expect("asked for")))
//! }
//!
//! # fn main() -> Result<()> {
//! let data = [1.0, 2.0, 3.0, 6.0f32]; // (N, C) = (4, 1): mean 3, variance 3.5
//! let x = Tensor::from_slice("x", HostSlice::F32(&data), &[4, 1], DType::F32, MemoryFormat::Contiguous)?;
//! let (y, grad_input) = step(&x, &x, None)?;
//! let guard = y.read()?;
//! let HostSlice::F32(y) = guard.slice() else { unreachable!("float32 in, float32 out") };
//! assert!((y[3] - 3.0 / 3.5f32.sqrt()).abs() <= 1e-5);
//! # drop(grad_input);
//! # Ok(())
//! # }
//! ```
//!
//! A group comes from [`ProcessGroup::init`], on every rank.
#![deny(unsafe_code)]

pub mod array;
pub mod batch_norm;
pub mod check;
pub mod checkpoint;
pub mod device;
pub mod gpu;
pub mod layout;
mod nccl;
pub mod ops;
pub mod process_group;
pub mod random;
pub mod reducer;
mod region;
pub mod saved;
pub mod split;
mod staging;
pub mod storage;
pub mod tensor;
mod text;
pub mod timing;
pub mod work;

pub use device::Device;
pub use process_group::ProcessGroup;
pub use reducer::Reducer;
pub use saved::Saved;
pub use storage::Storage;
pub use tensor::Tensor;
pub use work::Work;
