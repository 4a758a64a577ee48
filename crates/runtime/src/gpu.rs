//! The GPUs of this machine: what there is, captures, memory of other libraries.

use crate::device::{Device, keep_waiting};
use crate::tensor::Tensor;
use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use syncbn_comm::Environment;
use syncbn_core::{DType, Error, MemoryFormat, Result};
use syncbn_cuda::{Cuda, DeviceInfo, Foreign, driver};
use syncbn_nccl::{Nccl, Search};

pub use syncbn_cuda::{Counts, Graph, abandon_captures_of_this_thread, set_keep_freed, set_poison_freed};

/// Number of GPUs; why there are none to use otherwise.
pub fn device_count() -> Result<usize> {
    driver::device_count()
}

/// Waits until a device has finished what was enqueued, collectives that nobody has waited for among it; see
/// [`Cuda::synchronize`].
pub fn synchronize(device: &Device) -> Result<()> {
    let Some(cuda) = device.cuda() else { return Ok(()) };
    cuda.refuse_in_capture("synchronize")?;
    crate::nccl::join_communication(cuda)?;
    cuda.synchronize(&keep_waiting)?;
    cuda.let_go_of_parked();
    Ok(())
}

/// Lets go of what the devices do not use any more: owners of other libraries' memory among it.
pub fn let_go_of_parked() {
    syncbn_cuda::let_go_of_parked();
}

/// One GPU of this machine.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// What it is.
    pub info: DeviceInfo,
    /// Free bytes, other processes' use counted.
    pub free_memory: usize,
    /// GPUs whose memory it reads directly.
    pub peers: Vec<usize>,
    /// Who computes matrix products.
    pub gemm: String,
}

/// Every GPU of this machine, and the newest CUDA version the driver supports.
pub fn survey() -> Result<(String, Vec<Gpu>)> {
    let version = driver::cuda_version()?;
    let devices = (0..driver::device_count()?).map(open).collect::<Result<Vec<_>>>()?;
    let gpu = |cuda: &Cuda| {
        let others = devices.iter().filter(|other| *other != cuda);
        let peers =
            others.map(|other| Ok((other.ordinal(), cuda.can_access_peer(other)?))).collect::<Result<Vec<_>>>()?;
        let peers = peers.into_iter().filter(|(_, can)| *can).map(|(ordinal, _)| ordinal).collect();
        let (free_memory, _) = cuda.memory_info()?;
        Ok(Gpu { info: cuda.info().clone(), free_memory, peers, gemm: cuda.gemm_backend() })
    };
    Ok((version, devices.iter().map(gpu).collect::<Result<_>>()?))
}

/// The version of NCCL and where it was found, or the error that lists every path tried.
pub fn survey_nccl() -> Result<(String, PathBuf)> {
    let nccl = Nccl::load(&nccl_search(&Environment::from_process())).map_err(crate::nccl::to_error)?;
    Ok((nccl.version().to_string(), nccl.path().to_path_buf()))
}

/// Where NCCL is looked for.
pub(crate) fn nccl_search(environment: &Environment) -> Search {
    Search::from_variables(|name| environment.get(name).map(Into::into), Path::new("/"))
}

/// The GPU of index `ordinal`, with matrix products by the cuBLAS this process's environment names, or the loader's.
pub(crate) fn open(ordinal: usize) -> Result<Cuda> {
    static CUBLAS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let cuda = Cuda::new(ordinal)?;
    let named = || Environment::from_process().get("SYNCBN_CUBLAS_PATH").map(PathBuf::from);
    if let Some(path) = CUBLAS.get_or_init(named) {
        cuda.use_cublas(&[path]);
    }
    Ok(cuda)
}

/// What a tensor over memory of another CUDA library is made of.
#[derive(Debug)]
pub struct Pointer<'a> {
    /// Device address.
    pub address: u64,
    /// Sizes in the order (N, C, …).
    pub shape: &'a [usize],
    /// Element type.
    pub dtype: DType,
    /// Order in memory, which is dense.
    pub format: MemoryFormat,
    /// The stream the contents are made on, to be waited for; none if they are there.
    pub stream: Option<u64>,
}

/// A tensor over memory of another CUDA library, without a copy. `owner` is dropped when neither the tensor nor the device
/// nor a graph uses the memory any more.
pub fn from_pointer(device: &Device, pointer: &Pointer<'_>, owner: Arc<dyn Any + Send + Sync>) -> Result<Tensor> {
    const OP: &str = "fromPointer";
    let Some(cuda) = device.cuda() else {
        return Err(Error::expected(syncbn_core::Code::Device, OP, "device 'cuda:N'", format!("'{device}'")));
    };
    if pointer.stream.is_some() {
        cuda.refuse_in_capture("a wait for another library's stream")?;
    }
    let numel = crate::layout::numel(OP, pointer.shape)?;
    pointer.format.check_rank(OP, pointer.shape.len())?;
    let memory = Foreign::new(cuda, pointer.address, pointer.dtype, numel, owner)?;
    let tensor = Tensor::foreign(memory, pointer.shape, pointer.format)?;
    if let Some(stream) = pointer.stream {
        cuda.wait_for_stream(stream)?;
    }
    Ok(tensor)
}

/// Device address of a tensor's first element, for other CUDA libraries.
pub fn pointer(tensor: &Tensor) -> Result<u64> {
    tensor.storage().cuda().map(|memory| memory.pointer())
}
