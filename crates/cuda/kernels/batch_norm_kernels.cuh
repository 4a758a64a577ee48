// The entry points of batch norm for one element type: a file and a module for each, since a program that trains in one
// type should not wait until the driver has compiled the others.
//
// "planes" read vectors of V neighbours of one channel, "rows" one element each of V neighbouring channels in channels
// last; _v1 serves both formats. crates/cuda/src/batch_norm/geometry.rs chooses.
#pragma once

#include "batch_norm_backward_apply.cuh"
#include "batch_norm_backward_reduce.cuh"
#include "batch_norm_double_backward_apply.cuh"
#include "batch_norm_double_backward_reduce.cuh"
#include "batch_norm_normalize.cuh"
#include "batch_norm_stats.cuh"

/// The entry point batch_norm_OP_SUFFIX of `op<T, …>(const Params<T>&)`.
#define BATCH_NORM_KERNEL(op, Params, suffix, T, ...)                                  \
  KERNEL(batch_norm_##op##_##suffix, batch_norm::Params<T>, batch_norm::BLOCK_THREADS, \
         batch_norm::op<T, ##__VA_ARGS__>(p))

#define BATCH_NORM_VECTORS(suffix, T, V, CHANNELS)                                 \
  BATCH_NORM_KERNEL(stats, StatsParams, suffix, T, V, CHANNELS)                    \
  BATCH_NORM_KERNEL(normalize, NormalizeParams, suffix, T, V, CHANNELS)            \
  BATCH_NORM_KERNEL(backward_reduce, BackwardReduceParams, suffix, T, V, CHANNELS) \
  BATCH_NORM_KERNEL(backward_apply, BackwardApplyParams, suffix, T, V, CHANNELS)

#define BATCH_NORM_PLANES(dtype, T, V) BATCH_NORM_VECTORS(planes_##dtype##_v##V, T, V, 1)
#define BATCH_NORM_ROWS(dtype, T, V) BATCH_NORM_VECTORS(rows_##dtype##_v##V, T, V, V)

/// Single elements, and what is rare enough to have no vectors.
#define BATCH_NORM_SINGLE(dtype, T)                                               \
  BATCH_NORM_VECTORS(dtype##_v1, T, 1, 1)                                         \
  BATCH_NORM_KERNEL(double_backward_reduce, DoubleBackwardReduceParams, dtype, T) \
  BATCH_NORM_KERNEL(double_backward_apply, DoubleBackwardApplyParams, dtype, T)
