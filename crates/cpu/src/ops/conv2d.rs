//! Two-dimensional convolution as matrix products over unfolded patches (im2col).
//!
//! Of each sample and group, `columns` is the K × P matrix of patches, K = C/groups·KH·KW, P = H'·W'; the channels-last
//! form is its transpose, so that rows are copied whole in both layouts. A 1×1 kernel that steps by one without padding
//! needs no copy. Samples are worked on one after another, so weight gradients add up in their order.

use super::float::Float;
use super::matmul::product;
use crate::buffer::HostBuffer;
use faer::{MatMut, MatRef};
use syncbn_core::Result;
use syncbn_core::ops::Conv2d;

/// Sizes derived from the geometry.
#[derive(Clone, Copy)]
struct Plan<'a> {
    geometry: &'a Conv2d,
    /// Input channels of a group.
    in_group: usize,
    /// Output channels of a group.
    out_group: usize,
    /// K, elements of a patch.
    patch: usize,
    /// P, output positions of a sample.
    positions: usize,
    /// Elements of one sample's input and output.
    sample: (usize, usize),
    /// The patches are the input itself.
    direct: bool,
}

impl<'a> Plan<'a> {
    fn new(geometry: &'a Conv2d) -> Self {
        let Conv2d { in_channels, out_channels, groups, input, output, kernel, stride, padding, .. } = *geometry;
        let (in_group, positions) = (in_channels / groups, output[0] * output[1]);
        Self {
            geometry,
            in_group,
            out_group: out_channels / groups,
            patch: in_group * kernel[0] * kernel[1],
            positions,
            sample: (in_channels * input[0] * input[1], out_channels * positions),
            direct: kernel == [1, 1] && stride == [1, 1] && padding == [0, 0],
        }
    }

    /// The input row and column under kernel element (i, j) at output position (y, x), if inside.
    fn source(&self, [y, x]: [usize; 2], [i, j]: [usize; 2]) -> Option<[usize; 2]> {
        let Conv2d { stride, padding, input, .. } = self.geometry;
        let row = (y * stride[0] + i).checked_sub(padding[0]).filter(|&row| row < input[0])?;
        let column = (x * stride[1] + j).checked_sub(padding[1]).filter(|&column| column < input[1])?;
        Some([row, column])
    }

    /// The output columns whose source column under kernel column `j` is inside: a range.
    fn inside(&self, j: usize) -> (usize, usize) {
        let Conv2d { stride, padding, input, output, .. } = self.geometry;
        let first = padding[1].saturating_sub(j).div_ceil(stride[1]);
        let end = (input[1] + padding[1]).saturating_sub(j).div_ceil(stride[1]).min(output[1]);
        (first.min(end), end)
    }

    /// Visits every run of patch elements: (offset in columns, offset in the sample, elements, step in the sample).
    /// Positions that fall into the padding are visited with no source.
    fn each_run(&self, group: usize, mut visit: impl FnMut(usize, Option<usize>, usize, usize)) {
        if self.geometry.channels_last { self.runs_last(group, &mut visit) } else { self.runs_first(group, &mut visit) }
    }

    fn runs_first(&self, group: usize, visit: &mut impl FnMut(usize, Option<usize>, usize, usize)) {
        let Conv2d { input, output, kernel, stride, padding, .. } = *self.geometry;
        for k in 0..self.patch {
            let (channel, i, j) = (k / (kernel[0] * kernel[1]), k / kernel[1] % kernel[0], k % kernel[1]);
            let plane = (group * self.in_group + channel) * input[0] * input[1];
            let (first, end) = self.inside(j);
            for y in 0..output[0] {
                let row = (k * output[0] + y) * output[1];
                let source = (y * stride[0] + i).checked_sub(padding[0]).filter(|&r| r < input[0]);
                let Some(source) = source.filter(|_| first < end) else {
                    visit(row, None, output[1], 0);
                    continue;
                };
                visit(row, None, first, 0);
                let start = plane + source * input[1] + first * stride[1] + j - padding[1];
                visit(row + first, Some(start), end - first, stride[1]);
                visit(row + end, None, output[1] - end, 0);
            }
        }
    }

