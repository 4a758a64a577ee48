//! What ranks find each other by.

use crate::sys;
use std::fmt;

/// The id of a communicator to be: 128 opaque bytes, to be brought from the rank that made them to all the others.
///
/// Whoever has the bytes can take a rank's place, so they travel as secretly as the job's data do.
#[derive(Clone, PartialEq, Eq)]
pub struct UniqueId([u8; Self::BYTES]);

impl UniqueId {
    /// The size of an id.
    pub const BYTES: usize = sys::NCCL_UNIQUE_ID_BYTES;

    /// The id that another rank sent as [`as_bytes`](Self::as_bytes).
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes to send to the other ranks.
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl From<sys::ncclUniqueId> for UniqueId {
    fn from(id: sys::ncclUniqueId) -> Self {
        Self(id.internal.map(|byte| byte as u8))
    }
}

impl From<&UniqueId> for sys::ncclUniqueId {
    fn from(id: &UniqueId) -> Self {
        Self { internal: id.0.map(|byte| byte as std::ffi::c_char) }
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_way_through_c() {
        let bytes: [u8; UniqueId::BYTES] = std::array::from_fn(|i| (i * 7 + 100) as u8);
        let id = UniqueId::from_bytes(bytes);
        assert_eq!(UniqueId::from(sys::ncclUniqueId::from(&id)).as_bytes(), &bytes);
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        assert_eq!(format!("{:?}", UniqueId::from_bytes([7; UniqueId::BYTES])), "UniqueId(…)");
    }
}
