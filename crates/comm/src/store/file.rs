//! A store in a directory: one file for each key, written aside and renamed, so that a reader sees a whole value or
//! none. Counters are guarded by a lock file.

use super::{Store, check_sizes, missing_keys, parse_counter};
use crate::acceptor::io_error;
use crate::wait::{deadline, words};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use syncbn_core::error::{Code, Error, Result};

/// How long another process may hold the lock of a counter.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// A store in a directory that all ranks can write, local or shared over the network.
///
/// Every run needs a path of its own: what an earlier run left is still there.
#[derive(Clone, Debug)]
pub struct FileStore {
    directory: PathBuf,
}

impl FileStore {
    /// The store at `path`: a directory, made if it is missing. If `path` is a file (a fresh temporary file, say), the
    /// store is the directory `path.store` beside it.
    pub fn new(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let directory = if path.is_file() { beside(path) } else { path.to_owned() };
        fs::create_dir_all(&directory).map_err(|e| io_error(&format!("make the store {}", directory.display()), &e))?;
        Ok(Self { directory })
    }

    /// Where the keys are kept.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(file_name(key))
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>> {
        match fs::read(self.path(key)) {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed("read", key, &e)),
        }
    }

    /// Takes the lock that guards counters.
    fn lock(&self) -> Result<Lock> {
        let path = self.directory.join("lock");
        let at = deadline(LOCK_TIMEOUT);
        loop {
            match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(_) => return Ok(Lock(path)),
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(self.failed("lock", "lock", &e)),
                Err(_) if Instant::now() >= at => {
                    let text = format!("store: {} was locked for {}", path.display(), words(LOCK_TIMEOUT));
                    return Err(Error::new(Code::Timeout, text + "; remove it if its process is gone"));
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    #[cold]
    fn failed(&self, what: &str, key: &str, error: &io::Error) -> Error {
        io_error(&format!("{what} '{key}' in the store {}", self.directory.display()), error)
    }
}

/// The held lock; released on drop.
struct Lock(PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// `path` with `.store` at its end.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".store");
    name.into()
}

/// Letters and digits stay; every other byte becomes `%xx`, so that a key cannot leave the directory.
fn file_name(key: &str) -> String {
    let mut name = String::from("key-");
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => name.push(byte.into()),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

/// A name for a file that is being written, unique over processes that share the directory.
fn scratch_name() -> Result<String> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|e| Error::new(Code::Io, format!("the system gives no random bytes: {e}")))?;
    Ok(format!("new-{:016x}-{}", u64::from_ne_bytes(random), COUNTER.fetch_add(1, Ordering::Relaxed)))
}

impl Store for FileStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        check_sizes(key, value)?;
        let aside = self.directory.join(scratch_name()?);
        fs::write(&aside, value).and_then(|()| fs::rename(&aside, self.path(key))).map_err(|e| {
            let _ = fs::remove_file(&aside);
            self.failed("write", key, &e)
        })
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        self.wait(&[key], timeout)?;
        self.read(key)?.ok_or_else(|| missing_keys(&[key], timeout))
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        let at = deadline(timeout);
        loop {
            let missing: Vec<_> = keys.iter().copied().filter(|&key| !self.path(key).is_file()).collect();
            match (missing.is_empty(), Instant::now() >= at) {
                (true, _) => return Ok(()),
                (false, true) => return Err(missing_keys(&missing, timeout)),
                (false, false) => std::thread::sleep(POLL),
            }
        }
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64> {
        let _lock = self.lock()?;
        let old = self.read(key)?.map_or(Ok(0), |value| parse_counter(key, &value))?;
        let sum = old.wrapping_add(delta);
        self.set(key, sum.to_string().as_bytes())?;
        Ok(sum)
    }

    fn check(&self, keys: &[&str]) -> Result<bool> {
        Ok(keys.iter().all(|key| self.path(key).is_file()))
    }

    fn delete_key(&self, key: &str) -> Result<bool> {
        match fs::remove_file(self.path(key)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.failed("delete", key, &e)),
        }
    }
}
