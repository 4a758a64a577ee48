//! The loaded library.

use crate::communicator::{Communicator, Options};
use crate::error::{Attempt, NcclError, Result};
use crate::result;
use crate::search::Search;
use crate::sys::Functions;
use crate::unique_id::UniqueId;
use crate::version::Version;
use crate::wait::Wait;
use libloading::Library;
use std::ffi::c_int;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// NCCL, loaded. Clones are the same library, and any thread may use them.
///
/// The library stays in the process for ever: NCCL leaves threads behind, whose code must not go.
#[derive(Clone)]
pub struct Nccl(Arc<Loaded>);

struct Loaded {
    functions: Functions,
    version: Version,
    path: PathBuf,
}

impl Nccl {
    /// Loads the first library of `search` that is NCCL [`Version::OLDEST`] or newer.
    ///
    /// [`NcclError::NotFound`] lists every path tried. If there was an NCCL but it was too old, or a library that is not
    /// NCCL, the error is [`NcclError::TooOld`] or [`NcclError::MissingSymbol`] for the first such.
    pub fn load(search: &Search) -> Result<Self> {
        let mut tried = Vec::new();
        let mut unsuitable = None;
        for path in search.candidates() {
            // SAFETY: what runs are the initializers of the library of NCCL's name, or of the caller's choice.
            match unsafe { Library::new(&path) } {
                Ok(library) => match open(library, &path) {
                    Ok(loaded) => return Ok(Self(Arc::new(loaded))),
                    Err(error) => unsuitable = unsuitable.or(Some(error)),
                },
                Err(error) => tried.push(Attempt { reason: reason(&error, &path), path }),
            }
        }
        Err(unsuitable.unwrap_or(NcclError::NotFound { tried }))
    }

    /// NCCL from elsewhere: linked into the program, or opened by other means. [`NcclError::TooOld`] as for
    /// [`load`](Self::load); `path` is only reported.
    ///
    /// # Safety
    /// The functions are NCCL's, or keep its contracts, and stay where they are for as long as the process lives.
    pub unsafe fn from_functions(functions: Functions, path: impl Into<PathBuf>) -> Result<Self> {
        let (version, path) = (result::get_version(&functions)?, path.into());
        refuse_too_old(version, &path)?;
        Ok(Self(Arc::new(Loaded { functions, version, path })))
    }

    /// The library's version.
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// Where the library was found: a bare name if the loader found it.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether several ranks may share a device once `NCCL_MULTI_RANK_GPU_ENABLE=1` is set: NCCL 2.30.3 and newer.
    pub fn supports_multi_rank_per_gpu(&self) -> bool {
        self.version() >= Version::MULTI_RANK_PER_GPU
    }

    /// A new id. One rank makes it and brings it to the others by other means; all of them make a communicator from it,
    /// once. This process must live until they have.
    pub fn unique_id(&self) -> Result<UniqueId> {
        result::get_unique_id(self.functions()).map(UniqueId::from)
    }

    /// This rank's communicator, once all `world_size` ranks have called this with the same `id`.
    ///
    /// It works on the device that is current on the calling thread in CUDA's sense (`cudaSetDevice`,
    /// `cuCtxSetCurrent` with a primary context). One rank a thread: the call waits for the others.
    ///
    /// [`NcclError::Timeout`] or [`NcclError::Cancelled`] when the wait ends first; nothing is left behind then.
    pub fn communicator(
        &self,
        id: &UniqueId,
        rank: usize,
        world_size: usize,
        options: &Options,
        wait: Wait<'_>,
    ) -> Result<Communicator> {
        Communicator::init(self, id, rank, world_size, options, wait)
    }

    /// The functions themselves, for calls this crate does not make.
    pub fn functions(&self) -> &Functions {
        &self.0.functions
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} ({})", self.version(), self.path().display())
    }
}

/// The functions of a library, if it is an NCCL new enough. The library stays loaded in any case.
fn open(library: Library, path: &Path) -> Result<Loaded> {
    let library = Box::leak(Box::new(library));
    let version = version_of(library, path)?;
    refuse_too_old(version, path)?;
    // SAFETY: the library has NCCL's name or was chosen as NCCL, says it is of a version whose functions have these
    // types, and is never unloaded.
    let functions = unsafe { Functions::load(library) }
        .map_err(|symbol| NcclError::MissingSymbol { symbol, path: path.to_owned() })?;
    Ok(Loaded { functions, version, path: path.to_owned() })
}

fn refuse_too_old(found: Version, path: &Path) -> Result<()> {
    let needed = Version::OLDEST;
    if found < needed { Err(NcclError::TooOld { found, needed, path: path.to_owned() }) } else { Ok(()) }
}

/// The version alone: libraries too old have not all of the other functions.
fn version_of(library: &Library, path: &Path) -> Result<Version> {
    let symbol = "ncclGetVersion";
    let missing = || NcclError::MissingSymbol { symbol, path: path.to_owned() };
    // SAFETY: the function has had this type in every version.
    let get_version = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(symbol) };
    let mut code = 0;
    // SAFETY: the pointer is good for a number.
    let returned = unsafe { get_version.map_err(|_| missing())?(&raw mut code) };
    if returned == 0 { Ok(Version::from_code(code.unsigned_abs())) } else { Err(missing()) }
}

/// The loader's own words, which libloading keeps as the cause, without the path that they begin with.
fn reason(error: &libloading::Error, path: &Path) -> String {
    let cause = std::error::Error::source(error);
    let words = cause.map_or_else(|| error.to_string(), ToString::to_string);
    let prefix = format!("{}: ", path.display());
    words.strip_prefix(&prefix).map(str::to_owned).unwrap_or(words)
}
