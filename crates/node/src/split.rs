//! Batch norm in pieces, for adapters that keep activations elsewhere: only per-channel numbers cross.

use crate::array::{Floats, expect_apart, floats, floats_mut, to_float64};
use crate::batch_norm_array::{BindingArray, expect_output};
use crate::convert::count;
use crate::error::{Result, checked};
use crate::process_group::BindingGroup;
use crate::tensor::{BindingTensor, handle, optional};
use napi::Env;
use napi::bindgen_prelude::Float64ArraySlice;
use napi_derive::napi;
use syncbn_core::ChannelStats;
use syncbn_runtime::array::{self, BackwardArrays, BackwardSums};
use syncbn_runtime::split;

/// Count, mean and M2 of each channel.
#[napi(object)]
pub struct BindingStats<'a> {
    pub count: f64,
    pub mean: Float64ArraySlice<'a>,
    pub m2: Float64ArraySlice<'a>,
}

impl BindingStats<'_> {
    fn get(&self) -> Result<ChannelStats> {
        let count = count("channel statistics", "count", self.count)? as u64;
        Ok(ChannelStats { count, mean: self.mean.to_vec(), m2: self.m2.to_vec() })
    }
}

fn to_binding<'env>(env: &Env, stats: syncbn_core::Result<ChannelStats>) -> Result<BindingStats<'env>> {
    let stats = checked(stats)?;
    let (mean, m2) = (to_float64(env, &stats.mean)?, to_float64(env, &stats.m2)?);
    Ok(BindingStats { count: stats.count as f64, mean, m2 })
}

#[napi(catch_unwind)]
pub fn batch_norm_stats<'env>(env: &'env Env, input: &BindingTensor) -> Result<BindingStats<'env>> {
    to_binding(env, split::stats(&input.get()?))
}

#[napi(catch_unwind)]
pub fn batch_norm_stats_array<'env>(env: &'env Env, input: BindingArray) -> Result<BindingStats<'env>> {
    to_binding(env, array::stats(input.slice(), input.batch_norm_shape("batchNormStats")?))
}

#[napi(catch_unwind)]
pub fn merge_stats<'env>(env: &'env Env, stats: Vec<BindingStats<'_>>) -> Result<BindingStats<'env>> {
    let stats = stats.iter().map(BindingStats::get).collect::<Result<Vec<_>>>()?;
    to_binding(env, ChannelStats::merge_all(&stats))
}

#[napi(catch_unwind)]
pub fn gather_stats<'env>(
    env: &'env Env,
    stats: BindingStats<'_>,
    group: Option<&BindingGroup>,
) -> Result<BindingStats<'env>> {
    to_binding(env, array::gather_stats(&stats.get()?, group.map(BindingGroup::get)))
}

#[napi(catch_unwind)]
pub fn batch_norm_apply(
    input: &BindingTensor,
    stats: BindingStats<'_>,
    weight: Option<&BindingTensor>,
    bias: Option<&BindingTensor>,
    eps: f64,
) -> Result<BindingTensor> {
    let (weight, bias) = (optional(weight)?, optional(bias)?);
    handle(split::apply(&input.get()?, &stats.get()?, weight.as_ref(), bias.as_ref(), eps))
}

#[napi(catch_unwind)]
pub fn batch_norm_apply_array(
    input: BindingArray,
    stats: BindingStats<'_>,
    weight: Option<Floats<'_>>,
    bias: Option<Floats<'_>>,
    eps: f64,
    output: Floats<'_>,
) -> Result<()> {
    const OP: &str = "batchNormApply";
    let (shape, x, mut output) = (input.batch_norm_shape(OP)?, input.slice(), output);
    let affine = (weight.as_ref().map(floats), bias.as_ref().map(floats));
    let read: Vec<_> = [Some(x), affine.0, affine.1].into_iter().flatten().collect();
    expect_output(OP, &output, x, x.len(), &read)?;
    checked(array::apply(x, shape, &stats.get()?, affine, eps, floats_mut(&mut output)))
}

