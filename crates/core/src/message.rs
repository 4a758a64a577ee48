//! The bytes batch norm ranks exchange, and the form in which statistics are kept for backward.
//!
//! A slot is `count: u64` followed by two rows of C numbers, little endian, in the backend's statistics type: mean and
//! M2 in a forward message, mean and 1/√(var + eps) in kept statistics. A forward buffer holds one slot for each rank
//! of the group, in rank order. A sums buffer is K rows of C numbers without a count.

use crate::channel_stats::{ChannelStats, merge_into};
use crate::dtype::DType;

/// Bytes of the count at the head of a slot.
pub const COUNT_BYTES: usize = 8;

/// Bytes of one slot.
pub const fn slot_bytes(channels: usize, statistics: DType) -> usize {
    COUNT_BYTES + 2 * channels * statistics.size()
}

/// Bytes of `rows` rows of sums.
pub const fn sums_bytes(channels: usize, rows: usize, statistics: DType) -> usize {
    rows * channels * statistics.size()
}

/// Writes a slot with float64 rows.
///
/// # Panics
/// If `slot` is not [`slot_bytes`] long for the rows' channels.
pub fn write_slot(slot: &mut [u8], count: u64, first: &[f64], second: &[f64]) {
    assert_eq!(slot.len(), slot_bytes(first.len(), DType::F64), "slot size");
    let (head, rows) = slot.split_at_mut(COUNT_BYTES);
    head.copy_from_slice(&count.to_le_bytes());
    let (a, b) = rows.split_at_mut(first.len() * 8);
    write_row(a, first);
    write_row(b, second);
}

/// Reads a slot with float64 rows.
pub fn read_slot(slot: &[u8]) -> (u64, Vec<f64>, Vec<f64>) {
    let (head, rows) = slot.split_at(COUNT_BYTES);
    let (a, b) = rows.split_at(rows.len() / 2);
    (u64::from_le_bytes(head.try_into().expect("8 bytes")), read_row(a), read_row(b))
}

/// Writes float64 numbers.
pub fn write_row(bytes: &mut [u8], row: &[f64]) {
    bytes.chunks_exact_mut(8).zip(row).for_each(|(bytes, value)| bytes.copy_from_slice(&value.to_le_bytes()));
}

/// Reads float64 numbers.
pub fn read_row(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().expect("8 bytes"))).collect()
}

/// Reads a slot whose rows are of `rows`: float32 or float64.
pub fn read_slot_of(slot: &[u8], rows: DType) -> (u64, Vec<f64>, Vec<f64>) {
    let (head, body) = slot.split_at(COUNT_BYTES);
    let (a, b) = body.split_at(body.len() / 2);
    (u64::from_le_bytes(head.try_into().expect("8 bytes")), read_row_of(a, rows), read_row_of(b, rows))
}

/// Reads numbers of type `row`: float32 or float64.
pub fn read_row_of(bytes: &[u8], row: DType) -> Vec<f64> {
    if row == DType::F64 {
        return read_row(bytes);
    }
    let read = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().expect("4 bytes")));
    bytes.chunks_exact(4).map(read).collect()
}

/// Bytes of a slot whose rows are rounded to `rows`: float32 or float64.
pub fn slot_of(count: u64, first: &[f64], second: &[f64], rows: DType) -> Vec<u8> {
    [&count.to_le_bytes()[..], &row_of(first, rows), &row_of(second, rows)].concat()
}

/// Bytes of numbers rounded to `row`: float32 or float64.
pub fn row_of(values: &[f64], row: DType) -> Vec<u8> {
    if row == DType::F64 {
        return values.iter().flat_map(|value| value.to_le_bytes()).collect();
    }
    values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect()
}

/// Merges the slots of a float64 forward buffer in rank order.
pub fn merge_slots(messages: &[u8], channels: usize) -> ChannelStats {
    let mut merged = ChannelStats::empty(channels);
    for slot in messages.chunks_exact(slot_bytes(channels, DType::F64)) {
        let (count, mean, m2) = read_slot(slot);
        merge_into(merged.count, &mut merged.mean, &mut merged.m2, count, &mean, &m2);
        merged.count += count;
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_survive_the_wire_and_merge_in_order() {
        let size = slot_bytes(2, DType::F64);
        let mut messages = vec![0; 3 * size];
        write_slot(&mut messages[..size], u64::MAX / 2, &[1.5, -0.0], &[f64::MIN_POSITIVE, 3.0]);
        let (count, first, second) = read_slot(&messages[..size]);
        assert_eq!((count, first, second), (u64::MAX / 2, vec![1.5, -0.0], vec![f64::MIN_POSITIVE, 3.0]));

        let rows = (vec![1.5, -0.25], vec![3.0, 0.1]);
        for (dtype, second) in [(DType::F64, 0.1), (DType::F32, f64::from(0.1f32))] {
            let slot = slot_of(7, &rows.0, &rows.1, dtype);
            assert_eq!(slot.len(), slot_bytes(2, dtype));
            assert_eq!(read_slot_of(&slot, dtype), (7, rows.0.clone(), vec![3.0, second]));
        }

        write_slot(&mut messages[..size], 2, &[1.0, 0.0], &[2.0, 0.0]);
        write_slot(&mut messages[size..2 * size], 0, &[9.0, 9.0], &[9.0, 9.0]);
        write_slot(&mut messages[2 * size..], 2, &[3.0, 4.0], &[2.0, 0.0]);
        let merged = merge_slots(&messages, 2);
        assert_eq!((merged.count, merged.mean, merged.m2), (4, vec![2.0, 2.0], vec![8.0, 16.0]));
    }
}
