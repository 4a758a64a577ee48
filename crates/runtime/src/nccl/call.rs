//! What a rank asks of a communicator, in a form that can be compared between ranks.

use std::fmt;
use syncbn_core::{DType, ReduceOp};

/// Which collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Every rank's part to every rank.
    AllGather,
    /// Values combined over the ranks.
    AllReduce(ReduceOp),
    /// One rank's values to all; the root's index in the group.
    Broadcast(usize),
    /// A group of some of the ranks.
    Split,
    /// What a graph holds; the count is that of the calls in it.
    Replay,
}

/// A collective and what must agree between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) dtype: DType,
    /// Elements this rank gives; of a split the number of members.
    pub(crate) count: usize,
    /// What tells apart lists of the same length, see [`parts`]; 0 where there is none.
    pub(crate) parts: u64,
}

/// Bytes of an encoded call.
pub(crate) const CALL_BYTES: usize = 24;

/// A number for a list, different for lists that differ (FNV-1a, 64 bits).
pub(crate) fn parts(numbers: impl IntoIterator<Item = usize>) -> u64 {
    let bytes = numbers.into_iter().flat_map(|number| (number as u64).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

const DTYPES: [DType; 6] = [DType::F32, DType::F64, DType::F16, DType::BF16, DType::I32, DType::I64];

fn index_of<T: PartialEq>(list: &[T], item: &T) -> u8 {
    list.iter().position(|other| other == item).map_or(u8::MAX, |index| index as u8)
}

impl Call {
    /// A form of [`CALL_BYTES`] bytes; equal exactly for equal calls.
    pub(crate) fn encode(self) -> [u8; CALL_BYTES] {
        let mut bytes = [0; CALL_BYTES];
        let (kind, detail) = match self.kind {
            Kind::AllGather => (0, 0),
            Kind::AllReduce(op) => (1, u32::from(index_of(&ReduceOp::ALL, &op))),
            Kind::Broadcast(root) => (2, root as u32),
            Kind::Split => (3, 0),
            Kind::Replay => (4, 0),
        };
        (bytes[0], bytes[1]) = (kind, index_of(&DTYPES, &self.dtype));
        bytes[4..8].copy_from_slice(&detail.to_le_bytes());
        bytes[8..16].copy_from_slice(&(self.count as u64).to_le_bytes());
        bytes[16..].copy_from_slice(&self.parts.to_le_bytes());
        bytes
    }

    /// The call another rank encoded; `None` for bytes no rank of this version writes.
    pub(crate) fn decode(bytes: &[u8; CALL_BYTES]) -> Option<Self> {
        let number =
            |range: std::ops::Range<usize>| bytes[range].iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte));
        let detail = number(4..8) as usize;
        let kind = match bytes[0] {
            0 => Kind::AllGather,
            1 => Kind::AllReduce(*ReduceOp::ALL.get(detail)?),
            2 => Kind::Broadcast(detail),
            3 => Kind::Split,
            4 => Kind::Replay,
            _ => return None,
        };
        let dtype = *DTYPES.get(usize::from(bytes[1]))?;
        Some(Self { kind, dtype, count: number(8..16) as usize, parts: number(16..24) })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { kind, dtype, count, parts } = self;
        match kind {
            Kind::AllGather => write!(f, "all_gather of {count} {dtype} a rank"),
            Kind::AllReduce(op) => write!(f, "all_reduce ({op}) of {count} {dtype}"),
            Kind::Broadcast(root) if *parts == 0 => write!(f, "broadcast of {count} {dtype} from index {root}"),
            Kind::Broadcast(root) => write!(
                f,
                "broadcast of a list of tensors, {count} values in all, the first {dtype} from index {root} \
                 (types, sizes and sources {parts:016x})"
            ),
            Kind::Split => write!(f, "new_group of {count} ranks"),
            Kind::Replay => write!(f, "a replay of {count} recorded collectives"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_survive_the_wire_and_differ_where_they_differ() {
        let call = |kind, dtype, count, parts| Call { kind, dtype, count, parts };
        let calls = [
            call(Kind::AllGather, DType::I32, 0, 0),
            call(Kind::AllGather, DType::I32, 1 << 40, 0),
            call(Kind::AllReduce(ReduceOp::Sum), DType::F32, 7, 0),
            call(Kind::AllReduce(ReduceOp::Avg), DType::F32, 7, 0),
            call(Kind::AllReduce(ReduceOp::Avg), DType::BF16, 7, 0),
            call(Kind::Broadcast(0), DType::F32, 7, 0),
            call(Kind::Broadcast(300), DType::F32, 7, 0),
            call(Kind::Broadcast(0), DType::F32, 7, parts([3, 4])),
            call(Kind::Broadcast(0), DType::F32, 7, parts([4, 3])),
            call(Kind::Split, DType::F32, 7, 0),
            call(Kind::Replay, DType::F32, 7, 0),
        ];
        for (i, a) in calls.iter().enumerate() {
            assert_eq!(Call::decode(&a.encode()), Some(*a));
            calls.iter().enumerate().for_each(|(j, b)| assert_eq!(a.encode() == b.encode(), i == j));
        }
        assert_eq!(Call::decode(&[9; CALL_BYTES]), None);
    }
}
