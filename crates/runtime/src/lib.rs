//! What joins the crates: tensors with owned storage, operations dispatched by device, batch norm over process groups,
//! the gradient reducer, checkpoints.
//!
//! The language bindings hold [`Tensor`], [`ProcessGroup`] and [`Reducer`] handles and call the functions here; nothing
//! above this crate knows where memory lies or how ranks talk.
#![forbid(unsafe_code)]

pub mod array;
pub mod batch_norm;
pub mod checkpoint;
pub mod layout;
pub mod ops;
pub mod process_group;
pub mod random;
pub mod reducer;
pub mod storage;
pub mod tensor;
pub mod timing;
pub mod work;

pub use process_group::ProcessGroup;
pub use reducer::Reducer;
pub use storage::Storage;
pub use tensor::Tensor;
pub use work::Work;
