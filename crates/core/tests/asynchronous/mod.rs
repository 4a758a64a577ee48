//! A device whose work runs later, for tests: calls only enqueue, as on a GPU.
//!
//! A [`Device`] is one rank's queue and the thread that runs it in order. The thread starts only at
//! [`Device::synchronize`], so a call that needed a result earlier could never get it. What goes wrong on the device
//! (a single value per channel) cannot be the result of a call: it sets a status word that `synchronize` reports.

mod collective;
mod kernels;

pub use collective::{Meeting, Member};

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use syncbn_core::{Code, DType, Error, Result};

/// Bounds every wait.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A handle on device memory; clones share it.
#[derive(Clone)]
pub struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    dtype: DType,
}

impl Memory {
    /// Numbers of float64, copied to the device.
    pub fn of(numbers: &[f64]) -> Self {
        let memory = Self::uninitialised(8 * numbers.len(), DType::F64);
        memory.write(0, DType::F64, numbers);
        memory
    }

    /// Bytes that no one wrote yet.
    fn uninitialised(bytes: usize, dtype: DType) -> Self {
        Self { bytes: Arc::new(Mutex::new(vec![0xAA; bytes])), dtype }
    }

    /// The numbers, copied from the device.
    pub fn numbers(&self) -> Vec<f64> {
        let bytes = self.bytes.lock().unwrap();
        self.read(&bytes, self.dtype)
    }

    /// All the memory as numbers of `dtype`.
    fn read(&self, bytes: &[u8], dtype: DType) -> Vec<f64> {
        match dtype {
            DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            DType::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            other => panic!("no numbers of {other} on the test device"),
        }
    }

    /// Replaces numbers of `dtype` from byte `start` on.
    fn write(&self, start: usize, dtype: DType, numbers: &[f64]) {
        let mut bytes = self.bytes.lock().unwrap();
        for (index, &number) in numbers.iter().enumerate() {
            let at = start + index * dtype.size();
            match dtype {
                DType::F32 => bytes[at..at + 4].copy_from_slice(&(number as f32).to_le_bytes()),
                _ => bytes[at..at + 8].copy_from_slice(&number.to_le_bytes()),
            }
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// What a queue was given so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enqueued {
    pub kernels: usize,
    pub collectives: usize,
}

#[derive(Default)]
struct Counters {
    kernels: AtomicUsize,
    collectives: AtomicUsize,
    run: AtomicUsize,
}

/// One rank's device.
pub struct Device {
    statistics: DType,
    queue: Sender<Job>,
    waiting: Mutex<Option<Receiver<Job>>>,
    counters: Arc<Counters>,
    /// The status word: whether a batch had one value per channel.
    too_few_values: Arc<AtomicBool>,
}

impl Device {
    /// A device that merges, exchanges and keeps statistics in `statistics`.
    pub fn new(statistics: DType) -> Self {
        let (queue, waiting) = channel();
        let (counters, too_few_values) = Default::default();
        Self { statistics, queue, waiting: Mutex::new(Some(waiting)), counters, too_few_values }
    }

    fn enqueue(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        let counters = self.counters.clone();
        let job = Box::new(move || {
            job();
            counters.run.fetch_add(1, SeqCst);
        });
        self.queue.send(job).map_err(|_| Error::internal("the test device's queue is gone"))
    }

    fn enqueue_kernel(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        self.counters.kernels.fetch_add(1, SeqCst);
        self.enqueue(job)
    }

    fn enqueue_collective(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        self.counters.collectives.fetch_add(1, SeqCst);
        self.enqueue(job)
    }

    /// What was enqueued so far.
    pub fn enqueued(&self) -> Enqueued {
        let Counters { kernels, collectives, .. } = &*self.counters;
        Enqueued { kernels: kernels.load(SeqCst), collectives: collectives.load(SeqCst) }
    }

    /// How much of it has run.
    pub fn run(&self) -> usize {
        self.counters.run.load(SeqCst)
    }

    /// Waits for everything enqueued, and reports and clears the status word.
    pub fn synchronize(&self) -> Result<()> {
        if let Some(jobs) = self.waiting.lock().unwrap().take() {
            thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        }
        let (done, fence) = channel();
        self.enqueue(move || done.send(()).unwrap())?;
        fence.recv_timeout(DEADLINE).map_err(|_| Error::new(Code::Timeout, "the test device did not finish"))?;
        if self.too_few_values.swap(false, SeqCst) {
            return Err(Error::new(Code::TooFewValues, "Expected more than 1 value per channel when training"));
        }
        Ok(())
    }
}

impl syncbn_core::Device for Device {
    type In<'a> = &'a Memory;
    type Out<'a> = &'a Memory;
    type Buffer = Memory;
}
