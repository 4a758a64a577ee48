//! GPUs: what there is, waiting, captures, memory of other CUDA libraries.

use crate::convert::{count, device, dtype, format, sizes};
use crate::error::{Result, checked, to_js};
use crate::process_group::promise;
use crate::tensor::{BindingTensor, handle};
use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;
use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use syncbn_core::{Code, Error};
use syncbn_runtime::gpu::{self, Graph, Pointer};

/// Owners whose memory was let go of, for JavaScript to forget; those of all its environments.
static RELEASED: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static OWNERS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// The owners that this environment holds.
    static HELD: RefCell<HashSet<u32>> = RefCell::new(HashSet::new());
}

/// What keeps memory of another library alive: an id that JavaScript holds an object under.
struct Owner(u32);

impl Drop for Owner {
    fn drop(&mut self) {
        if self.0 != 0 {
            RELEASED.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
        }
    }
}

/// An id to hold an owner under, of this environment alone.
#[napi(catch_unwind)]
pub fn new_owner() -> u32 {
    let id = OWNERS.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    HELD.with_borrow_mut(|held| held.insert(id));
    id
}

/// This environment's owners whose memory was let go of, once each.
#[napi(catch_unwind)]
pub fn released_owners() -> Vec<u32> {
    gpu::let_go_of_parked();
    let mut released = RELEASED.lock().unwrap_or_else(PoisonError::into_inner);
    HELD.with_borrow_mut(|held| {
        let (mine, others) = released.drain(..).partition(|id| held.remove(id));
        *released = others;
        mine
    })
}

#[napi(catch_unwind)]
pub fn cuda_device_count() -> u32 {
    gpu::device_count().unwrap_or(0) as u32
}

#[napi(catch_unwind)]
pub fn cuda_unavailable_reason() -> Option<String> {
    match gpu::device_count() {
        Ok(0) => Some("cuda: the driver shows no GPU".into()),
        Ok(_) => None,
        Err(error) => Some(error.message().into()),
    }
}

#[napi(catch_unwind, ts_return_type = "Promise<void>")]
pub fn cuda_synchronize<'env>(env: &'env Env, device_name: String) -> Result<Object<'env>> {
    let device = device("synchronize", &device_name)?;
    // Refused here, where the capture is: the thread that waits would not know.
    checked(device.cuda().map_or(Ok(()), |cuda| cuda.refuse_in_capture("synchronize")))?;
    promise(env, move || gpu::synchronize(&device), |()| ())
}

/// What a GPU was asked to do so far.
#[napi(object)]
pub struct BindingCudaCounts {
    pub launches: i64,
    pub host_waits: i64,
    pub uploads: i64,
    pub downloads: i64,
}

pub(crate) fn cuda_of(op: &str, device_name: &str) -> Result<syncbn_cuda::Cuda> {
    let device = device(op, device_name)?;
    let expected = || to_js(Error::expected(Code::Device, op, "device 'cuda:N'", format!("'{device_name}'")));
    device.cuda().cloned().ok_or_else(expected)
}

#[napi(catch_unwind)]
pub fn cuda_counts(device_name: String) -> Result<BindingCudaCounts> {
    let counts = cuda_of("counts", &device_name)?.counts();
    Ok(BindingCudaCounts {
        launches: counts.launches as i64,
        host_waits: counts.host_waits as i64,
        uploads: counts.uploads as i64,
        downloads: counts.downloads as i64,
    })
}

#[napi(catch_unwind)]
pub fn set_keep_freed(keep: bool) {
    gpu::set_keep_freed(keep);
}

#[napi(catch_unwind)]
pub fn tensor_pointer(tensor: &BindingTensor) -> Result<BigInt> {
    Ok(BigInt::from(checked(gpu::pointer(&tensor.get()?))?))
}

fn address(op: &str, value: &BigInt) -> Result<u64> {
    let (negative, value, lossless) = value.get_u64();
    if !negative && lossless {
        return Ok(value);
    }
    Err(to_js(Error::expected(Code::Argument, op, "an address of at most 64 bits", "another number")))
}

