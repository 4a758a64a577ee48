//! The environment of this JavaScript thread: its end, its threads, and what its garbage collector should know.

use crate::convert::{count, device};
use crate::error::Result;
use napi::Env;
use napi::bindgen_prelude::JsObjectValue;
use napi_derive::napi;
use std::cell::Cell;
use syncbn_comm::interrupt::set_interrupt;
use syncbn_runtime::storage;

thread_local! {
    /// The environment of this JavaScript thread, while it lives.
    static ENVIRONMENT: Cell<Option<Env>> = const { Cell::new(None) };
}

/// Runs when an environment loads the addon: the main thread's, and each worker's.
#[napi_derive::napi(module_exports)]
pub fn on_load(_exports: napi::bindgen_prelude::Object<'_>, env: Env) -> Result<()> {
    ENVIRONMENT.set(Some(env));
    if let Ok(threads) = std::env::var("SYNCBN_NUM_THREADS").unwrap_or_default().parse::<usize>() {
        syncbn_cpu::pool::set_num_threads(threads.max(1));
    }
    if std::env::var("SYNCBN_CUDA_NO_CACHE").is_ok_and(|value| value == "1") {
        syncbn_runtime::gpu::set_keep_freed(false);
    }
    if std::env::var("SYNCBN_CUDA_POISON").is_ok_and(|value| value == "1") {
        syncbn_runtime::gpu::set_poison_freed(true);
    }
    set_interrupt(is_ending);
    env.add_env_cleanup_hook((), |()| {
        ENVIRONMENT.set(None);
        // A thread that is terminated inside a capture has not ended it, and others wait for that.
        syncbn_runtime::gpu::abandon_captures_of_this_thread();
        crate::process_group::abort_all();
    })?;
    Ok(())
}

/// Whether this thread's JavaScript is being terminated: an environment that ends refuses every call that could run
/// JavaScript, even one as small as this.
fn is_ending() -> bool {
    ENVIRONMENT
        .get()
        .is_some_and(|env| env.get_global().and_then(|global| global.has_named_property("process")).is_err())
}

/// Tells the collector that handles of this thread keep `bytes` more (or, negative, fewer) alive.
pub fn adjust(bytes: i64) {
    if let Some(env) = ENVIRONMENT.get().filter(|_| bytes != 0) {
        // A hint only; without it collection comes later.
        let _ = env.adjust_external_memory(bytes);
    }
}

/// Version of the addon.
#[napi(catch_unwind)]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").into()
}

/// Threads one operation uses.
#[napi(catch_unwind)]
pub fn set_num_threads(threads: f64) -> Result<()> {
    syncbn_cpu::pool::set_num_threads(count("setNumThreads", "threads", threads)?.max(1));
    Ok(())
}

/// Threads one operation uses.
#[napi(catch_unwind)]
pub fn get_num_threads() -> u32 {
    syncbn_cpu::pool::num_threads() as u32
}

/// Counts of this process.
#[napi(object)]
pub struct BindingMemoryStats {
    pub tensors: i64,
    pub bytes: i64,
    pub reserved_bytes: i64,
    pub peak_bytes: i64,
}

/// Live storages of a device and their bytes.
#[napi(catch_unwind)]
pub fn memory_stats(device_name: String) -> Result<BindingMemoryStats> {
    let stats = storage::memory_stats(&device("memoryStats", &device_name)?);
    Ok(BindingMemoryStats {
        tensors: stats.tensors as i64,
        bytes: stats.bytes as i64,
        reserved_bytes: stats.reserved_bytes as i64,
        peak_bytes: stats.peak_bytes as i64,
    })
}
