//! The exchange between test devices: ranks are threads, and a collective is one more job of each rank's queue.

use super::{DEADLINE, Device, Memory};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use syncbn_core::{Code, Collective, DType, Error, ReduceOp, Result};

/// One call of all ranks: what each of them brought so far.
type Parts = Vec<Option<Vec<u8>>>;

/// Where the ranks of a group meet.
pub struct Meeting {
    world_size: usize,
    calls: Mutex<HashMap<usize, Parts>>,
    arrived: Condvar,
}

impl Meeting {
    pub fn new(world_size: usize) -> Arc<Self> {
        Arc::new(Self { world_size, calls: Mutex::default(), arrived: Condvar::new() })
    }

    /// Brings this rank's part of call `sequence` and waits for those of the others.
    fn exchange(&self, sequence: usize, rank: usize, part: Vec<u8>) -> Vec<Vec<u8>> {
        let mut calls = self.calls.lock().unwrap();
        calls.entry(sequence).or_insert_with(|| vec![None; self.world_size])[rank] = Some(part);
        self.arrived.notify_all();
        let missing = |calls: &mut HashMap<usize, Parts>| calls[&sequence].iter().any(Option::is_none);
        let (calls, timeout) = self.arrived.wait_timeout_while(calls, DEADLINE, missing).unwrap();
        assert!(!timeout.timed_out(), "a rank did not come to call {sequence}");
        calls[&sequence].iter().flatten().cloned().collect()
    }
}

/// One rank's place in a group.
pub struct Member<'a> {
    device: &'a Device,
    meeting: Arc<Meeting>,
    rank: usize,
    calls: AtomicUsize,
}

impl<'a> Member<'a> {
    pub fn new(device: &'a Device, meeting: &Arc<Meeting>, rank: usize) -> Self {
        Self { device, meeting: meeting.clone(), rank, calls: AtomicUsize::new(0) }
    }

    /// Enqueues an exchange of what `bring` reads; `take` gets all ranks' parts.
    fn enqueue(
        &self,
        memory: &Memory,
        bring: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static,
        take: impl FnOnce(&Memory, Vec<Vec<u8>>) + Send + 'static,
    ) -> Result<()> {
        let (memory, meeting, rank) = (memory.clone(), self.meeting.clone(), self.rank);
        let sequence = self.calls.fetch_add(1, SeqCst);
        self.device.enqueue_collective(move || {
            let part = bring(&memory.bytes.lock().unwrap());
            take(&memory, meeting.exchange(sequence, rank, part));
        })
    }
}

impl Collective<Memory> for Member<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.meeting.world_size
    }

    fn all_gather(&self, slots: &mut Memory) -> Result<()> {
        let (rank, size) = (self.rank, self.world_size());
        let own = move |bytes: &[u8]| bytes.chunks_exact(bytes.len() / size).nth(rank).unwrap().to_vec();
        self.enqueue(slots, own, |slots, parts| *slots.bytes.lock().unwrap() = parts.concat())
    }

    fn all_reduce(&self, data: &mut Memory, dtype: DType, op: ReduceOp) -> Result<()> {
        if op != ReduceOp::Sum {
            return Err(Error::expected(Code::Argument, "all_reduce", "the sum, the only one batch norm needs", op));
        }
        self.enqueue(data, <[u8]>::to_vec, move |data, parts| {
            let add = |sums: Vec<f64>, part: Vec<f64>| sums.iter().zip(part).map(|(a, b)| a + b).collect();
            let sums: Vec<f64> = parts.iter().map(|part| data.read(part, dtype)).reduce(add).unwrap();
            data.write(0, dtype, &sums);
        })
    }

    fn broadcast(&self, data: &mut Memory, src: usize) -> Result<()> {
        self.enqueue(data, <[u8]>::to_vec, move |data, mut parts| {
            *data.bytes.lock().unwrap() = parts.swap_remove(src);
        })
    }

    fn barrier(&self) -> Result<()> {
        self.enqueue(&Memory::of(&[]), <[u8]>::to_vec, |_, _| ())
    }
}
