//! What the fake driver was asked to do.

use crate::library::driver;

/// Calls since the process began or [`reset_counters`] was called.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernels launched, those of graphs included; one recorded in a capture counts when the graph runs.
    pub kernel_launches: u64,
    /// NCCL collectives enqueued or recorded.
    pub collectives: u64,
    /// Times the host was made to wait: synchronising a stream, an event or the context, copies that block, `cuMemFree`.
    pub host_waits: u64,
    /// Copies from host to device.
    pub copies_to_device: u64,
    /// Copies from device to host.
    pub copies_to_host: u64,
    /// Copies from device to device.
    pub copies_on_device: u64,
    /// Fills.
    pub memsets: u64,
    /// Events recorded.
    pub event_records: u64,
    /// Waits of streams for events.
    pub event_waits: u64,
    /// Allocations of device memory.
    pub allocations: u64,
    /// Device memory freed.
    pub frees: u64,
    /// Bytes of device memory in use now; [`reset_counters`] leaves it.
    pub live_bytes: u64,
    /// Graphs launched.
    pub graph_launches: u64,
    /// Host functions enqueued.
    pub host_functions: u64,
}

/// The counters now.
///
/// # Panics
/// As [`folder`](crate::folder): the driver is loaded if it was not.
pub fn counters() -> Counters {
    let mut counters = Counters::default();
    // SAFETY: the function writes one struct of this layout.
    unsafe { (driver().counters)(&mut counters) };
    counters
}

/// Sets all counters but the live bytes to 0 and forgets the launched kernels.
///
/// # Panics
/// As [`counters`].
pub fn reset_counters() {
    // SAFETY: the function takes nothing and may be called at any time.
    unsafe { (driver().reset_counters)() };
}

/// The names of the kernels launched since [`reset_counters`], in order of their launch; of the last 65,536.
///
/// # Panics
/// As [`counters`].
pub fn launched_kernels() -> Vec<String> {
    let mut names = Vec::new();
    loop {
        // SAFETY: the function writes at most as many bytes as the buffer has.
        let needed = unsafe { (driver().launched_kernels)(names.as_mut_ptr(), names.len()) };
        if needed <= names.len() {
            names.truncate(needed);
            return String::from_utf8_lossy(&names).lines().map(str::to_owned).collect();
        }
        names.resize(needed, 0);
    }
}