#[napi(catch_unwind)]
pub fn update_running_stats(
    running_mean: &BindingTensor,
    running_var: &BindingTensor,
    stats: BindingStats<'_>,
    momentum: f64,
) -> Result<()> {
    checked(split::update_running(&running_mean.get()?, &running_var.get()?, &stats.get()?, momentum))
}

#[napi(catch_unwind)]
pub fn update_running_stats_array(
    running_mean: Floats<'_>,
    running_var: Floats<'_>,
    stats: BindingStats<'_>,
    momentum: f64,
) -> Result<()> {
    let (mut mean, mut var) = (running_mean, running_var);
    expect_apart("running statistics", &mean, &[floats(&var)])?;
    checked(array::update_running(floats_mut(&mut mean), floats_mut(&mut var), &stats.get()?, momentum))
}

/// This rank's sums for backward.
#[napi(object)]
pub struct BindingSums<'a> {
    pub sum_dy: Float64ArraySlice<'a>,
    pub sum_dy_xmu: Float64ArraySlice<'a>,
}

fn to_sums<'env>(env: &Env, sums: syncbn_core::Result<BackwardSums>) -> Result<BindingSums<'env>> {
    let sums = checked(sums)?;
    Ok(BindingSums { sum_dy: to_float64(env, &sums.sum_dy)?, sum_dy_xmu: to_float64(env, &sums.sum_dy_xmu)? })
}

#[napi(catch_unwind)]
pub fn batch_norm_backward_reduce<'env>(
    env: &'env Env,
    grad_output: &BindingTensor,
    input: &BindingTensor,
    stats: BindingStats<'_>,
    eps: f64,
) -> Result<BindingSums<'env>> {
    to_sums(env, split::backward_reduce(&grad_output.get()?, &input.get()?, &stats.get()?, eps))
}

#[napi(catch_unwind)]
pub fn batch_norm_backward_reduce_array<'env>(
    env: &'env Env,
    grad_output: BindingArray,
    input: BindingArray,
    stats: BindingStats<'_>,
    eps: f64,
) -> Result<BindingSums<'env>> {
    const OP: &str = "batchNormBackwardReduce";
    let shape = input.batch_norm_shape(OP)?;
    input.expect_like(OP, "gradOutput", &grad_output)?;
    to_sums(env, array::backward_reduce(grad_output.slice(), input.slice(), shape, &stats.get()?, eps))
}

fn sums_of(sums: &BindingSums<'_>) -> BackwardSums {
    BackwardSums { sum_dy: sums.sum_dy.to_vec(), sum_dy_xmu: sums.sum_dy_xmu.to_vec() }
}

#[napi(catch_unwind)]
pub fn batch_norm_backward_apply(
    grad_output: &BindingTensor,
    input: &BindingTensor,
    stats: BindingStats<'_>,
    sums: BindingSums<'_>,
    weight: Option<&BindingTensor>,
    eps: f64,
) -> Result<BindingTensor> {
    let (grad_output, input, weight) = (grad_output.get()?, input.get()?, optional(weight)?);
    handle(split::backward_apply(&grad_output, &input, weight.as_ref(), &stats.get()?, &sums_of(&sums), eps))
}

#[napi(catch_unwind)]
pub fn batch_norm_backward_apply_array(
    grad_output: BindingArray,
    input: BindingArray,
    stats: BindingStats<'_>,
    sums: BindingSums<'_>,
    weight: Option<Floats<'_>>,
    eps: f64,
    grad_input: Floats<'_>,
) -> Result<()> {
    const OP: &str = "batchNormBackwardApply";
    let (shape, x) = (input.batch_norm_shape(OP)?, input.slice());
    input.expect_like(OP, "gradOutput", &grad_output)?;
    let (weight, mut grad_input) = (weight.as_ref().map(floats), grad_input);
    let read: Vec<_> = [Some(x), Some(grad_output.slice()), weight].into_iter().flatten().collect();
    expect_output(OP, &grad_input, x, x.len(), &read)?;
    let arrays =
        BackwardArrays { grad_output: grad_output.slice(), input: x, weight, grad_input: floats_mut(&mut grad_input) };
    checked(array::backward_apply(arrays, shape, &stats.get()?, &sums_of(&sums), eps))
}
