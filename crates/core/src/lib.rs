//! What synchronized batch normalization is, without saying where it runs.
//!
//! Types ([`DType`], [`MemoryFormat`], [`BatchNormShape`], [`ChannelStats`]), the rules of the numeric contract
//! (merge of statistics, running statistics, the float64 [`mod@reference`]), the plans that need no device (gradient
//! [`mod@bucket`]s, the [`mod@sampler`]), the seams a backend fills ([`Kernels`], [`Ops`], [`Collective`]) and the
//! orchestration generic over them ([`mod@sync_batch_norm`]).
//!
//! Nothing here does I/O, reads the environment or knows a device.
#![forbid(unsafe_code)]

pub mod bucket;
pub mod channel_stats;
pub mod collective;
pub mod device;
pub mod dtype;
pub mod error;
pub mod generator;
pub mod kernels;
pub mod memory_format;
pub mod message;
pub mod ops;
pub mod reference;
pub mod running_stats;
pub mod sampler;
pub mod shape;
pub mod sync_batch_norm;

pub use channel_stats::ChannelStats;
pub use collective::{Collective, ReduceOp};
pub use device::Device;
pub use dtype::DType;
pub use error::{Code, Error, ErrorKind, Result};
pub use kernels::Kernels;
pub use memory_format::MemoryFormat;
pub use ops::Ops;
pub use shape::BatchNormShape;
