//! The seam between the orchestration and whatever joins the ranks: TCP between hosts, NCCL between GPUs.

use crate::dtype::DType;
use crate::error::{Code, Error, Result};
use std::fmt;

/// How an all_reduce combines the ranks' values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// Σ, added in rank order.
    Sum,
    /// Σ in rank order, divided once by the number of ranks.
    Avg,
    /// Product in rank order.
    Prod,
    /// Minimum; NaN wins.
    Min,
    /// Maximum; NaN wins.
    Max,
}

impl ReduceOp {
    /// Every operation, in the order of the wire format's codes.
    pub const ALL: [ReduceOp; 5] = [ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max];

    /// The name used in TypeScript.
    pub const fn as_str(self) -> &'static str {
        match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Avg => "avg",
            ReduceOp::Prod => "prod",
            ReduceOp::Min => "min",
            ReduceOp::Max => "max",
        }
    }

    /// The operation whose [`as_str`](Self::as_str) is `name`.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|op| op.as_str() == name).ok_or_else(|| {
            Error::expected(Code::Argument, "op", "'sum', 'avg', 'prod', 'min' or 'max'", format!("'{name}'"))
        })
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Collective operations over the ranks of one group, on buffers of type `B`.
///
/// Every rank of the group makes the same calls in the same order. A rank that does not is answered, on every rank,
/// with [`Code::Mismatch`]; a rank that is gone with [`Code::PeerLost`]; one that does not come before the group's
/// deadline with [`Code::Timeout`]. After any of these the group is poisoned.
pub trait Collective<B: ?Sized> {
    /// This rank's index in the group.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn world_size(&self) -> usize;

    /// `slots` is `world_size` equal parts; this rank has filled part `rank`. Fills the others.
    fn all_gather(&self, slots: &mut B) -> Result<()>;

    /// Combines `data`, elements of `dtype`, over all ranks, in rank order and so with the same bits everywhere.
    fn all_reduce(&self, data: &mut B, dtype: DType, op: ReduceOp) -> Result<()>;

    /// Replaces `data` by that of the group's rank `src`.
    fn broadcast(&self, data: &mut B, src: usize) -> Result<()>;

    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<()>;
}
