//! The fake libraries in this process.

use crate::{Counters, Variant, folder, variant};
use libloading::Library;
use std::path::Path;
use std::sync::OnceLock;

/// What the fake driver offers beyond CUDA's own functions.
pub(crate) struct Driver {
    pub(crate) counters: unsafe extern "C" fn(*mut Counters),
    pub(crate) reset_counters: unsafe extern "C" fn(),
    pub(crate) launched_kernels: unsafe extern "C" fn(*mut u8, usize) -> usize,
    set_order: unsafe extern "C" fn(u32),
}

/// Whether this process is to run on a GPU and nothing else: `REQUIRE_GPU=1`.
fn stands_aside() -> bool {
    std::env::var_os("REQUIRE_GPU").is_some_and(|value| value == "1")
}

/// Makes the fakes what this process finds when it loads libcuda, libnccl or libcublas by name, whatever else is
/// installed. Has no effect on a library of that name that is loaded already, and none with `REQUIRE_GPU=1` in the
/// environment. Says on stderr that results are not a GPU's.
///
/// # Panics
/// As [`folder`], and if a library cannot be loaded.
pub fn install() {
    if stands_aside() {
        return;
    }
    install_driver();
    for file in ["libnccl.so.2", "libcublas.so.13"] {
        load(&folder(variant::of_this_process()).join(file));
    }
}

/// As [`install`], the driver alone: for tests of a machine without NCCL and cuBLAS.
///
/// # Panics
/// As [`install`].
pub fn install_driver() {
    if !stands_aside() {
        driver();
    }
}

/// Chooses the order in which the threads of a block, and blocks, run: 0 up, 1 down, k ≥ 2 shuffled by seed k. A result
/// that depends on it misses a barrier, or counts on the order of blocks. With `REQUIRE_GPU=1` the order is the GPU's.
///
/// # Panics
/// As [`install`].
pub fn set_order(order: u32) {
    if stands_aside() {
        return;
    }
    // SAFETY: the function takes any number and may be called at any time.
    unsafe { (driver().set_order)(order) };
}

pub(crate) fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let variant = variant::of_this_process();
        let library = load(&folder(variant).join("libcuda.so.1"));
        announce(variant);
        // SAFETY: these are the types in driver/counters.cc and registry.h, and the library is never unloaded.
        unsafe {
            Driver {
                counters: *library.get(b"fake_counters").expect("the fake driver has counters"),
                reset_counters: *library.get(b"fake_reset_counters").expect("the fake driver resets counters"),
                launched_kernels: *library.get(b"fake_launched_kernels").expect("the fake driver lists kernels"),
                set_order: *library.get(b"fake_set_order").expect("the fake driver has orders"),
            }
        }
    })
}

#[expect(clippy::print_stderr, reason = "nobody shall take a result of the fakes for a GPU's")]
fn announce(variant: Variant) {
    eprintln!("FAKE CUDA: {} libraries; kernels run on the CPU; not a GPU result", variant.name());
}

/// Loads a library for the rest of the process, its names visible to libraries loaded later.
fn load(path: &Path) -> &'static Library {
    Box::leak(Box::new(open(path).unwrap_or_else(|error| panic!("cannot load {}: {error}", path.display()))))
}

#[cfg(unix)]
fn open(path: &Path) -> Result<Library, libloading::Error> {
    use libloading::os::unix;
    // SAFETY: the library is ours; what it runs as it is loaded fills the registry of kernels.
    unsafe { unix::Library::open(Some(path), unix::RTLD_NOW | unix::RTLD_GLOBAL) }.map(Library::from)
}

/// Never reached: [`folder`] panics first where there is no Linux.
#[cfg(not(unix))]
fn open(path: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: as above.
    unsafe { Library::new(path) }
}
