//! How a tensor is cut into units of work: by its shape alone, so that no result depends on the number of threads.
//!
//! A unit is a group of channels times a part of their values. Contiguous (N, C, *): channels whose planes make 32 KB
//! together; few channels with many values are also cut into parts. Channels last: parts are runs of rows of 256 KB or
//! more; few rows with many channels are also cut into groups. Partial results merge in the order of the parts.

use std::ops::Range;
use syncbn_core::BatchNormShape;

/// Values of a channel summed about one pivot, in one accumulator of the block's type.
pub(super) const BLOCK: usize = 4096;
/// Values of all channels of a group in contiguous layout, at least.
const GROUP_VALUES: usize = 8192;
/// Units aimed at where a tensor is large.
const UNITS: usize = 32;
/// Values of a part of a channel, at least: below, a channel stays whole and in cache between two phases.
const PART_VALUES: usize = 64 << 10;
/// Elements of a part of rows, at least.
const ROW_PART_ELEMENTS: usize = 64 << 10;

/// The cut of one tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) channels: usize,
    /// Values of a plane; 1 where channels are last.
    pub(super) spatial: usize,
    pub(super) channels_last: bool,
    /// Values of a channel.
    pub(super) count: usize,
    /// Channels of a group.
    group: usize,
    /// Values of a part.
    part: usize,
    pub(super) parts: usize,
    /// Planes of a block, and values it takes of each.
    block: (usize, usize),
}

/// What one call of a kernel works on.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) channels: Range<usize>,
    /// Values of each channel, counted through its planes; where channels are last, rows.
    pub(super) values: Range<usize>,
    /// Which part of the channels this is.
    pub(super) part: usize,
}

impl Plan {
    /// The cut of a tensor that has elements.
    pub(super) fn new(shape: BatchNormShape) -> Self {
        let (channels, count) = (shape.channels, shape.count());
        if channels == 1 {
            // In both layouts one long run.
            Self::planes(1, count, count)
        } else if shape.channels_last || shape.spatial == 1 {
            Self::rows(channels, count)
        } else {
            Self::planes(channels, shape.spatial, count)
        }
    }

    fn planes(channels: usize, spatial: usize, count: usize) -> Self {
        let group = (GROUP_VALUES / count).clamp(1, channels.div_ceil(8));
        let wanted = UNITS.div_ceil(channels.div_ceil(group)).min(count / PART_VALUES).max(1);
        // A part is whole planes, unless a plane has several blocks.
        let part = count.div_ceil(wanted).next_multiple_of(if spatial < BLOCK { spatial } else { 64 });
        let long = || (1, spatial.div_ceil(spatial.div_ceil(BLOCK)).next_multiple_of(64));
        let block = if spatial < BLOCK { (BLOCK / spatial, spatial) } else { long() };
        Self { channels, spatial, channels_last: false, count, group, part, parts: count.div_ceil(part), block }
    }

    fn rows(channels: usize, count: usize) -> Self {
        let elements = count * channels;
        let part = count.div_ceil((elements / ROW_PART_ELEMENTS).clamp(1, UNITS)).next_multiple_of(16);
        let parts = count.div_ceil(part);
        let groups = if elements < 4 * ROW_PART_ELEMENTS { 1 } else { (UNITS / 4).div_ceil(parts) };
        let group = channels.div_ceil(groups).next_multiple_of(64).min(channels);
        Self { channels, spatial: 1, channels_last: true, count, group, part, parts, block: (1, 1) }
    }

    /// Number of units.
    pub(super) fn units(&self) -> usize {
        self.channels.div_ceil(self.group) * self.parts
    }

    /// The unit with this index. Units with neighbouring indices lie near each other.
    pub(super) fn unit(&self, index: usize) -> Unit {
        let (group, part) = (index / self.parts, index % self.parts);
        let (channel, value) = (group * self.group, part * self.part);
        Unit {
            channels: channel..self.channels.min(channel + self.group),
            values: value..self.count.min(value + self.part),
            part,
        }
    }

    /// Whether every channel is one unit's alone, so that a unit can do all phases while the channel is in cache.
    pub(super) fn fuses(&self) -> bool {
        self.parts == 1 && !self.channels_last
    }

    /// Values of each part, in order.
    pub(super) fn part_counts(&self) -> impl Iterator<Item = usize> + Clone {
        let plan = *self;
        (0..plan.parts).map(move |part| plan.part.min(plan.count - part * plan.part))
    }

