//! cuBLAS, loaded at run time if it is there: the faster way to matrix products.
//!
//! float32 stays float32: the default math mode uses no TF32. The library works in memory given to it, so that its
//! calls can be recorded into a graph and give the same bits each time.

use crate::buffer::CudaBuffer;
use crate::device::lock;
use crate::ops::Gemm;
use crate::{Cuda, Stream};
use libloading::Library;
use std::ffi::{c_int, c_longlong, c_void};
use std::path::Path;
use std::sync::Mutex;
use syncbn_core::{Code, DType, Error, Result};

/// Where the dynamic loader looks if nothing else is named.
pub const LIBRARY_NAMES: [&str; 2] = ["libcublas.so.13", "libcublas.so.12"];

/// Memory the library computes in, as NVIDIA recommends for the architecture.
const WORKSPACE_BYTES: usize = 8 << 20;
const WORKSPACE_BYTES_HOPPER: usize = 32 << 20;

const DEFAULT_MATH: c_int = 0;
const NOT_TRANSPOSED: c_int = 0;
const TRANSPOSED: c_int = 1;

type Handle = *mut c_void;
type Status = c_int;
type GemmStridedBatched<T> = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const T,
    *const T,
    c_int,
    c_longlong,
    *const T,
    c_int,
    c_longlong,
    *const T,
    *mut T,
    c_int,
    c_longlong,
    c_int,
) -> Status;

/// The functions this crate calls; their library stays loaded.
struct Functions {
    create: unsafe extern "C" fn(*mut Handle) -> Status,
    destroy: unsafe extern "C" fn(Handle) -> Status,
    get_version: unsafe extern "C" fn(Handle, *mut c_int) -> Status,
    set_stream: unsafe extern "C" fn(Handle, *mut c_void) -> Status,
    set_math_mode: unsafe extern "C" fn(Handle, c_int) -> Status,
    set_workspace: unsafe extern "C" fn(Handle, *mut c_void, usize) -> Status,
    sgemm: GemmStridedBatched<f32>,
    dgemm: GemmStridedBatched<f64>,
    _library: Library,
}

impl Functions {
    /// The library at `path`, if it loads and has every function.
    fn load(path: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: the library is cuBLAS by its name or by the caller's word; its initialisers ask for nothing.
        let library = unsafe { Library::new(path) }?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of the function in cublas_api.h, and the library is kept with it.
                *unsafe { library.get($name) }?
            };
        }
        Ok(Self {
            create: function!(b"cublasCreate_v2"),
            destroy: function!(b"cublasDestroy_v2"),
            get_version: function!(b"cublasGetVersion_v2"),
            set_stream: function!(b"cublasSetStream_v2"),
            set_math_mode: function!(b"cublasSetMathMode"),
            set_workspace: function!(b"cublasSetWorkspace_v2"),
            sgemm: function!(b"cublasSgemmStridedBatched"),
            dgemm: function!(b"cublasDgemmStridedBatched"),
            _library: library,
        })
    }
}

/// cuBLAS on one device.
pub(crate) struct Cublas {
    functions: Functions,
    /// One call at a time: a handle belongs to one thread at a time.
    handle: Mutex<Owned>,
    version: (c_int, c_int),
    _workspace: CudaBuffer,
}

/// The library's state for one device.
struct Owned(Handle);

// SAFETY: the library allows a handle on every thread, one at a time; the mutex around it sees to that.
unsafe impl Send for Owned {}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: made by `create` and destroyed once. An error here has nobody to go to.
        let _ = unsafe { (self.functions.destroy)(lock(&self.handle).0) };
    }
}

fn check(call: &str, status: Status) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(Error::new(Code::Cuda, format!("{call}: cuBLAS status {status}"))) }
}

impl Cublas {
    fn new(cuda: &Cuda, functions: Functions) -> Result<Self> {
        let hopper = cuda.info().compute_capability >= (9, 0);
        let bytes = if hopper { WORKSPACE_BYTES_HOPPER } else { WORKSPACE_BYTES };
        let workspace = cuda.buffer(bytes)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the device's context is current, as the allocation made it; the pointer is to a live handle.
        check("cublasCreate", unsafe { (functions.create)(&mut handle) })?;
        let cublas = Self { functions, handle: Mutex::new(Owned(handle)), version: (0, 0), _workspace: workspace };
        cublas.configure(cuda.stream(), bytes)
    }

    fn configure(mut self, stream: &Stream, workspace_bytes: usize) -> Result<Self> {
        let (functions, handle, workspace) = (&self.functions, lock(&self.handle).0, self._workspace.pointer());
        let mut version = 0;
        // SAFETY: the handle is alive, and the pointer is to a live integer.
        check("cublasGetVersion", unsafe { (functions.get_version)(handle, &mut version) })?;
        // SAFETY: the handle and the stream are of one device; devices and their streams live as long as the process.
        check("cublasSetStream", unsafe { (functions.set_stream)(handle, stream.handle() as *mut c_void) })?;
        // SAFETY: the memory is as long as said and kept with the handle. Setting the stream would undo this, so it
        // comes first.
        check("cublasSetWorkspace", unsafe {
            (functions.set_workspace)(handle, workspace as *mut c_void, workspace_bytes)
        })?;
        // SAFETY: the handle is alive.
        check("cublasSetMathMode", unsafe { (functions.set_math_mode)(handle, DEFAULT_MATH) })?;
        self.version = (version / 10_000, version / 100 % 100);
        Ok(self)
    }

