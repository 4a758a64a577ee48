//! How a tensor of batch norm is shared out to blocks and threads; kernels/batch_norm_layout.cuh says what it means.
//!
//! The geometry depends on the shape, the element type and the alignment of the tensors, not on the GPU, so that the
//! order of summation is the same on all of them. (The driver's compiler may round a product and a sum once or twice, so
//! the last bits may differ between kinds of GPU.)

use super::check;
use crate::buffer::CudaBuffer;
use crate::device::Cuda;
use crate::kernel_table::Entry;
use crate::launch::{LaunchConfig, Params};
use crate::module::{Kernel, Module};
use syncbn_core::message::sums_bytes;
use syncbn_core::{BatchNormShape, Code, DType, Error, Result};

/// Threads of a block at most.
const BLOCK_THREADS: usize = 256;
/// Threads of a block at least: two warps, so that multiprocessors are half full with their 16 or 32 blocks.
const LEAST_THREADS: usize = 64;
/// Bytes of a memory transaction: the columns of a block are as many vectors as it holds.
const TRANSACTION: usize = 128;
/// Columns of a block at most and at least, where there are as many.
const BLOCK_COLUMNS: std::ops::RangeInclusive<usize> = 8..=32;
/// Blocks of a large tensor: several for each multiprocessor there is, few enough that each has much to do.
const BLOCKS: usize = 2048;
/// Blocks below which narrower ones are made.
const FEW_BLOCKS: usize = 128;
/// Iterations of a block's loop that make a part worth its block.
const LEAST_ITERATIONS: usize = 2;
/// Values of a part at most, so that 32 bits index and count them.
const MOST_VALUES: usize = 1 << 28;
/// Values of a plane that a cursor counts: a part is shorter than that.
const LONG_PLANE: usize = 1 << 30;
/// Blocks in the second dimension of a grid at most.
const MOST_PARTS: usize = 65535;

/// Parts that a thread merges at once: as many are read before the first is needed.
const MERGED_AT_ONCE: usize = 4;

/// Mirror of `Layout` in kernels/batch_norm_layout.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    values: u64,
    chunk: u64,
    columns: u64,
    spatial: u64,
    step_offset: u64,
    wrap_offset: u64,
    step_spatial: u32,
    plane: u32,
    log_width: u32,
    lanes: u32,
    parts: u32,
    group: u32,
    channels: u32,
    unused: u32,
}

const _: () = assert!(size_of::<Layout>() == 80);

impl Layout {
    /// Groups of parts.
    const fn groups(&self) -> usize {
        self.parts.div_ceil(self.group) as usize
    }
}

/// How elements are read: which entry point of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vectors {
    /// So many neighbours of one channel.
    Planes(usize),
    /// One element each of so many neighbouring channels.
    Rows(usize),
    /// One element, in either format.
    Single,
}

impl Vectors {
    /// Elements of `dtype` that come in one vector, the best kind first.
    const fn kinds(dtype: DType) -> &'static [Self] {
        match dtype {
            DType::F64 => &[Self::Planes(2), Self::Rows(2), Self::Single],
            DType::F16 | DType::BF16 => &[Self::Planes(8), Self::Planes(4), Self::Rows(4), Self::Single],
            _ => &[Self::Planes(4), Self::Rows(4), Self::Single],
        }
    }

    const fn len(self) -> usize {
        match self {
            Self::Planes(len) | Self::Rows(len) => len,
            Self::Single => 1,
        }
    }

    /// Whether the tensors at `addresses` are whole vectors.
    fn fit(self, shape: BatchNormShape, dtype: DType, addresses: &[u64]) -> bool {
        let whole = match self {
            Self::Planes(len) => !shape.channels_last && shape.spatial.is_multiple_of(len),
            Self::Rows(len) => shape.channels_last && shape.channels.is_multiple_of(len),
            Self::Single => true,
        };
        let bytes = self.bytes(dtype) as u64;
        whole && addresses.iter().all(|address| address.is_multiple_of(bytes))
    }

    /// Channels of a vector.
    const fn channels(self) -> usize {
        match self {
            Self::Rows(len) => len,
            _ => 1,
        }
    }

    const fn bytes(self, dtype: DType) -> usize {
        self.len() * dtype.size()
    }

    /// Vectors a thread has in flight: `UNROLL` of the kernels, in which the work is measured here.
    const fn unroll(self, dtype: DType) -> usize {
        match self.bytes(dtype) {
            2 => 16,
            16 => 4,
            _ => 8,
        }
    }

    /// What the name of an entry point ends in.
    fn suffix(self, dtype: DType) -> String {
        let dtype = dtype_name(dtype);
        match self {
            Self::Planes(len) => format!("planes_{dtype}_v{len}"),
            Self::Rows(len) => format!("rows_{dtype}_v{len}"),
            Self::Single => format!("{dtype}_v1"),
        }
    }
}

