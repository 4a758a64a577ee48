//! Launchers of reduce.cu.

use super::family::{FLOATS, Family, THREADS, expect_dtype, expect_len, expect_one_of, suffix};
use super::lanes::Lanes;
use super::space::{self, Dimensions, Space};
use crate::kernel_table::Entry;
use crate::launch::{LaunchConfig, Params};
use crate::module::{Kernel, Module};
use crate::{Cuda, CudaSlice, CudaSliceMut};
use syncbn_core::ops::{Along, Reduction};
use syncbn_core::{DType, Result};

/// Blocks that few outputs are shared out to; any GPU is busy with fewer.
const SHARED_BLOCKS: usize = 1024;
/// Terms a thread adds at least, before an output gets more blocks.
const TERMS_A_LANE: usize = 32;

#[repr(C)]
#[derive(Clone, Copy)]
struct SumParams {
    input: u64,
    output: u64,
    outputs: u64,
    terms: u64,
    split_terms: u64,
    scale: f64,
    lanes: u32,
    adjacent: u32,
    kept: Space<1>,
    reduced: Space<1>,
}
// SAFETY: repr(C), as the struct of kernels/reduce.cu.
unsafe impl Params for SumParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct ArgmaxParams {
    input: u64,
    output: u64,
    along: space::Along,
    lanes: u32,
    adjacent: u32,
}
// SAFETY: repr(C), as the struct of kernels/reduce.cu.
unsafe impl Params for ArgmaxParams {}

const ARGMAX: Family<ArgmaxParams> = Family::new(Module::Reduce, "argmax", FLOATS);

fn sum_name(from: DType, to: DType) -> String {
    format!("sum_{}_{}", suffix(from), suffix(to))
}

pub(super) fn table() -> Vec<Entry> {
    let pairs = FLOATS.iter().flat_map(|&from| FLOATS.iter().map(move |&to| (from, to)));
    let sums = pairs.map(|(from, to)| Entry::of::<SumParams>(Module::Reduce, sum_name(from, to)));
    sums.chain(ARGMAX.entries()).collect()
}

/// A sum with its dimensions joined, and who computes it.
struct Plan {
    kept: Dimensions<1>,
    reduced: Dimensions<1>,
    lanes: Lanes,
    /// Blocks that share an output.
    splits: usize,
}

impl Plan {
    fn new(layout: &Reduction) -> Self {
        let kept = Dimensions::new(&layout.kept, [&layout.kept_strides]);
        let reduced = Dimensions::sorted_by(&layout.reduced, [&layout.reduced_strides], 0);
        let stride = |dimensions: &Dimensions<1>| dimensions.last_stride(0).unwrap_or(usize::MAX);
        let (outputs, terms) = (kept.len(), reduced.len());
        let lanes = Lanes::new(outputs, terms, stride(&reduced) <= stride(&kept));
        let splits = (SHARED_BLOCKS / lanes.blocks(outputs)).min(terms / (lanes.lanes as usize * TERMS_A_LANE)).max(1);
        Self { kept, reduced, lanes, splits }
    }
}

fn launch(cuda: &Cuda, (from, to): (DType, DType), (input, output): (u64, u64), plan: &Plan, scale: f64) -> Result<()> {
    let (outputs, terms) = (plan.kept.len(), plan.reduced.len());
    let Lanes { lanes, adjacent } = plan.lanes;
    let params = SumParams {
        input,
        output,
        outputs: outputs as u64,
        terms: terms as u64,
        split_terms: terms.div_ceil(plan.splits) as u64,
        scale,
        lanes,
        adjacent,
        kept: plan.kept.space("sum")?,
        reduced: plan.reduced.space("sum")?,
    };
    let grid = (plan.lanes.blocks(outputs) as u32, plan.splits as u32, 1);
    let config = LaunchConfig { grid, block: (THREADS as u32, 1, 1), shared_bytes: 0 };
    cuda.launch(Kernel { module: Module::Reduce, name: &sum_name(from, to) }, config, &params)
}

pub(super) fn sum(cuda: &Cuda, input: CudaSlice<'_>, layout: &Reduction, output: &CudaSliceMut<'_>) -> Result<()> {
    let (plan, dtype) = (Plan::new(layout), input.dtype());
    let outputs = plan.kept.len();
    expect_one_of("sum", FLOATS, dtype)?;
    expect_dtype("sum", dtype, output.dtype())?;
    expect_len("sum", "the output", outputs, output.len())?;
    if outputs == 0 {
        return Ok(());
    }
    if plan.reduced.len() > 0 {
        expect_len("sum", "the input", plan.kept.reach(0) + plan.reduced.reach(0) - 1, input.len())?;
    }
    if plan.splits == 1 {
        return launch(cuda, (dtype, dtype), (input.pointer(), output.pointer()), &plan, layout.scale);
    }
    let partial = cuda.buffer(plan.splits * outputs * DType::F64.size())?;
    launch(cuda, (dtype, DType::F64), (input.pointer(), partial.pointer()), &plan, 1.0)?;
    let kept = Dimensions::new(&[outputs], [&[1]]);
    let reduced = Dimensions::new(&[plan.splits], [&[outputs]]);
    let lanes = Lanes::new(outputs, plan.splits, outputs == 1);
    let rest = Plan { kept, reduced, lanes, splits: 1 };
    launch(cuda, (DType::F64, dtype), (partial.pointer(), output.pointer()), &rest, layout.scale)
}

pub(super) fn argmax(cuda: &Cuda, input: CudaSlice<'_>, along: Along, output: &CudaSliceMut<'_>) -> Result<()> {
    let lines = along.outer * along.inner;
    expect_dtype("argmax", DType::I64, output.dtype())?;
    expect_len("argmax", "the output", lines, output.len())?;
    expect_len("argmax", "the input", lines * along.size, input.len())?;
    if lines == 0 {
        return Ok(());
    }
    expect_len("argmax", "the dimension", 1, along.size)?;
    let lanes = Lanes::new(lines, along.size, along.inner == 1);
    let params = ArgmaxParams {
        input: input.pointer(),
        output: output.pointer(),
        along: along.into(),
        lanes: lanes.lanes,
        adjacent: lanes.adjacent,
    };
    ARGMAX.launch(cuda, "argmax", input.dtype(), lanes.config(lines), &params)
}
