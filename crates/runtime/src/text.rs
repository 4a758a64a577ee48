//! Short texts exchanged between ranks.

use syncbn_comm::Group;
use syncbn_core::Result;

/// Every rank's text, in rank order.
pub(crate) fn gather_text(group: &Group, text: &str) -> Result<Vec<String>> {
    let (rank, size) = (group.rank().unwrap_or(0), group.size());
    let mut lengths = vec![0; 8 * size];
    lengths[8 * rank..][..8].copy_from_slice(&(text.len() as u64).to_le_bytes());
    group.all_gather(&mut lengths)?;
    let lengths: Vec<usize> =
        lengths.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")) as usize).collect();
    let widest = lengths.iter().copied().max().unwrap_or(0);
    let mut texts = vec![0; widest * size];
    texts[widest * rank..][..text.len()].copy_from_slice(text.as_bytes());
    group.all_gather(&mut texts)?;
    Ok((0..size).map(|r| String::from_utf8_lossy(&texts[widest * r..][..lengths[r]]).into_owned()).collect())
}