    /// Enqueues the products; false if a size is beyond what the library counts in.
    fn gemm(&self, dtype: DType, operands: [u64; 3], gemm: &Gemm) -> Result<bool> {
        let Some(sizes) = Sizes::new(gemm) else { return Ok(false) };
        let handle = lock(&self.handle);
        let beta = if gemm.accumulate { 1.0 } else { 0.0 };
        let status = match dtype {
            // SAFETY: the operands are matrices of float32 of these sizes, as `ops::gemm` promises.
            DType::F32 => unsafe { sizes.call(self.functions.sgemm, handle.0, operands, (1.0, beta as f32)) },
            // SAFETY: the same with float64.
            DType::F64 => unsafe { sizes.call(self.functions.dgemm, handle.0, operands, (1.0, beta)) },
            _ => return Ok(false),
        };
        check("cublasGemmStridedBatched", status).map(|()| true)
    }
}

/// A product as the library counts it. Its matrices are column-major, so ours are their transposes, and C = A·B becomes
/// Cᵀ = Bᵀ·Aᵀ: the operands change places.
struct Sizes {
    operations: [c_int; 2],
    sizes: [c_int; 3],
    leading: [c_int; 3],
    strides: [c_longlong; 3],
    batch: c_int,
}

impl Sizes {
    fn new(gemm: &Gemm) -> Option<Self> {
        let all = |values: [usize; 3]| {
            let [a, b, c] = values.map(c_int::try_from);
            Some([a.ok()?, b.ok()?, c.ok()?])
        };
        let operation = |transpose| if transpose { TRANSPOSED } else { NOT_TRANSPOSED };
        Some(Self {
            operations: [operation(gemm.transpose_b), operation(gemm.transpose_a)],
            sizes: all([gemm.n, gemm.m, gemm.k])?,
            leading: all([gemm.ldb, gemm.lda, gemm.ldc])?,
            strides: [gemm.stride_b, gemm.stride_a, gemm.stride_c].map(|stride| stride as c_longlong),
            batch: c_int::try_from(gemm.batch).ok()?,
        })
    }

    /// # Safety
    /// The operands are matrices of `T` of these sizes on the handle's device.
    unsafe fn call<T>(
        &self,
        function: GemmStridedBatched<T>,
        handle: Handle,
        [a, b, c]: [u64; 3],
        (alpha, beta): (T, T),
    ) -> Status {
        let ([m, n, k], [first, second]) = (self.sizes, self.operations);
        let ([ld_first, ld_second, ldc], [stride_first, stride_second, stride_c]) = (self.leading, self.strides);
        // SAFETY: promised by the caller; the factors are on the host, as the handle's pointer mode says by default.
        unsafe {
            function(
                handle,
                first,
                second,
                m,
                n,
                k,
                &alpha,
                b as *const T,
                ld_first,
                stride_first,
                a as *const T,
                ld_second,
                stride_second,
                &beta,
                c as *mut T,
                ldc,
                stride_c,
                self.batch,
            )
        }
    }
}

impl Cuda {
    /// Looks for cuBLAS at `candidates` (paths, or names for the dynamic loader) and uses the first that loads and
    /// works with this device's driver for its products, else our own kernels. Only the first call for a device
    /// decides, and the first product decides for [`LIBRARY_NAMES`]; either must come before a capture. Answers whether
    /// cuBLAS is used.
    pub fn use_cublas(&self, candidates: &[&Path]) -> bool {
        self.cublas(candidates).is_some()
    }

    /// Who computes matrix products: "cublas 13.1", or "own kernel".
    pub fn gemm_backend(&self) -> String {
        let cublas = self.cublas(&LIBRARY_NAMES.map(Path::new));
        cublas.map_or("own kernel".into(), |cublas| format!("cublas {}.{}", cublas.version.0, cublas.version.1))
    }

    fn cublas(&self, candidates: &[&Path]) -> Option<&Cublas> {
        let works = |path: &&Path| Functions::load(path).ok().and_then(|functions| Cublas::new(self, functions).ok());
        self.0.cublas.get_or_init(|| candidates.iter().find_map(works)).as_ref()
    }

    /// Enqueues the products with cuBLAS; false if our kernels must do it.
    pub(crate) fn cublas_gemm(&self, dtype: DType, operands: [u64; 3], gemm: &Gemm) -> Result<bool> {
        let Some(cublas) = self.cublas(&LIBRARY_NAMES.map(Path::new)) else { return Ok(false) };
        let _pass = self.enter()?;
        cublas.gemm(dtype, operands, gemm)
    }
}