    fn runs_last(&self, group: usize, visit: &mut impl FnMut(usize, Option<usize>, usize, usize)) {
        let Conv2d { input, output, kernel, in_channels, .. } = *self.geometry;
        for position in 0..self.positions {
            for tap in 0..kernel[0] * kernel[1] {
                let at = [position / output[1], position % output[1]];
                let source = self.source(at, [tap / kernel[1], tap % kernel[1]]);
                let start = source.map(|[r, c]| (r * input[1] + c) * in_channels + group * self.in_group);
                visit(position * self.patch + tap * self.in_group, start, self.in_group, 1);
            }
        }
    }

    /// Copies the patches of one sample.
    fn unfold<T: Float>(&self, sample: &[T], group: usize, columns: &mut [T]) {
        self.each_run(group, |to, from, len, step| {
            let run = &mut columns[to..to + len];
            match from {
                None => run.fill(T::default()),
                Some(from) if step == 1 => run.copy_from_slice(&sample[from..from + len]),
                Some(from) => run.iter_mut().enumerate().for_each(|(i, out)| *out = sample[from + i * step]),
            }
        });
    }

    /// Adds patches back to where they came from.
    fn fold<T: Float>(&self, columns: &[T], group: usize, sample: &mut [T]) {
        self.each_run(group, |to, from, len, step| {
            let Some(from) = from else { return };
            columns[to..to + len].iter().enumerate().for_each(|(i, &value)| sample[from + i * step] += value);
        });
    }

    /// The O/groups × K matrix of a group, from weights in this layout's order.
    fn weight<'w, T: Float>(&self, weight: &'w [T], group: usize) -> MatRef<'w, T> {
        let size = self.out_group * self.patch;
        MatRef::from_row_major_slice(&weight[group * size..][..size], self.out_group, self.patch)
    }

    /// The K × P patches as a matrix; with `direct` these are the sample's own elements.
    fn columns<'c, T: Float>(&self, sample: &'c [T], columns: &'c [T], group: usize) -> MatRef<'c, T> {
        let Conv2d { channels_last, in_channels, .. } = *self.geometry;
        match (self.direct, channels_last) {
            (true, true) => MatRef::from_row_major_slice(sample, self.positions, in_channels)
                .subcols(group * self.in_group, self.in_group)
                .transpose(),
            (true, false) => {
                let size = self.in_group * self.positions;
                MatRef::from_row_major_slice(&sample[group * size..][..size], self.in_group, self.positions)
            }
            (false, true) => MatRef::from_row_major_slice(columns, self.positions, self.patch).transpose(),
            (false, false) => MatRef::from_row_major_slice(columns, self.patch, self.positions),
        }
    }

    /// The O/groups × P matrix of one sample's output.
    fn output<'o, T: Float>(&self, sample: &'o [T], group: usize) -> MatRef<'o, T> {
        if self.geometry.channels_last {
            return MatRef::from_row_major_slice(sample, self.positions, self.geometry.out_channels)
                .subcols(group * self.out_group, self.out_group)
                .transpose();
        }
        let size = self.out_group * self.positions;
        MatRef::from_row_major_slice(&sample[group * size..][..size], self.out_group, self.positions)
    }

    fn output_mut<'o, T: Float>(&self, sample: &'o mut [T], group: usize) -> MatMut<'o, T> {
        if self.geometry.channels_last {
            return MatMut::from_row_major_slice_mut(sample, self.positions, self.geometry.out_channels)
                .subcols_mut(group * self.out_group, self.out_group)
                .transpose_mut();
        }
        let size = self.out_group * self.positions;
        MatMut::from_row_major_slice_mut(&mut sample[group * size..][..size], self.out_group, self.positions)
    }

    /// KH·KW.
    fn taps(&self) -> usize {
        self.geometry.kernel[0] * self.geometry.kernel[1]
    }

    /// Whether this layout's patches are in another order than the weights (O, C/groups, KH, KW).
    fn reorders(&self) -> bool {
        self.geometry.channels_last && self.taps() > 1
    }

    /// The weights in the order of this layout's patches, where that differs.
    fn reordered<T: Float>(&self, weight: &[T]) -> Option<Vec<T>> {
        self.reorders().then(|| permute(weight, self.patch, self.in_group, self.taps()))
    }
}