/// An element type in the name of an entry point.
pub(super) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::I32 => "i32",
        DType::I64 => "i64",
    }
}

/// The element types of batch norm, and the file of kernels each has.
const MODULES: [(DType, Module); 4] = [
    (DType::F16, Module::BatchNormF16),
    (DType::BF16, Module::BatchNormBf16),
    (DType::F32, Module::BatchNormF32),
    (DType::F64, Module::BatchNormF64),
];

/// The entry points of an operation that reads vectors.
pub(super) fn entries<P: Params>(kernel: &'static str) -> impl Iterator<Item = Entry> {
    let name = move |dtype, vectors: Vectors| format!("{kernel}_{}", vectors.suffix(dtype));
    MODULES.into_iter().flat_map(move |(dtype, module)| {
        Vectors::kinds(dtype).iter().map(move |&vectors| Entry::of::<P>(module, name(dtype, vectors)))
    })
}

/// The entry points of an operation that reads single elements only.
pub(super) fn single_entries<P: Params>(kernel: &'static str) -> impl Iterator<Item = Entry> {
    MODULES.into_iter().map(move |(dtype, module)| Entry::of::<P>(module, format!("{kernel}_{}", dtype_name(dtype))))
}

/// One launch over a tensor.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) layout: Layout,
    config: LaunchConfig,
    module: Module,
    /// What the name of the entry point ends in.
    suffix: String,
}

impl Plan {
    /// A launch over tensors of `shape` and `dtype` at `addresses`, in vectors if they allow it.
    ///
    /// # Errors
    /// [`Code::Shape`] beyond 2³¹ − 1 channels, [`Code::DType`] for integers.
    pub(super) fn new(op: &str, shape: BatchNormShape, dtype: DType, addresses: &[u64]) -> Result<Self> {
        let shape = simplified(shape);
        let fits = |vectors: &&Vectors| vectors.fit(shape, dtype, addresses);
        let vectors = *Vectors::kinds(dtype).iter().find(fits).unwrap_or(&Vectors::Single);
        Self::with(op, shape, dtype, vectors, vectors.suffix(dtype))
    }

    /// A launch that reads single elements.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub(super) fn single(op: &str, shape: BatchNormShape, dtype: DType) -> Result<Self> {
        Self::with(op, simplified(shape), dtype, Vectors::Single, dtype_name(dtype).to_string())
    }

    fn with(op: &str, shape: BatchNormShape, dtype: DType, vectors: Vectors, suffix: String) -> Result<Self> {
        let Some((_, module)) = MODULES.into_iter().find(|(of, _)| *of == dtype) else {
            return Err(check::not_float(op, "input", dtype));
        };
        if shape.channels > i32::MAX as usize {
            let expected = format!("at most {} channels on CUDA", i32::MAX);
            return Err(Error::expected(Code::Shape, op, expected, shape.channels));
        }
        let unroll = vectors.unroll(dtype);
        let (values, columns, spatial) = match vectors {
            Vectors::Planes(len) => (shape.count() / len, shape.channels, shape.spatial / len),
            Vectors::Rows(len) => (shape.count(), shape.channels / len, 1),
            Vectors::Single => (shape.count(), shape.channels, if shape.channels_last { 1 } else { shape.spatial }),
        };
        // A tensor without elements is one without values; its planes are of no matter.
        let spatial = spatial.max(1);
        let width = if shape.channels_last { block_columns(columns, values, vectors.bytes(dtype), unroll) } else { 1 };
        let lanes = values.div_ceil(unroll).next_power_of_two();
        let lanes = lanes.clamp(LEAST_THREADS / width, BLOCK_THREADS / width);
        let tiles = columns.div_ceil(width);
        let (chunk, parts) = parts(values, tiles, lanes * unroll);
        let layout = Layout {
            values: values as u64,
            chunk: chunk as u64,
            columns: columns as u64,
            spatial: spatial as u64,
            step_offset: (lanes / spatial * columns * spatial + lanes % spatial) as u64,
            wrap_offset: ((columns - 1) * spatial) as u64,
            step_spatial: (lanes % spatial) as u32,
            plane: spatial.min(LONG_PLANE) as u32,
            log_width: width.ilog2(),
            lanes: lanes as u32,
            parts: parts as u32,
            group: group(parts, lanes / vectors.channels()) as u32,
            channels: shape.channels as u32,
            unused: 0,
        };
        let threads = (width * lanes) as u32;
        let config = LaunchConfig { grid: (tiles as u32, parts as u32, 1), block: (threads, 1, 1), shared_bytes: 0 };
        Ok(Self { layout, config, module, suffix })
    }

    /// Enqueues the entry point of `kernel`.
    pub(super) fn launch<P: Params>(&self, cuda: &Cuda, kernel: &str, params: &P) -> Result<()> {
        let name = format!("{kernel}_{}", self.suffix);
        cuda.launch(Kernel { module: self.module, name: &name }, self.config, params)
    }

    /// What the parts of a reduction to `rows` numbers a channel need to come together: nothing if there is one part.
    pub(super) fn scratch(&self, cuda: &Cuda, rows: usize, dtype: DType) -> Result<Scratch> {
        let Layout { parts, channels, .. } = self.layout;
        if parts == 1 {
            return Ok(Scratch { memory: None, counters: 0 });
        }
        let groups = self.layout.groups();
        let of_groups = if groups > 1 { sums_bytes(channels as usize, rows * groups, DType::F64) } else { 0 };
        let of_parts = sums_bytes(channels as usize, rows * parts as usize, dtype.accumulate());
        let counters = self.config.grid.0 as usize * (groups + 1);
        Ok(Scratch { memory: Some(cuda.buffer(of_groups + of_parts)?), counters: cuda.counters(counters)? })
    }
}

