//! The calls of NCCL on views of device memory: the one place of this crate that hands it addresses.
#![allow(unsafe_code, reason = "NCCL takes raw addresses; the views they are taken from say what is behind them")]

use std::ffi::c_void;
use syncbn_core::{Code, DType, Error, ReduceOp, Result};
use syncbn_cuda::{CudaSliceMut, Stream};
use syncbn_nccl::{Buffers, Communicator, DataType, NcclError, Wait};

/// NCCL's error in the library's words.
pub(crate) fn to_error(error: NcclError) -> Error {
    let code = match error {
        NcclError::NotFound { .. } | NcclError::TooOld { .. } | NcclError::MissingSymbol { .. } => {
            Code::BackendUnavailable
        }
        NcclError::Timeout { .. } => Code::Timeout,
        NcclError::Cancelled { .. } | NcclError::Aborted { .. } | NcclError::Closed { .. } => Code::Aborted,
        _ => Code::Nccl,
    };
    Error::new(code, format!("nccl: {error}"))
}

fn data_type(dtype: DType) -> DataType {
    match dtype {
        DType::F32 => DataType::F32,
        DType::F64 => DataType::F64,
        DType::F16 => DataType::F16,
        DType::BF16 => DataType::Bf16,
        DType::I32 => DataType::I32,
        DType::I64 => DataType::I64,
    }
}

fn operation(op: ReduceOp) -> syncbn_nccl::ReduceOp {
    match op {
        ReduceOp::Sum => syncbn_nccl::ReduceOp::Sum,
        ReduceOp::Avg => syncbn_nccl::ReduceOp::Avg,
        ReduceOp::Prod => syncbn_nccl::ReduceOp::Prod,
        ReduceOp::Min => syncbn_nccl::ReduceOp::Min,
        ReduceOp::Max => syncbn_nccl::ReduceOp::Max,
    }
}

fn stream_of(stream: &Stream) -> syncbn_nccl::Stream {
    syncbn_nccl::Stream::from_raw(stream.handle() as *mut c_void)
}

fn in_place(data: &CudaSliceMut<'_>) -> Buffers {
    Buffers::in_place(data.pointer() as *mut c_void, data.len(), data_type(data.dtype()))
}

/// Enqueues an all_gather in place: this rank's part of `slots` to all.
pub(crate) fn all_gather(
    communicator: &Communicator,
    slots: &CudaSliceMut<'_>,
    stream: &Stream,
    wait: Wait<'_>,
) -> Result<(), NcclError> {
    let count = slots.len() / communicator.world_size();
    let own = slots.as_slice().part(communicator.rank() * count..(communicator.rank() + 1) * count);
    let (send, receive) = (own.pointer() as *const c_void, slots.pointer() as *mut c_void);
    let buffers = Buffers::new(send, receive, count, data_type(slots.dtype()));
    // SAFETY: `slots` holds a part for each rank on the communicator's device, which the callers in `group.rs` check;
    // they keep its memory until the stream has passed this work. That all ranks make the same call is what the
    // watchdog checks: one that does not is aborted.
    unsafe { communicator.all_gather(buffers, stream_of(stream), wait) }
}

/// Enqueues an all_reduce in place.
pub(crate) fn all_reduce(
    communicator: &Communicator,
    data: &CudaSliceMut<'_>,
    op: ReduceOp,
    stream: &Stream,
    wait: Wait<'_>,
) -> Result<(), NcclError> {
    // SAFETY: as above; the result has the size of the operand.
    unsafe { communicator.all_reduce(in_place(data), operation(op), stream_of(stream), wait) }
}

/// Enqueues broadcasts in place, as one: of each tensor from its root.
pub(crate) fn broadcast(
    communicator: &Communicator,
    data: &[(CudaSliceMut<'_>, usize)],
    stream: &Stream,
    wait: Wait<'_>,
) -> Result<(), NcclError> {
    communicator.group(wait, |group| {
        data.iter().try_for_each(|(data, root)| {
            // SAFETY: as above; the result has the size of the operand.
            unsafe { group.broadcast(in_place(data), *root, stream_of(stream)) }
        })
    })
}
