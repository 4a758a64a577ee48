//! Collectives of a tcp group on tensors of a GPU: through page-locked host memory.
//!
//! So ranks without NCCL work too, several on one GPU among them. The host waits for the GPU, and so such a collective
//! cannot be captured.

use crate::device::keep_waiting;
use crate::storage::OwnedCudaWriting;
use std::sync::{Arc, Mutex, PoisonError};
use syncbn_core::Result;
use syncbn_cuda::{Cuda, CudaSliceMut, Event, PinnedBuffer, Stream};

const REFUSED: &str = "an exchange over TCP";

/// Ways to the host and back that no exchange uses now. Page-locked memory is too slow to make for each exchange.
#[derive(Clone, Default)]
pub(crate) struct Staging(Arc<Mutex<Vec<Lane>>>);

/// Page-locked memory and a stream of its own.
struct Lane {
    memory: PinnedBuffer,
    device: Cuda,
    stream: Stream,
    /// The copy that may still read the memory.
    busy: Option<Event>,
}

impl Lane {
    /// Waits until the device does not use the memory.
    fn settle(&mut self) -> Result<()> {
        let waited = self.busy.as_ref().map_or(Ok(()), |event| self.device.wait_for(event, &keep_waiting));
        if waited.is_ok() {
            self.busy = None;
        }
        waited
    }

    /// Marks what is enqueued on `stream` so far as using the memory.
    fn used_by(&mut self, stream: &Stream) -> Result<()> {
        self.busy = Some(self.device.record(stream)?);
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Freeing memory that a copy still uses would wait for the device, however long that takes.
        if let Some(event) = self.busy.take()
            && let Ok(empty) = PinnedBuffer::new(&self.device, 0)
        {
            self.device.park(event, Box::new(std::mem::replace(&mut self.memory, empty)));
        }
    }
}

impl Staging {
    /// A lane for `bytes` bytes that nobody else uses.
    fn take(&self, cuda: &Cuda, bytes: usize) -> Result<Lane> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let size = |lane: &Lane| lane.memory.as_slice().len();
        let fits = |(_, lane): &(usize, &Lane)| lane.device == *cuda && size(lane) >= bytes;
        let best = lanes.iter().enumerate().filter(fits).min_by_key(|(_, lane)| size(lane)).map(|(index, _)| index);
        if let Some(index) = best {
            return Ok(lanes.swap_remove(index));
        }
        // In place of one that is too small, so that there are no more than exchanges at one time.
        drop(lanes.pop());
        let memory = PinnedBuffer::new(cuda, bytes.next_power_of_two())?;
        Ok(Lane { memory, device: cuda.clone(), stream: cuda.new_stream()?, busy: None })
    }

    fn put(&self, lane: Lane) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
    }

    /// Copies `data` to the host, lets `exchange` change it and copies it back; the compute stream waits for the result.
    pub(crate) fn run(
        &self,
        cuda: &Cuda,
        data: CudaSliceMut<'_>,
        exchange: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        cuda.refuse_in_capture(REFUSED)?;
        let mut lane = self.take(cuda, data.bytes())?;
        lane.settle()?;
        cuda.download_pinned(data.as_slice(), &mut lane.memory, cuda.stream())?;
        lane.used_by(cuda.stream())?;
        cuda.synchronize(&keep_waiting)?;
        lane.busy = None;
        exchange(&mut lane.memory.as_mut_slice()[..data.bytes()])?;
        cuda.upload_pinned(&lane.memory, data, cuda.stream())?;
        lane.used_by(cuda.stream())?;
        self.put(lane);
        Ok(())
    }

    /// Enqueues the copy of `data` to the host, after the compute stream's work so far.
    pub(crate) fn start(&self, data: OwnedCudaWriting) -> Result<StagedExchange> {
        let cuda = data.device().clone();
        cuda.refuse_in_capture(REFUSED)?;
        let mut lane = self.take(&cuda, data.input().bytes())?;
        lane.settle()?;
        cuda.order(cuda.stream(), &lane.stream)?;
        cuda.download_pinned(data.input(), &mut lane.memory, &lane.stream)?;
        lane.busy = Some(cuda.record(&lane.stream)?);
        Ok(StagedExchange { data, lane, staging: self.clone() })
    }
}

/// One asynchronous exchange of a tensor: made on the caller, run on the group's thread.
pub(crate) struct StagedExchange {
    data: OwnedCudaWriting,
    lane: Lane,
    staging: Staging,
}

impl StagedExchange {
    /// Waits for the copy, exchanges, copies back and waits for that: later work on any stream sees the result.
    pub(crate) fn finish(self, exchange: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let Self { mut data, mut lane, staging } = self;
        lane.settle()?;
        let target = data.slice();
        exchange(&mut lane.memory.as_mut_slice()[..target.bytes()])?;
        lane.device.upload_pinned(&lane.memory, target, &lane.stream)?;
        lane.busy = Some(lane.device.record(&lane.stream)?);
        lane.settle()?;
        staging.put(lane);
        Ok(())
    }
}
