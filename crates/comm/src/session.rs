//! One running call of a group: what is sent to whom, in which round.

use crate::exchange::{Failure, Patience, Transfer, exchange};
use crate::frame::Call;
use crate::mesh::Lane;
use crate::reduce;
use std::net::TcpStream;
use std::ops::Range;
use syncbn_core::collective::ReduceOp;
use syncbn_core::dtype::DType;

/// A payload up to this size is copied behind its header and leaves in one write.
const INLINE_BYTES: usize = 64 << 10;

/// What a rank may send in all for an all_reduce of one round. Beyond it two rounds with less to send are faster:
/// measured on loopback, the lines cross between 64 and 128 KB for 2 ranks, between 32 and 64 KB for 4.
const ONE_ROUND_BYTES: usize = 96 << 10;

/// A large all_reduce goes piece by piece, so that what is sent, received and combined stays in the cache: on a
/// 2-core machine 64 MB took 25 ms in such pieces and 72 ms in one for 2 ranks, 124 and 212 ms for 4. A multiple of
/// every element's size.
const PIECE_BYTES: usize = 512 << 10;

/// What only the running call touches.
#[derive(Default)]
pub(crate) struct Engine {
    sequence: u64,
    /// The outgoing frame of a small payload.
    frame: Vec<u8>,
    /// What the others sent for an all_reduce; kept for the next one, of a piece's size at most.
    scratch: Vec<u8>,
}

impl Engine {
    /// The number of the next call.
    pub(crate) fn next(&self) -> u64 {
        self.sequence + 1
    }

    /// The next call starts.
    pub(crate) fn begin(&mut self) {
        self.sequence += 1;
    }
}

/// Whether an all_reduce sends everything to everybody at once, or each element to the rank that combines it and back.
/// Every rank must come to the same answer.
pub(crate) fn one_round(bytes: usize, ranks: usize) -> bool {
    (ranks - 1).saturating_mul(bytes) <= ONE_ROUND_BYTES
}

/// The parts of an element range that the ranks combine, in bytes.
fn part(length: usize, size: usize, ranks: usize, index: usize) -> Range<usize> {
    let elements = (length / size) as u128;
    let at = |index: usize| (elements * index as u128 / ranks as u128) as usize * size;
    at(index)..at(index + 1)
}

/// One running call.
pub(crate) struct Session<'a> {
    call: Call,
    peers: &'a Lane,
    engine: &'a mut Engine,
    patience: Patience,
}

impl<'a> Session<'a> {
    pub(crate) fn new(call: Call, peers: &'a Lane, engine: &'a mut Engine, patience: Patience) -> Self {
        Self { call, peers, engine, patience }
    }

    fn streams(peers: &Lane) -> impl Iterator<Item = (usize, &TcpStream)> {
        peers.iter().enumerate().filter_map(|(i, stream)| Some((i, stream.as_ref()?)))
    }

    /// Sends `own` to everybody and receives the parts `before` and `after` it, equal shares for the ranks on each
    /// side; empty ones receive nothing.
    pub(crate) fn everywhere(
        &mut self,
        round: u8,
        own: &[u8],
        before: &mut [u8],
        after: &mut [u8],
    ) -> Result<(), Failure> {
        let me = self.peers.iter().position(Option::is_none).unwrap_or_default();
        let (lower, higher) = (me, self.peers.len() - me - 1);
        let bodies = shares(before, lower).chain(shares(after, higher)).collect();
        self.round(round, own, bodies)
    }

    /// One round with the same payload for everybody; `bodies` are the buffers of the other ranks, in order.
    fn round(&mut self, round: u8, own: &[u8], bodies: Vec<&mut [u8]>) -> Result<(), Failure> {
        let call = Call { round, ..self.call };
        let frame = &mut self.engine.frame;
        frame.clear();
        frame.extend_from_slice(&call.encode());
        let tail = if own.len() <= INLINE_BYTES {
            frame.extend_from_slice(own);
            &[]
        } else {
            own
        };
        let streams = Self::streams(self.peers).zip(bodies);
        let mut transfers: Vec<_> =
            streams.map(|((peer, stream), body)| Transfer::new(peer, stream, [&*frame, tail], body)).collect();
        exchange(&call, &mut transfers, self.patience)
    }

