//! Where ranks leave values for each other: the [`Store`] trait and its implementations.

mod file;
mod hash;
mod server;
mod tcp;
mod wire;

pub use file::FileStore;
pub use hash::HashStore;
pub use tcp::TcpStore;
pub(crate) use tcp::{check_token, dial_until};

use crate::wait::words;
use std::sync::Arc;
use std::time::Duration;
use syncbn_core::error::{Code, Error, Result};

/// The longest key, in bytes.
pub(crate) const MAX_KEY_BYTES: usize = 1 << 12;
/// The longest value, in bytes.
pub(crate) const MAX_VALUE_BYTES: usize = 1 << 22;

/// A map from strings to bytes that all ranks see. Waits take a deadline of their own; every call returns
/// `ERR_PEER_LOST` or `ERR_IO` if what holds the map is gone, and `ERR_ARGUMENT` for oversized keys and values.
pub trait Store: Send + Sync {
    /// Stores `value`, replacing an earlier one.
    fn set(&self, key: &str, value: &[u8]) -> Result<()>;

    /// The value of `key`, once it is there; `ERR_TIMEOUT` naming it after `timeout`.
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>>;

    /// Returns once all `keys` are there; `ERR_TIMEOUT` naming the missing ones after `timeout`.
    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()>;

    /// Adds to a counter, 0 if absent, and returns the sum. Counters are kept as decimal text.
    fn add(&self, key: &str, delta: i64) -> Result<i64>;

    /// Whether all `keys` are there now.
    fn check(&self, keys: &[&str]) -> Result<bool>;

    /// Removes `key`; whether it was there.
    fn delete_key(&self, key: &str) -> Result<bool>;
}

/// A store whose keys live under a prefix of another's.
#[derive(Clone)]
pub struct PrefixStore {
    prefix: String,
    store: Arc<dyn Store>,
}

impl PrefixStore {
    /// `store` with every key `k` kept as `prefix/k`.
    pub fn new(prefix: impl Into<String>, store: Arc<dyn Store>) -> Self {
        Self { prefix: prefix.into(), store }
    }

    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }

    fn keys<T>(&self, keys: &[&str], f: impl FnOnce(&[&str]) -> T) -> T {
        let keys: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
        f(&keys.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Store for PrefixStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        check_sizes(key, value)?;
        self.store.set(&self.key(key), value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        self.store.get(&self.key(key), timeout)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        self.keys(keys, |keys| self.store.wait(keys, timeout))
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64> {
        check_sizes(key, &[])?;
        self.store.add(&self.key(key), delta)
    }

    fn check(&self, keys: &[&str]) -> Result<bool> {
        self.keys(keys, |keys| self.store.check(keys))
    }

    fn delete_key(&self, key: &str) -> Result<bool> {
        self.store.delete_key(&self.key(key))
    }
}

/// Checks the sizes that every store bounds.
pub(crate) fn check_sizes(key: &str, value: &[u8]) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        let expected = format!("a key of 1 to {MAX_KEY_BYTES} bytes");
        return Err(Error::expected(Code::Argument, "store", expected, format!("{} bytes", key.len())));
    }
    if value.len() > MAX_VALUE_BYTES {
        let expected = format!("a value of at most {MAX_VALUE_BYTES} bytes");
        return Err(Error::expected(Code::Argument, "store", expected, format!("{} bytes", value.len())));
    }
    Ok(())
}

/// The value of a counter.
pub(crate) fn parse_counter(key: &str, value: &[u8]) -> Result<i64> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Error::expected(Code::Argument, "store: add", format!("a number under '{key}'"), "another value")
    })
}

#[cold]
pub(crate) fn missing_keys(missing: &[&str], timeout: Duration) -> Error {
    let keys: Vec<_> = missing.iter().map(|key| format!("'{key}'")).collect();
    Error::new(Code::Timeout, format!("store: waited {} for {}", words(timeout), keys.join(", ")))
}
