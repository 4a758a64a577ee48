//! Batch norm and the operations around it on NVIDIA GPUs: [`syncbn_core::Kernels`] and [`syncbn_core::Ops`] for
//! [`Cuda`].
//!
//! The kernels are CUDA C++ in `kernels/`, one operation a file; the PTX that nvcc made of them is committed in `ptx/`
//! and compiled by the driver when it is first needed. The driver is loaded at run time, so that a program with this
//! crate starts on a machine without one; [`driver::require`] says what is missing.
//!
//! A device has one compute stream. Calls enqueue on it in program order and return; what only the device can see (a
//! single value per channel over all ranks) is written to its status word and raised by the next call that waits for
//! it, see [`Cuda::synchronize`]. All of it can be recorded into a [`capture::Graph`].
//!
//! Code map: `driver` finds and loads libcuda, `device` is [`Cuda`] itself, `allocator` and `buffer` its memory, `copy`
//! what goes to and from the host, `stream` streams and events, `module` and `launch` the kernels' way to the device,
//! `capture` the recording of graphs, `recording` who is told of replays, `gate` what keeps other threads out meanwhile;
//! `parked` holds what the device still uses; `batch_norm` and `ops` have a launcher for each kernel.

mod allocator;
mod batch_norm;
mod buffer;
pub mod capture;
mod copy;
mod counts;
pub mod cublas;
mod device;
pub mod driver;
mod error;
mod foreign;
mod gate;
pub mod kernel_table;
mod launch;
mod module;
mod ops;
mod parked;
mod pinned;
mod recording;
mod slice;
mod status;
pub mod stream;

pub use allocator::{MemoryStats, release_kept, set_keep_freed, set_poison_freed};
pub use buffer::CudaBuffer;
pub use capture::{Graph, abandon_captures_of_this_thread};
pub use counts::Counts;
pub use device::{Cuda, DeviceInfo};
pub use foreign::Foreign;
pub use gate::refuse_while_recording;
pub use ops::set_convolution_workspace;
pub use parked::let_go_of_parked;
pub use pinned::PinnedBuffer;
pub use recording::{GraphHandle, Participant};
pub use slice::{CudaSlice, CudaSliceMut};
pub use stream::{Event, Stream};