    /// Receives `data` from the rank at position `root`; the others only say that they are here.
    pub(crate) fn receive_from(&mut self, root: usize, data: &mut [u8]) -> Result<(), Failure> {
        let mut data = Some(data);
        let mut body = |peer: usize| if peer == root { data.take().unwrap_or_default() } else { Default::default() };
        let bodies = Self::streams(self.peers).map(|(peer, _)| body(peer)).collect();
        self.round(0, &[], bodies)
    }

    /// Everybody gets everything and combines it.
    pub(crate) fn reduce_at_once(
        &mut self,
        me: usize,
        data: &mut [u8],
        dtype: DType,
        op: ReduceOp,
    ) -> Result<(), Failure> {
        let others = self.peers.len() - 1;
        let mut scratch = self.take_scratch(others * data.len());
        let (before, after) = scratch.split_at_mut(me * data.len());
        let done = self.everywhere(0, data, before, after);
        if done.is_ok() {
            reduce::combine(data, me, &scratch, dtype, op);
        }
        self.engine.scratch = scratch;
        done
    }

    /// Each rank combines one part of every piece for all.
    pub(crate) fn reduce_in_parts(
        &mut self,
        me: usize,
        data: &mut [u8],
        dtype: DType,
        op: ReduceOp,
    ) -> Result<(), Failure> {
        data.chunks_mut(PIECE_BYTES).try_for_each(|piece| self.reduce_piece(me, piece, dtype, op))
    }

    fn reduce_piece(&mut self, me: usize, data: &mut [u8], dtype: DType, op: ReduceOp) -> Result<(), Failure> {
        let ranks = self.peers.len();
        let ranges: Vec<_> = (0..ranks).map(|index| part(data.len(), dtype.size(), ranks, index)).collect();
        let own = ranges[me].clone();
        let mut scratch = self.take_scratch((ranks - 1) * own.len());
        let done = self.scatter(data, &ranges, &mut scratch);
        if done.is_ok() {
            reduce::combine(&mut data[own], me, &scratch, dtype, op);
        }
        self.engine.scratch = scratch;
        done?;
        self.gather(me, data, &ranges)
    }

    /// Every rank gets the others' values of its part.
    fn scatter(&mut self, data: &[u8], ranges: &[Range<usize>], scratch: &mut [u8]) -> Result<(), Failure> {
        let header = self.call.encode();
        let others = self.peers.len() - 1;
        let transfers = Self::streams(self.peers)
            .zip(shares(scratch, others))
            .map(|((peer, stream), body)| Transfer::new(peer, stream, [&header, &data[ranges[peer].clone()]], body));
        exchange(&self.call, &mut transfers.collect::<Vec<_>>(), self.patience)
    }

    /// Every rank sends its part, combined, to the others.
    fn gather(&mut self, me: usize, data: &mut [u8], ranges: &[Range<usize>]) -> Result<(), Failure> {
        let (mut own, mut bodies, mut rest): (&[u8], _, _) = (&[], vec![], data);
        for (index, range) in ranges.iter().enumerate() {
            let (part, tail) = rest.split_at_mut(range.len());
            rest = tail;
            if index == me { own = part } else { bodies.push(part) }
        }
        self.round(1, own, bodies)
    }

    /// The scratch buffer, with `bytes` bytes.
    fn take_scratch(&mut self, bytes: usize) -> Vec<u8> {
        let mut scratch = std::mem::take(&mut self.engine.scratch);
        scratch.resize(bytes, 0);
        scratch
    }
}

/// `buffer` in `count` equal shares.
fn shares(buffer: &mut [u8], count: usize) -> impl Iterator<Item = &mut [u8]> {
    let share = buffer.len().checked_div(count).unwrap_or(0);
    let mut rest = buffer;
    (0..count).map(move |_| {
        let (head, tail) = std::mem::take(&mut rest).split_at_mut(share);
        rest = tail;
        head
    })
}
