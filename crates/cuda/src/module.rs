//! The committed PTX and the functions in it, compiled by the driver when they are first needed.

use crate::allocator::relaxed;
use crate::device::{Cuda, lock};
use crate::error::describe;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Mutex;
use syncbn_core::{Code, Error, Result};

macro_rules! modules {
    ($($name:ident = $file:literal,)*) => {
        /// One file of kernels: `kernels/NAME.cu` and the PTX made of it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Module {
            $(#[doc = concat!("`kernels/", $file, ".cu`")] $name,)*
        }

        impl Module {
            /// The file's name without its ending.
            pub const fn file(self) -> &'static str {
                match self { $(Module::$name => $file,)* }
            }

            /// The PTX, ending in a zero byte.
            const fn ptx(self) -> &'static str {
                match self { $(Module::$name => concat!(include_str!(concat!("../ptx/", $file, ".ptx")), "\0"),)* }
            }
        }
    };
}

modules! {
    BatchNormBf16 = "batch_norm_bf16",
    BatchNormConstantStatistics = "batch_norm_constant_statistics",
    BatchNormF16 = "batch_norm_f16",
    BatchNormF32 = "batch_norm_f32",
    BatchNormF64 = "batch_norm_f64",
    Binary = "binary",
    Cast = "cast",
    Conv2d = "conv2d",
    Fill = "fill",
    Gemm = "gemm",
    Loss = "loss",
    Optimizer = "optimizer",
    Pool2d = "pool2d",
    Reduce = "reduce",
    Relu = "relu",
    Restride = "restride",
    Softmax = "softmax",
}

/// A kernel's entry point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel<'a> {
    /// The file it is in.
    pub(crate) module: Module,
    /// Its name there.
    pub(crate) name: &'a str,
}

/// What a device has loaded. Modules stay loaded as long as the process.
#[derive(Default)]
pub(crate) struct Modules(Mutex<Loaded>);

#[derive(Default)]
struct Loaded {
    modules: HashMap<Module, sys::CUmodule>,
    functions: HashMap<String, sys::CUfunction>,
}

impl Cuda {
    /// The function of `kernel`; the context is current.
    pub(crate) fn function(&self, kernel: Kernel<'_>) -> Result<sys::CUfunction> {
        let mut loaded = lock(&self.0.modules.0);
        if let Some(&function) = loaded.functions.get(kernel.name) {
            return Ok(function);
        }
        let module = match loaded.modules.get(&kernel.module) {
            Some(&module) => module,
            None => {
                let module = self.load(kernel.module)?;
                loaded.modules.insert(kernel.module, module);
                module
            }
        };
        let name = CString::new(kernel.name).map_err(|_| Error::internal("a kernel's name has a zero byte"))?;
        // SAFETY: the module is loaded and stays so.
        let function = unsafe { result::module::get_function(module, name) }.map_err(|error| {
            Error::internal(format!("no kernel {} in {}.ptx: {}", kernel.name, kernel.module.file(), describe(error)))
        })?;
        loaded.functions.insert(kernel.name.to_string(), function);
        Ok(function)
    }

    fn load(&self, module: Module) -> Result<sys::CUmodule> {
        // SAFETY: the image is PTX and ends in a zero byte; the context is current.
        let loaded = relaxed(|| unsafe { result::module::load_data(module.ptx().as_ptr().cast()) });
        loaded.map_err(|error| self.not_loaded(module, error))
    }

    #[cold]
    fn not_loaded(&self, module: Module, error: DriverError) -> Error {
        let (major, minor) = self.info().compute_capability;
        let why = match error.0 {
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => "the driver is too old for it, update the driver".into(),
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_INVALID_PTX => {
                format!("it needs compute capability 7.5 (Turing), {} has {major}.{minor}", self.info().name)
            }
            _ => "the driver refused it".into(),
        };
        let message =
            format!("{self}: the kernels of {}.ptx cannot be loaded: {why}: {}", module.file(), describe(error));
        Error::new(Code::BackendUnavailable, message)
    }
}