/// Memory of a reduction. It may be dropped when the kernel is enqueued.
pub(super) struct Scratch {
    memory: Option<CudaBuffer>,
    /// Address of the counters of the grid's first dimension: one for each group and one for all. 0 for none.
    pub(super) counters: u64,
}

impl Scratch {
    /// Address of the groups' and the parts' numbers; 0 for none.
    pub(super) fn memory(&self) -> u64 {
        self.memory.as_ref().map_or(0, CudaBuffer::pointer)
    }
}

/// The same memory with as few dimensions as there are: one channel is one long plane.
fn simplified(shape: BatchNormShape) -> BatchNormShape {
    if shape.channels != 1 {
        return shape;
    }
    BatchNormShape { batch: 1, channels: 1, spatial: shape.count(), channels_last: false }
}

/// Neighbouring columns of a block, a power of two: a memory transaction of them, or fewer if more than a quarter of the
/// threads would have none, or if there is so little to do that the GPU would not be full.
fn block_columns(columns: usize, values: usize, bytes: usize, unroll: usize) -> usize {
    let (least, most) = (*BLOCK_COLUMNS.start(), *BLOCK_COLUMNS.end());
    let blocks = |width: usize| columns.div_ceil(width) * values.div_ceil(BLOCK_THREADS / width * unroll);
    let idle = |width: usize| columns.next_multiple_of(width) - columns;
    let mut width = most.min(TRANSACTION / bytes).min(columns.next_power_of_two());
    while width > least && (blocks(width) < FEW_BLOCKS || 4 * idle(width) > columns.next_multiple_of(width)) {
        width /= 2;
    }
    width
}

/// Parts that come together before all do, `finishers` threads at work for each channel: all of them if that is one step
/// of the threads, else so many that both steps take about as long.
fn group(parts: usize, finishers: usize) -> usize {
    if parts <= MERGED_AT_ONCE * finishers { parts } else { (parts - 1).isqrt() + 1 }
}