/// Transposes each `rows × columns` block of `size` elements.
fn permute<T: Copy>(data: &[T], size: usize, rows: usize, columns: usize) -> Vec<T> {
    data.chunks_exact(size).flat_map(|block| (0..size).map(|i| block[i % rows * columns + i / rows])).collect()
}

/// Memory for one sample's patches.
fn scratch<T: Float>(plan: &Plan<'_>) -> Result<HostBuffer> {
    HostBuffer::new(T::DTYPE, if plan.direct { 0 } else { plan.patch * plan.positions })
}

/// Calls `work(sample, group)` for each of them.
fn each_block(plan: &Plan<'_>, mut work: impl FnMut(usize, usize)) {
    (0..plan.geometry.batch).for_each(|n| (0..plan.geometry.groups).for_each(|g| work(n, g)));
}

pub fn forward<T: Float>(input: &[T], weight: &[T], geometry: &Conv2d, output: &mut [T]) -> Result<()> {
    let plan = Plan::new(geometry);
    let buffer = scratch::<T>(&plan)?;
    let mut guard = buffer.write()?;
    let columns = T::slice_mut("conv2d", guard.slice())?;
    let reordered = plan.reordered(weight);
    let weight = reordered.as_deref().unwrap_or(weight);
    each_block(&plan, |n, group| {
        let sample = &input[n * plan.sample.0..][..plan.sample.0];
        if !plan.direct {
            plan.unfold(sample, group, columns);
        }
        let target = plan.output_mut(&mut output[n * plan.sample.1..][..plan.sample.1], group);
        product(target, plan.weight(weight, group), plan.columns(sample, columns, group), false);
    });
    Ok(())
}

pub fn backward_input<T: Float>(
    grad_output: &[T],
    weight: &[T],
    geometry: &Conv2d,
    grad_input: &mut [T],
) -> Result<()> {
    // The patches' gradient always goes through memory of its own, because patches may overlap.
    let plan = Plan { direct: false, ..Plan::new(geometry) };
    let buffer = scratch::<T>(&plan)?;
    let mut guard = buffer.write()?;
    let columns = T::slice_mut("conv2d", guard.slice())?;
    let reordered = plan.reordered(weight);
    let weight = reordered.as_deref().unwrap_or(weight);
    grad_input.fill(T::default());
    each_block(&plan, |n, group| {
        let source = plan.output(&grad_output[n * plan.sample.1..][..plan.sample.1], group);
        let target = if geometry.channels_last {
            MatMut::from_row_major_slice_mut(columns, plan.positions, plan.patch).transpose_mut()
        } else {
            MatMut::from_row_major_slice_mut(columns, plan.patch, plan.positions)
        };
        product(target, plan.weight(weight, group).transpose(), source, false);
        plan.fold(columns, group, &mut grad_input[n * plan.sample.0..][..plan.sample.0]);
    });
    Ok(())
}

pub fn backward_weight<T: Float>(
    grad_output: &[T],
    input: &[T],
    geometry: &Conv2d,
    grad_weight: &mut [T],
) -> Result<()> {
    let plan = Plan::new(geometry);
    let buffer = scratch::<T>(&plan)?;
    let mut guard = buffer.write()?;
    let columns = T::slice_mut("conv2d", guard.slice())?;
    grad_weight.fill(T::default());
    let size = plan.out_group * plan.patch;
    each_block(&plan, |n, group| {
        let sample = &input[n * plan.sample.0..][..plan.sample.0];
        if !plan.direct {
            plan.unfold(sample, group, columns);
        }
        let target = &mut grad_weight[group * size..][..size];
        let target = MatMut::from_row_major_slice_mut(target, plan.out_group, plan.patch);
        let source = plan.output(&grad_output[n * plan.sample.1..][..plan.sample.1], group);
        product(target, source, plan.columns(sample, columns, group).transpose(), true);
    });
    if plan.reorders() {
        grad_weight.copy_from_slice(&permute(grad_weight, plan.patch, plan.taps(), plan.in_group));
    }
    Ok(())
}
