//! The GPU side of a process group: a communicator of NCCL, its stream and its watchdog.
//!
//! Collectives are enqueued on the device's communication stream, which waits for the compute stream by an event, and
//! the compute stream waits for the result by another: the host waits for neither. All groups of a device share the one
//! stream, so two communicators never run at once. What ranks must agree on is compared off this path, see [`watchdog`].
//!
//! When something fails, first the callers and the other ranks are told, then the communicator is aborted. NCCL may not
//! come back from that: then its thread, and the memory its kernels may still write to, are left behind on purpose.

mod call;
mod enqueue;
mod group;
mod journal;
mod replay;
pub(crate) mod setup;
pub(crate) mod turn;
mod watchdog;

pub(crate) use enqueue::to_error;
pub(crate) use group::{Members, NcclGroup, join_communication};