/// (values of a part, number of parts). `iteration` is how many values a block's loop takes at once.
fn parts(values: usize, tiles: usize, iteration: usize) -> (usize, usize) {
    let worthwhile = values.div_ceil(LEAST_ITERATIONS * iteration).max(1);
    let wanted = BLOCKS.div_ceil(tiles).min(worthwhile).max(values.div_ceil(MOST_VALUES)).min(MOST_PARTS);
    let chunk = values.div_ceil(wanted).next_multiple_of(iteration).max(iteration);
    (chunk, values.div_ceil(chunk).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(batch: usize, channels: usize, spatial: usize, channels_last: bool) -> BatchNormShape {
        BatchNormShape { batch, channels, spatial, channels_last: channels_last || spatial == 1 }
    }

    /// Follows the kernels' cursors and counts how often each element is visited.
    fn visits(shape: BatchNormShape, dtype: DType) -> Vec<u32> {
        let Plan { layout, config, .. } = Plan::new("test", shape, dtype, &[0]).unwrap();
        let fits = |vectors: &&Vectors| vectors.fit(simplified(shape), dtype, &[0]);
        let len = Vectors::kinds(dtype).iter().find(fits).unwrap().len();
        let mut seen = vec![0; shape.numel()];
        let width = 1 << layout.log_width;
        for column in 0..layout.columns {
            for (part, lane) in
                (0..u64::from(layout.parts)).flat_map(|p| (0..u64::from(layout.lanes)).map(move |l| (p, l)))
            {
                let first = part * layout.chunk;
                let length = layout.chunk.min(layout.values - first);
                let (sample, position) = ((first + lane) / layout.spatial, (first + lane) % layout.spatial);
                let mut left = (layout.spatial - position).min(LONG_PLANE as u64);
                let mut offset = (sample * layout.columns + column) * layout.spatial + position;
                let mut index = lane;
                while index < length {
                    let at = offset as usize * len;
                    seen[at..at + len].iter_mut().for_each(|times| *times += 1);
                    offset += layout.step_offset;
                    if left > u64::from(layout.step_spatial) {
                        left -= u64::from(layout.step_spatial);
                    } else {
                        left = left + u64::from(layout.plane) - u64::from(layout.step_spatial);
                        offset += layout.wrap_offset;
                    }
                    index += u64::from(layout.lanes);
                }
            }
        }
        assert!(width * u64::from(layout.lanes) <= u64::from(config.block.0));
        assert!((LEAST_THREADS as u32..=256).contains(&config.block.0) && config.block.0.is_power_of_two());
        seen
    }

    #[test]
    fn every_element_is_visited_once() {
        for dtype in [DType::F16, DType::F32, DType::F64] {
            for (batch, channels, spatial) in [
                (2, 3, 49),
                (1, 1, 70_000),
                (5, 65, 1),
                (4, 64, 196),
                (3, 257, 64),
                (40, 2, 3000),
                (3000, 3, 7),
                (0, 5, 4),
            ] {
                for channels_last in [false, true] {
                    let shape = shape(batch, channels, spatial, channels_last);
                    assert!(visits(shape, dtype).iter().all(|&times| times == 1), "{shape:?} {dtype}");
                }
            }
        }
    }

    #[test]
    fn few_channels_are_cut_into_many_parts() {
        let plan = |shape| Plan::new("test", shape, DType::F32, &[0]).unwrap();
        assert_eq!(plan(shape(64, 3, 224 * 224, false)).config.grid, (3, 392, 1));
        assert_eq!(plan(shape(32, 2048, 49, false)).config.grid, (2048, 1, 1));
        assert_eq!(plan(shape(256, 64, 56 * 56, true)).config.grid, (2, 896, 1));
    }

    #[test]
    fn groups_hold_every_part_and_both_steps_are_short() {
        for finishers in [1, 4, 8, 16, 64, 256] {
            for parts in (1..=2100).chain([MOST_PARTS - 1, MOST_PARTS]) {
                let group = group(parts, finishers);
                let groups = parts.div_ceil(group);
                assert!((groups - 1) * group < parts && parts <= groups * group, "{parts} in groups of {group}");
                if groups == 1 {
                    assert!(parts <= MERGED_AT_ONCE * finishers);
                } else {
                    assert!(group * group < 4 * parts && groups <= group, "{parts} in groups of {group}");
                }
            }
        }
    }

    #[test]
    fn a_block_has_a_memory_transaction_of_columns() {
        let width = |columns, bytes| block_columns(columns, 1 << 20, bytes, 4);
        assert_eq!([width(16, 16), width(512, 16), width(16, 8), width(512, 8)], [8, 8, 16, 16]);
        // Single elements: fewer columns rather than many threads without one.
        assert_eq!([width(32, 4), width(33, 4), width(65, 4), width(3, 4), width(1, 4)], [32, 8, 16, 4, 1]);
        // Little to do: more and narrower blocks.
        assert_eq!(block_columns(64, 100, 8, 8), 8);
    }

    #[test]
    fn long_planes_wrap_where_a_cursor_counts_no_further() {
        for (batch, spatial) in [(3, 1 << 30), (2, (1 << 30) + 8), (5, 1 << 33)] {
            let Plan { layout, .. } = Plan::new("test", shape(batch, 2, spatial, false), DType::F16, &[0]).unwrap();
            assert!(
                layout.chunk + u64::from(layout.lanes) * 16 < LONG_PLANE as u64,
                "a part that a cursor can walk: {layout:?}"
            );
        }
    }

    #[test]
    fn tensors_beyond_32_bits_keep_short_parts() {
        let plan = Plan::new("test", shape(1, 2, 1 << 40, false), DType::F16, &[0]).unwrap();
        assert!(plan.layout.chunk <= MOST_VALUES as u64 + (1 << 20));
        assert!(u64::from(plan.layout.parts) * plan.layout.chunk >= 1 << 37);
    }

    #[test]
    fn vectors_need_alignment() {
        let suffix = |dtype, spatial, address| {
            Plan::new("test", shape(2, 4, spatial, false), dtype, &[0, address]).unwrap().suffix
        };
        assert_eq!(suffix(DType::F32, 16, 256), "planes_f32_v4");
        assert_eq!(suffix(DType::F32, 16, 8), "f32_v1");
        assert_eq!(suffix(DType::F32, 49, 0), "f32_v1");
        assert_eq!(suffix(DType::F16, 196, 0), "planes_f16_v4");
        assert_eq!(suffix(DType::BF16, 16, 8), "planes_bf16_v4");
        assert_eq!(suffix(DType::F64, 1, 0), "rows_f64_v2");
    }
}
