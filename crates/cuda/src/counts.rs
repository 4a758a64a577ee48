//! What a device was asked to do, counted: for tests and for whoever wonders why a step waits.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the device was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels enqueued.
    pub launches: u64,
    /// Times the host waited for the device.
    pub host_waits: u64,
    /// Copies from the host.
    pub uploads: u64,
    /// Copies to the host.
    pub downloads: u64,
}

#[derive(Default)]
pub(crate) struct AtomicCounts {
    pub(crate) launches: AtomicU64,
    pub(crate) host_waits: AtomicU64,
    pub(crate) uploads: AtomicU64,
    pub(crate) downloads: AtomicU64,
}

impl AtomicCounts {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            launches: read(&self.launches),
            host_waits: read(&self.host_waits),
            uploads: read(&self.uploads),
            downloads: read(&self.downloads),
        }
    }
}
