//! A store in the memory of one process.

use super::{Store, check_sizes, missing_keys, parse_counter};
use crate::wait::deadline;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use syncbn_core::error::{Code, Error, Result};

/// A store for the threads of one process; clones share the map. It is also what a `TcpStore` serves.
#[derive(Clone, Default)]
pub struct HashStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    map: HashMap<String, Vec<u8>>,
    closed: bool,
}

impl HashStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends all waits, now and later, with `ERR_ABORTED`.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for HashStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        check_sizes(key, value)?;
        self.lock().map.insert(key.into(), value.into());
        self.0.changed.notify_all();
        Ok(())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        self.wait(&[key], timeout)?;
        self.lock().map.get(key).cloned().ok_or_else(|| missing_keys(&[key], timeout))
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        let at = deadline(timeout);
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(Error::new(Code::Aborted, "store: closed"));
            }
            let missing: Vec<_> = keys.iter().copied().filter(|&key| !state.map.contains_key(key)).collect();
            let left = at.saturating_duration_since(Instant::now());
            match (missing.is_empty(), left.is_zero()) {
                (true, _) => return Ok(()),
                (false, true) => return Err(missing_keys(&missing, timeout)),
                (false, false) => {
                    let changed = self.0.changed.wait_timeout(state, left);
                    state = changed.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64> {
        check_sizes(key, &[])?;
        let mut state = self.lock();
        let old = state.map.get(key).map_or(Ok(0), |value| parse_counter(key, value))?;
        let sum = old.wrapping_add(delta);
        state.map.insert(key.into(), sum.to_string().into_bytes());
        self.0.changed.notify_all();
        Ok(sum)
    }

    fn check(&self, keys: &[&str]) -> Result<bool> {
        let state = self.lock();
        Ok(keys.iter().all(|&key| state.map.contains_key(key)))
    }

    fn delete_key(&self, key: &str) -> Result<bool> {
        Ok(self.lock().map.remove(key).is_some())
    }
}