#[allow(clippy::too_many_arguments, reason = "what a tensor over foreign memory is made of")]
#[napi(catch_unwind)]
pub fn tensor_from_pointer(
    pointer: BigInt,
    shape: Vec<i64>,
    dtype_name: String,
    memory_format: String,
    device_name: String,
    stream: Option<BigInt>,
    owner: f64,
) -> Result<BindingTensor> {
    const OP: &str = "fromPointer";
    // From here on the owner is let go of when the tensor is, or at once if there is none.
    let owner = Arc::new(Owner(count(OP, "owner", owner)? as u32));
    let (device, shape) = (device(OP, &device_name)?, sizes(OP, &shape)?);
    let pointer = Pointer {
        address: address(OP, &pointer)?,
        shape: &shape,
        dtype: dtype(&dtype_name)?,
        format: format(&memory_format)?,
        stream: stream.map(|stream| address(OP, &stream)).transpose()?,
    };
    handle(gpu::from_pointer(&device, &pointer, owner))
}

/// Recorded work. Opaque to JavaScript.
#[napi]
pub struct BindingGraph(RefCell<Option<Arc<Graph>>>);

#[napi(catch_unwind)]
pub fn capture_start(device_name: String) -> Result<()> {
    checked(cuda_of("capture", &device_name)?.start_capture())
}

#[napi(catch_unwind)]
pub fn capture_finish(device_name: String) -> Result<BindingGraph> {
    let graph = checked(cuda_of("capture", &device_name)?.finish_capture())?;
    Ok(BindingGraph(RefCell::new(Some(graph))))
}

#[napi(catch_unwind)]
pub fn capture_abandon(device_name: String) -> Result<()> {
    cuda_of("capture", &device_name)?.abandon_capture();
    Ok(())
}

#[napi(catch_unwind)]
pub fn is_capturing(device_name: String) -> Result<bool> {
    Ok(cuda_of("capture", &device_name)?.is_capturing())
}

#[napi(catch_unwind)]
pub fn graph_replay(graph: &BindingGraph) -> Result<()> {
    let graph = graph.0.borrow();
    let disposed = || to_js(Error::new(Code::Disposed, "this capture was disposed"));
    checked(graph.as_ref().ok_or_else(disposed)?.replay())
}

#[napi(catch_unwind)]
pub fn graph_dispose(graph: &BindingGraph) {
    graph.0.take();
}

/// One GPU.
#[napi(object)]
pub struct BindingGpu {
    pub name: String,
    pub uuid: String,
    pub total_memory: i64,
    pub free_memory: i64,
    pub compute_capability: String,
    pub multiprocessors: i32,
    /// GPUs whose memory it reads directly.
    pub peers: Vec<u32>,
    /// Who computes matrix products.
    pub gemm: String,
}

/// What the driver tells.
#[napi(object, use_nullable = true)]
pub struct BindingCudaInfo {
    /// The newest CUDA version it supports.
    pub driver: Option<String>,
    pub error: Option<String>,
    pub devices: Vec<BindingGpu>,
}

fn gpu_of(gpu: gpu::Gpu) -> BindingGpu {
    let (major, minor) = gpu.info.compute_capability;
    BindingGpu {
        name: gpu.info.name,
        uuid: gpu.info.uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
        total_memory: gpu.info.total_memory as i64,
        free_memory: gpu.free_memory as i64,
        compute_capability: format!("{major}.{minor}"),
        multiprocessors: gpu.info.multiprocessors,
        peers: gpu.peers.into_iter().map(|peer| peer as u32).collect(),
        gemm: gpu.gemm,
    }
}

#[napi(catch_unwind)]
pub fn cuda_info() -> BindingCudaInfo {
    match gpu::survey() {
        Ok((driver, gpus)) => {
            let devices = gpus.into_iter().map(gpu_of).collect();
            BindingCudaInfo { driver: Some(driver), error: None, devices }
        }
        Err(error) => BindingCudaInfo { driver: None, error: Some(error.message().into()), devices: vec![] },
    }
}

/// Which NCCL would be used.
#[napi(object, use_nullable = true)]
pub struct BindingNcclInfo {
    pub version: Option<String>,
    pub path: Option<String>,
    /// Every path that was tried.
    pub error: Option<String>,
}

#[napi(catch_unwind)]
pub fn nccl_info() -> BindingNcclInfo {
    match gpu::survey_nccl() {
        Ok((version, path)) => {
            BindingNcclInfo { version: Some(version), path: Some(path.display().to_string()), error: None }
        }
        Err(error) => BindingNcclInfo { version: None, path: None, error: Some(error.message().into()) },
    }
}
