//! What a caller of [`init`](crate::init) chooses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How this process joins the world.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Where the ranks meet: `env://`, `tcp://host:port[?rank=R&world_size=W]` or `file:///path`. Default `env://`.
    ///
    /// `file://` joins ranks of one machine (or of several, if `MASTER_ADDR` tells which network they share) through a
    /// path that no earlier run has used; a stale one is answered with `ERR_RENDEZVOUS`.
    pub init_method: String,
    /// This process' rank; default `RANK`, then `SLURM_PROCID`.
    pub rank: Option<usize>,
    /// Ranks in the world; default `WORLD_SIZE`, then `SLURM_NTASKS`.
    pub world_size: Option<usize>,
    /// Deadline of the rendezvous and, by default, of every operation of the groups. Default 5 minutes.
    pub timeout: Duration,
    /// The secret that all ranks share; default `SYNCBN_TOKEN`. Without one only loopback addresses work.
    pub token: Option<Vec<u8>>,
    /// Ends the waits of `init` and `new_group` early.
    pub cancel: CancelToken,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            init_method: "env://".into(),
            rank: None,
            world_size: None,
            timeout: Duration::from_secs(300),
            token: None,
            cancel: CancelToken::default(),
        }
    }
}

/// A flag that ends waits with `ERR_ABORTED`; clones share it.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Ends every wait that watches this token.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
