//! The header before every payload: it says which call the payload belongs to, so that ranks that made different
//! calls find out before they read each other's bytes.

use std::fmt;
use syncbn_core::collective::ReduceOp;
use syncbn_core::dtype::DType;

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 40;

/// Written in the machine's byte order: a peer with another one is found by it.
const MAGIC: u32 = 0x5bae_0001;
/// The code of a dtype or an operation that the call does not have.
const NONE: u8 = u8::MAX;

/// Which collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    AllGather,
    AllReduce(DType, ReduceOp),
    /// The root's global rank.
    Broadcast(usize),
    Barrier,
    MonitoredBarrier,
}

/// One call of a collective, as every rank of the group must make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) group: u64,
    /// 1 for the group's first call.
    pub(crate) sequence: u64,
    pub(crate) op: Op,
    /// Bytes of one rank's part.
    pub(crate) length: u64,
    /// Rounds of one call are told apart.
    pub(crate) round: u8,
}

impl Op {
    const fn code(self) -> u8 {
        match self {
            Op::AllGather => 1,
            Op::AllReduce(..) => 2,
            Op::Broadcast(_) => 3,
            Op::Barrier => 4,
            Op::MonitoredBarrier => 5,
        }
    }

    fn decode(code: u8, dtype: u8, reduce: u8, root: u32) -> Option<Self> {
        Some(match code {
            1 => Op::AllGather,
            2 => {
                let (dtype, op) = (DType::ALL.get(usize::from(dtype))?, ReduceOp::ALL.get(usize::from(reduce))?);
                Op::AllReduce(*dtype, *op)
            }
            3 => Op::Broadcast(root as usize),
            4 => Op::Barrier,
            5 => Op::MonitoredBarrier,
            _ => return None,
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::AllGather => f.write_str("all_gather"),
            Op::AllReduce(dtype, op) => write!(f, "all_reduce({op}, {dtype})"),
            Op::Broadcast(root) => write!(f, "broadcast(from rank {root})"),
            Op::Barrier => f.write_str("barrier"),
            Op::MonitoredBarrier => f.write_str("monitored_barrier"),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.op, self.sequence)?;
        if matches!(self.op, Op::Barrier | Op::MonitoredBarrier) {
            Ok(())
        } else {
            write!(f, " of {} bytes", self.length)
        }
    }
}

fn position<T: PartialEq>(all: &[T], item: &T) -> u8 {
    all.iter().position(|other| other == item).and_then(|i| u8::try_from(i).ok()).unwrap_or(NONE)
}

impl Call {
    /// The bytes of the header.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let (dtype, reduce) = match self.op {
            Op::AllReduce(dtype, op) => (position(&DType::ALL, &dtype), position(&ReduceOp::ALL, &op)),
            _ => (NONE, NONE),
        };
        let root = if let Op::Broadcast(root) = self.op { root as u32 } else { 0 };
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_ne_bytes());
        bytes[4..8].copy_from_slice(&[self.op.code(), dtype, reduce, self.round]);
        bytes[8..16].copy_from_slice(&self.group.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..28].copy_from_slice(&root.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// The call a header stands for; `None` if the bytes are no header.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let root = u32::from_le_bytes(bytes[24..28].try_into().expect("4 bytes"));
        if bytes[..4] != MAGIC.to_ne_bytes() {
            return None;
        }
        let op = Op::decode(bytes[4], bytes[5], bytes[6], root)?;
        Some(Self { group: word(8), sequence: word(16), op, length: word(32), round: bytes[7] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_wire() {
        let ops = [
            Op::AllGather,
            Op::AllReduce(DType::I64, ReduceOp::Max),
            Op::Broadcast(3),
            Op::Barrier,
            Op::MonitoredBarrier,
        ];
        for op in ops {
            let call = Call { group: 1 << 40, sequence: 7, op, length: u64::MAX, round: 1 };
            assert_eq!(Call::decode(&call.encode()), Some(call));
        }
        assert_eq!(Call::decode(&[0; HEADER_BYTES]), None);
    }

    #[test]
    fn calls_read_as_sentences() {
        let op = Op::AllReduce(DType::F32, ReduceOp::Sum);
        let call = Call { group: 0, sequence: 17, op, length: 64, round: 0 };
        assert_eq!(call.to_string(), "all_reduce(sum, float32) #17 of 64 bytes");
    }
}
