//! The collectives, and what they have in common: which function they call, and what is checked before.

use crate::communicator::{Communicator, rank_number};
use crate::error::Result;
use crate::group;
use crate::result::{self, Operands, Status};
use crate::sys::{Functions, ncclComm_t};
use crate::types::{Buffers, ReduceOp, Stream};
use crate::wait::{Clock, Wait};
use std::ffi::c_int;

/// The collectives.
impl Communicator {
    /// Enqueues: every rank's `count` elements, in rank order, into every rank's `receive`. In place if `send` is this
    /// rank's part of `receive`.
    ///
    /// # Safety
    /// `send` is good for `count` elements and `receive` for `count · world_size` on this communicator's device, which
    /// `stream` belongs to. Both stay so, and nothing else writes `send` or uses `receive`, until `stream` has come to
    /// the end of this work. Every rank makes the same call with the same count and type.
    pub unsafe fn all_gather(&self, buffers: Buffers, stream: Stream, wait: Wait<'_>) -> Result<()> {
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.collective(Collective::AllGather, buffers, stream, wait) }
    }

    /// Enqueues: `count` elements, combined over the ranks by `op`, into every rank's `receive`. In place if `send` is
    /// `receive`.
    ///
    /// # Safety
    /// `send` and `receive` are good for `count` elements on this communicator's device, which `stream` belongs to. Both
    /// stay so, and nothing else writes `send` or uses `receive`, until `stream` has come to the end of this work. Every
    /// rank makes the same call with the same count, type and operator.
    pub unsafe fn all_reduce(&self, buffers: Buffers, op: ReduceOp, stream: Stream, wait: Wait<'_>) -> Result<()> {
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.collective(Collective::AllReduce(op), buffers, stream, wait) }
    }

    /// Enqueues: `count` elements of `root`'s `send` into every rank's `receive`. In place if `send` is `receive`.
    ///
    /// # Safety
    /// `receive`, and on `root` also `send`, are good for `count` elements on this communicator's device, which `stream`
    /// belongs to. They stay so, and nothing else writes `send` or uses `receive`, until `stream` has come to the end of
    /// this work. Every rank makes the same call with the same count, type and root.
    pub unsafe fn broadcast(&self, buffers: Buffers, root: usize, stream: Stream, wait: Wait<'_>) -> Result<()> {
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.collective(Collective::Broadcast { root }, buffers, stream, wait) }
    }

    /// Enqueues: `count` elements, combined over the ranks by `op`, into `root`'s `receive`. In place if `send` is
    /// `receive`.
    ///
    /// # Safety
    /// `send`, and on `root` also `receive`, are good for `count` elements on this communicator's device, which `stream`
    /// belongs to. They stay so, and nothing else writes `send` or uses `receive`, until `stream` has come to the end of
    /// this work. Every rank makes the same call with the same count, type, operator and root.
    pub unsafe fn reduce(
        &self,
        buffers: Buffers,
        op: ReduceOp,
        root: usize,
        stream: Stream,
        wait: Wait<'_>,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.collective(Collective::Reduce { op, root }, buffers, stream, wait) }
    }

    /// # Safety
    /// As for the collective's own function.
    unsafe fn collective(
        &self,
        collective: Collective,
        buffers: Buffers,
        stream: Stream,
        wait: Wait<'_>,
    ) -> Result<()> {
        group::refuse_inside(collective.function())?;
        collective.check(self.world_size())?;
        // SAFETY: the caller vouches for the buffers and the stream; the handle is ready, and the state locked.
        self.operation(collective.function(), &mut Clock::start(wait), |handle| unsafe {
            collective.enqueue(self.functions(), buffers, handle, stream)
        })
    }
}

/// A collective and its own arguments.
#[derive(Clone, Copy)]
pub(crate) enum Collective {
    AllGather,
    AllReduce(ReduceOp),
    Broadcast { root: usize },
    Reduce { op: ReduceOp, root: usize },
}

impl Collective {
    /// NCCL's function.
    pub(crate) fn function(self) -> &'static str {
        match self {
            Self::AllGather => "ncclAllGather",
            Self::AllReduce(_) => "ncclAllReduce",
            Self::Broadcast { .. } => "ncclBroadcast",
            Self::Reduce { .. } => "ncclReduce",
        }
    }

    /// Refuses a root that is none of the ranks.
    pub(crate) fn check(self, world_size: usize) -> Result<()> {
        match self {
            Self::AllGather | Self::AllReduce(_) => Ok(()),
            Self::Broadcast { root } | Self::Reduce { root, .. } => {
                rank_number(self.function(), "root", root, world_size).map(drop)
            }
        }
    }

    /// Calls the function, after [`check`](Self::check).
    ///
    /// # Safety
    /// As for the function of the same name in [`result`].
    pub(crate) unsafe fn enqueue(
        self,
        functions: &Functions,
        buffers: Buffers,
        communicator: ncclComm_t,
        stream: Stream,
    ) -> Result<Status> {
        let Buffers { send, receive, count, data_type } = buffers;
        let (data_type, stream) = (data_type.code(), stream.as_raw());
        let operands = Operands { send, receive, count, data_type, communicator, stream };
        // SAFETY: the caller vouches for the operands; a checked root is below the number of ranks, a `c_int`.
        unsafe {
            match self {
                Self::AllGather => result::all_gather(functions, operands),
                Self::AllReduce(op) => result::all_reduce(functions, operands, op.code()),
                Self::Broadcast { root } => result::broadcast(functions, operands, root as c_int),
                Self::Reduce { op, root } => result::reduce(functions, operands, op.code(), root as c_int),
            }
        }
    }
}
