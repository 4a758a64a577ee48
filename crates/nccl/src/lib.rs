//! NCCL from Rust, loaded at run time: collectives on raw device pointers and streams.
//!
#![doc = include_str!("../README.md")]

mod collective;
mod communicator;
mod ending;
mod error;
mod group;
mod nccl;
pub mod result;
mod search;
mod state;
pub mod sys;
mod types;
mod unique_id;
mod version;
mod wait;

pub use communicator::{Communicator, Options};
pub use error::{Attempt, ErrorCode, NcclError, Result};
pub use group::Group;
pub use nccl::Nccl;
pub use result::Status;
pub use search::{PATH_VARIABLE, Search};
pub use types::{Buffers, DataType, ReduceOp, Stream};
pub use unique_id::UniqueId;
pub use version::Version;
pub use wait::Wait;
