//! What a forward call leaves for backward.

use crate::device::keep_waiting;
use crate::process_group::ProcessGroup;
use std::sync::Arc;
use syncbn_core::message::read_slot_of;
use syncbn_core::{BatchNormShape, Code, Collective, DType, Error, Result, sync_batch_norm};
use syncbn_cpu::Cpu;
use syncbn_cuda::{Cuda, CudaBuffer};

/// The slot (count, mean, invstd), with rows of float64, where the input is.
#[derive(Clone, Debug)]
pub enum Statistics {
    /// On the host.
    Host(Vec<u8>),
    /// On a GPU.
    Cuda(Arc<CudaBuffer>),
}

/// The statistics of a forward call and the group they were merged over.
#[derive(Clone, Debug)]
pub struct Saved {
    pub(crate) statistics: Statistics,
    pub(crate) shape: BatchNormShape,
    pub(crate) dtype: DType,
    pub(crate) batch_statistics: bool,
    pub(crate) group: Option<ProcessGroup>,
}

impl Saved {
    /// The slot on the host.
    ///
    /// # Errors
    /// [`Code::Device`] if the forward call was on a GPU.
    pub fn host_statistics(&self) -> Result<&Vec<u8>> {
        match &self.statistics {
            Statistics::Host(slot) => Ok(slot),
            Statistics::Cuda(buffer) => Err(other_device(buffer.device(), "the CPU")),
        }
    }

    /// The slot on `cuda`.
    ///
    /// # Errors
    /// [`Code::Device`] if the forward call was somewhere else.
    pub(crate) fn cuda_statistics(&self, cuda: &Cuda) -> Result<&CudaBuffer> {
        match &self.statistics {
            Statistics::Cuda(buffer) if buffer.device() == cuda => Ok(buffer),
            Statistics::Cuda(buffer) => Err(other_device(buffer.device(), cuda)),
            Statistics::Host(_) => Err(other_device("the CPU", cuda)),
        }
    }

    /// Whether the statistics are those of the input.
    pub fn batch_statistics(&self) -> bool {
        self.batch_statistics
    }

    /// Element type of the forward call's input.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The group backward exchanges with, on the host.
    pub fn host_group(&self) -> sync_batch_norm::Group<'_, Cpu> {
        self.group.as_ref().map(|group| group as &dyn Collective<Vec<u8>>)
    }

    /// The group backward exchanges with, on a GPU.
    pub(crate) fn cuda_group(&self) -> sync_batch_norm::Group<'_, Cuda> {
        self.group.as_ref().map(|group| group as &dyn Collective<CudaBuffer>)
    }

    /// (values per channel over all ranks, mean, 1/√(var + eps)). Waits for the GPU if they are there.
    pub fn values(&self) -> Result<(u64, Vec<f64>, Vec<f64>)> {
        Ok(match &self.statistics {
            Statistics::Host(slot) => read_slot_of(slot, DType::F64),
            Statistics::Cuda(buffer) => read_slot_of(&buffer.to_host(&keep_waiting)?, DType::F64),
        })
    }

    /// Fails unless backward's input is that of the forward call.
    pub fn expect(&self, op: &str, shape: BatchNormShape, dtype: DType) -> Result<()> {
        if dtype != self.dtype {
            return Err(Error::expected(Code::DType, op, format!("the forward call's {}", self.dtype), dtype));
        }
        if shape != self.shape {
            let describe = |s: &BatchNormShape| {
                let layout = if s.channels_last { "channels last" } else { "contiguous" };
                format!("N {} × C {} × {} values, {layout}", s.batch, s.channels, s.spatial)
            };
            return Err(Error::expected(
                Code::Shape,
                op,
                format!("the forward call's {}", describe(&self.shape)),
                describe(&shape),
            ));
        }
        Ok(())
    }
}

#[cold]
fn other_device(forward: impl std::fmt::Display, backward: impl std::fmt::Display) -> Error {
    Error::expected(Code::Device, "batchNorm backward", format!("tensors on {forward}, as in forward"), backward)
}
