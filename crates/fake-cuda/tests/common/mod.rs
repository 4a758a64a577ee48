//! What the tests share: a device with its calls checked, and test bodies in processes of their own.
#![allow(dead_code, reason = "every test binary uses its part")]

use cudarc::driver::sys::{self, CUcontext, CUfunction, CUmodule, CUresult, CUstream};
use std::ffi::{CString, c_void};
use std::process::{Command, Output};
use std::ptr::null_mut;

/// Set in the process that runs a test's body: the name of the test.
const CHILD: &str = "FAKE_TEST_CHILD";

/// Runs `body` in a process of its own, with these environment variables, and returns how that ended. `name` is the
/// test's that calls this.
pub fn in_child(name: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Output {
    let program = std::env::current_exe().expect("a test knows its own program");
    in_child_of(Command::new(program), name, variables, body)
}

/// As [`in_child`], with a command prepared for this test program.
pub fn in_child_of(mut command: Command, name: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Output {
    if std::env::var(CHILD).is_ok_and(|child| child == name) {
        body();
        std::process::exit(0);
    }
    command.args([name, "--exact", "--nocapture", "--include-ignored"]).env(CHILD, name);
    command.envs(variables.iter().copied()).output().expect("the test program runs again")
}

/// What a process wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails unless the process ended well.
pub fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}\n{}", output.status, stderr(output));
}

/// Fails unless the process ended itself with this message.
pub fn assert_died(output: &Output, message: &str) {
    let text = stderr(output);
    assert!(!output.status.success(), "the process should have died of: {message}\n{text}");
    assert!(text.contains(message), "died, but without saying: {message}\n{text}");
}

/// Fails unless the call succeeded.
#[track_caller]
pub fn check(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

/// A fake device whose context is current on the thread that made it.
pub struct Gpu {
    pub context: CUcontext,
    module: CUmodule,
}

/// Parameters of all test kernels: `FakeTestParams` of params.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Params {
    pub x: u64,
    pub y: u64,
    pub value: f32,
    pub count: u32,
}

/// The kernels in tests/kernels.
const KERNELS: [&str; 17] = [
    "fake_test_add",
    "fake_test_warp_functions",
    "fake_test_half_types",
    "fake_test_copy_vectors",
    "fake_test_divergent_barrier",
    "fake_test_wrong_mask",
    "fake_test_exited_lane",
    "fake_test_mixed_functions",
    "fake_test_deadlock",
    "fake_test_shared_overrun",
    "fake_test_sum",
    "fake_test_sum_without_sync",
    "fake_test_sum_without_fence",
    "fake_test_local_arrays",
    "fake_test_shared_array",
    "fake_test_unwritten_shared",
    "fake_test_who_is_first",
];

/// PTX that declares all test kernels, as nvcc would.
pub fn ptx(version: &str) -> CString {
    let mut text = format!(".version {version}\n.target sm_75\n.address_size 64\n");
    for name in KERNELS {
        text += &format!(".visible .entry {name}(\n\t.param .align 8 .b8 {name}_param_0[24]\n)\n{{\n\tret;\n}}\n");
    }
    CString::new(text).expect("PTX has no zero byte")
}

impl Gpu {
    pub fn new(ordinal: i32) -> Self {
        syncbn_fake_cuda::install();
        let mut gpu = Self { context: null_mut(), module: null_mut() };
        // SAFETY: the pointers are to live variables; the image ends in a zero.
        unsafe {
            check(sys::cuInit(0));
            check(sys::cuDevicePrimaryCtxRetain(&mut gpu.context, ordinal));
            check(sys::cuCtxSetCurrent(gpu.context));
            check(sys::cuModuleLoadData(&mut gpu.module, ptx("7.4").as_ptr().cast()));
        }
        gpu
    }

    /// A non-blocking stream.
    pub fn stream(&self) -> CUstream {
        let mut stream = null_mut();
        // SAFETY: the pointer is to a live variable.
        check(unsafe { sys::cuStreamCreate(&mut stream, 1) });
        stream
    }

    pub fn allocate(&self, floats: usize) -> u64 {
        let mut pointer = 0;
        // SAFETY: the pointer is to a live variable.
        check(unsafe { sys::cuMemAlloc_v2(&mut pointer, floats * 4) });
        pointer
    }

    pub fn upload(&self, data: &[f32]) -> u64 {
        let pointer = self.allocate(data.len());
        // SAFETY: both sides hold the slice's bytes.
        check(unsafe { sys::cuMemcpyHtoD_v2(pointer, data.as_ptr().cast(), size_of_val(data)) });
        pointer
    }

    /// Waits for the stream, then copies.
    pub fn download(&self, stream: CUstream, pointer: u64, floats: usize) -> Vec<f32> {
        let mut data = vec![0.0f32; floats];
        // SAFETY: both sides hold as many bytes.
        check(unsafe { sys::cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), pointer, floats * 4, stream) });
        self.wait(stream);
        data
    }

    pub fn wait(&self, stream: CUstream) {
        // SAFETY: the stream exists.
        check(unsafe { sys::cuStreamSynchronize(stream) });
    }

    pub fn function(&self, name: &str) -> CUfunction {
        let (mut function, name) = (null_mut(), CString::new(name).expect("a name has no zero byte"));
        // SAFETY: the pointer is to a live variable, the module is loaded.
        check(unsafe { sys::cuModuleGetFunction(&mut function, self.module, name.as_ptr()) });
        function
    }

    /// Launches a test kernel and returns what the driver says.
    pub fn try_launch(&self, stream: CUstream, name: &str, grid: u32, block: u32, mut params: Params) -> CUresult {
        let mut pointers = [(&raw mut params).cast::<c_void>()];
        let shared_bytes = 16;
        // SAFETY: the kernel takes one struct of this layout.
        unsafe {
            sys::cuLaunchKernel(
                self.function(name),
                grid,
                1,
                1,
                block,
                1,
                1,
                shared_bytes,
                stream,
                pointers.as_mut_ptr(),
                null_mut(),
            )
        }
    }

    #[track_caller]
    pub fn launch(&self, stream: CUstream, name: &str, grid: u32, block: u32, params: Params) {
        check(self.try_launch(stream, name, grid, block, params));
    }

    /// Makes the stream do nothing for a while.
    pub fn stall(&self, stream: CUstream, milliseconds: usize) {
        extern "C" fn sleep(milliseconds: *mut c_void) {
            std::thread::sleep(std::time::Duration::from_millis(milliseconds as u64));
        }
        // SAFETY: the function does not read through its argument.
        check(unsafe { sys::cuLaunchHostFunc(stream, Some(sleep), milliseconds as *mut c_void) });
    }
}