    /// The runs of a channel a unit of contiguous planes covers: (plane, values of it), from the last plane on.
    #[inline(always)]
    pub(super) fn runs_reversed(&self, unit: &Unit) -> impl Iterator<Item = (usize, Range<usize>)> {
        let Span { plane, end, start, stop } = self.span(unit);
        let spatial = self.spatial;
        (plane..end)
            .rev()
            .map(move |p| (p, if p == plane { start } else { 0 }..if p + 1 == end { stop } else { spatial }))
    }

    /// The blocks of a channel a unit of contiguous planes covers, in order.
    #[inline(always)]
    pub(super) fn blocks(&self, unit: &Unit) -> Blocks {
        Blocks { span: self.span(unit), spatial: self.spatial, block: self.block }
    }

    #[inline(always)]
    fn span(&self, unit: &Unit) -> Span {
        let last = unit.values.end - 1;
        Span {
            plane: unit.values.start / self.spatial,
            end: last / self.spatial + 1,
            start: unit.values.start % self.spatial,
            stop: last % self.spatial + 1,
        }
    }
}

/// Values of a channel from `start` in `plane` to `stop` in the plane before `end`.
#[derive(Clone, Copy, Debug)]
struct Span {
    plane: usize,
    end: usize,
    start: usize,
    stop: usize,
}

/// Values `start .. start + len` of each of `planes` planes from `plane` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) plane: usize,
    pub(super) planes: usize,
    pub(super) start: usize,
    pub(super) len: usize,
}

/// Iterator over blocks, without a division: there may be thousands of channels of a single block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    span: Span,
    spatial: usize,
    block: (usize, usize),
}

impl Iterator for Blocks {
    type Item = Block;

    #[inline(always)]
    fn next(&mut self) -> Option<Block> {
        let Span { plane, end, start, stop } = self.span;
        if plane >= end {
            return None;
        }
        let planes = self.block.0.min(end - plane);
        let stop = if plane + planes == end { stop } else { self.spatial };
        let len = self.block.1.min(stop - start);
        if start + len == stop {
            (self.span.plane, self.span.start) = (plane + planes, 0);
        } else {
            self.span.start = start + len;
        }
        Some(Block { plane, planes, start, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> impl Iterator<Item = BatchNormShape> {
        let sizes = [
            (1, 1, 1),
            (2, 3, 262_144),
            (4, 2048, 49),
            (3, 5, 4097),
            (7, 1, 70_001),
            (5, 3, 1),
            (9, 70_000, 1),
            (300, 2, 999),
        ];
        sizes.into_iter().flat_map(|(batch, channels, spatial)| {
            [false, true].map(|channels_last| BatchNormShape { batch, channels, spatial, channels_last })
        })
    }

    #[test]
    fn units_cover_every_value_of_every_channel_once() {
        for shape in shapes() {
            let plan = Plan::new(shape);
            let mut seen = vec![0u8; shape.numel()];
            for unit in (0..plan.units()).map(|index| plan.unit(index)) {
                for channel in unit.channels.clone() {
                    unit.values.clone().for_each(|value| seen[channel * plan.count + value] += 1);
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{shape:?} {plan:?}");
            assert_eq!(plan.part_counts().sum::<usize>(), plan.count);
        }
    }

    #[test]
    fn blocks_and_runs_cover_a_unit_once() {
        for plan in shapes().map(Plan::new).filter(|plan| !plan.channels_last) {
            for unit in (0..plan.units()).map(|index| plan.unit(index)) {
                let mut seen = vec![0u8; plan.count];
                for block in plan.blocks(&unit) {
                    assert!(block.planes * block.len <= BLOCK + 64);
                    for plane in block.plane..block.plane + block.planes {
                        let first = plane * plan.spatial + block.start;
                        seen[first..first + block.len].iter_mut().for_each(|times| *times += 1);
                    }
                }
                for (plane, run) in plan.runs_reversed(&unit) {
                    run.for_each(|value| seen[plane * plan.spatial + value] += 2);
                }
                let right = |(value, &times): (usize, &u8)| times == if unit.values.contains(&value) { 3 } else { 0 };
                assert!(seen.iter().enumerate().all(right), "{plan:?} {unit:?}");
            }
        }
    }

    #[test]
    fn few_channels_with_large_planes_are_split() {
        let plan = Plan::new(BatchNormShape { batch: 2, channels: 3, spatial: 262_144, channels_last: false });
        assert!(plan.units() >= 16 && !plan.fuses());
    }
}
