//! Collectives of a tcp group on tensors of a GPU: through page-locked host memory.
//!
//! So ranks without NCCL work too, several on one GPU among them. The host waits for the GPU, and so such a collective
//! cannot be captured.

use crate::device::keep_waiting;
use crate::storage::OwnedCudaWriting;
use std::sync::{Mutex, PoisonError};
use syncbn_core::Result;
use syncbn_cuda::{Cuda, CudaSliceMut, Event, PinnedBuffer, Stream};

/// Host memory a group's exchanges go through, and the copy that may still read it.
#[derive(Default)]
pub(crate) struct Staging(Mutex<Option<Stage>>);

struct Stage {
    memory: PinnedBuffer,
    device: Cuda,
    busy: Option<Event>,
}

impl Staging {
    /// Copies `data` to the host, lets `exchange` change it and copies it back; the compute stream waits for the result.
    pub(crate) fn run(
        &self,
        cuda: &Cuda,
        data: CudaSliceMut<'_>,
        exchange: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        cuda.refuse_in_capture("an exchange over TCP")?;
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stage = stage(&mut guard, cuda, data.bytes())?;
        if let Some(event) = stage.busy.take() {
            cuda.wait_for(&event, &keep_waiting)?;
        }
        cuda.download_pinned(data.as_slice(), &mut stage.memory, cuda.stream())?;
        cuda.synchronize(&keep_waiting)?;
        exchange(&mut stage.memory.as_mut_slice()[..data.bytes()])?;
        cuda.upload_pinned(&stage.memory, data, cuda.stream())?;
        stage.busy = Some(cuda.record(cuda.stream())?);
        Ok(())
    }
}

/// Memory of at least `bytes` bytes, made anew if there is none.
fn stage<'a>(place: &'a mut Option<Stage>, cuda: &Cuda, bytes: usize) -> Result<&'a mut Stage> {
    let fits = |stage: &Stage| stage.device == *cuda && stage.memory.as_slice().len() >= bytes;
    if !place.as_ref().is_some_and(fits) {
        // Not before the copy from it is done is the old memory let go of.
        if let Some(Stage { device, busy: Some(event), .. }) = place.as_ref() {
            device.wait_for(event, &keep_waiting)?;
        }
        let memory = PinnedBuffer::new(cuda, bytes.next_power_of_two())?;
        *place = Some(Stage { memory, device: cuda.clone(), busy: None });
    }
    place.as_mut().ok_or_else(|| syncbn_core::Error::internal("the stage was just made"))
}

/// One asynchronous exchange of a tensor: made on the caller, run on the group's thread.
pub(crate) struct StagedExchange {
    data: OwnedCudaWriting,
    cuda: Cuda,
    stream: Stream,
    memory: PinnedBuffer,
}

impl StagedExchange {
    /// Enqueues the copy to the host, after the compute stream's work so far.
    pub(crate) fn start(data: OwnedCudaWriting) -> Result<Self> {
        let cuda = data.device().clone();
        cuda.refuse_in_capture("an exchange over TCP")?;
        let stream = cuda.new_stream()?;
        let mut memory = PinnedBuffer::new(&cuda, data.input().bytes())?;
        cuda.order(cuda.stream(), &stream)?;
        cuda.download_pinned(data.input(), &mut memory, &stream)?;
        Ok(Self { data, cuda, stream, memory })
    }

    /// Waits for the copy, exchanges, copies back and waits for that: later work on any stream sees the result.
    pub(crate) fn finish(mut self, exchange: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        self.cuda.wait_for(&self.cuda.record(&self.stream)?, &keep_waiting)?;
        exchange(self.memory.as_mut_slice())?;
        self.cuda.upload_pinned(&self.memory, self.data.slice(), &self.stream)?;
        self.cuda.wait_for(&self.cuda.record(&self.stream)?, &keep_waiting)
    }
}
