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
#define BATCH_NORM_KERNEL(op, Params, suffix, blocks, T, ...)                                            \
  KERNEL_OF_BLOCKS(batch_norm_##op##_##suffix, batch_norm::Params<T>, batch_norm::BLOCK_THREADS, blocks, \
                   batch_norm::op<T, ##__VA_ARGS__>(p))

/// Four blocks on a multiprocessor, 64 registers for a thread: twice what saturates memory. `stats_blocks` are those of
/// the statistics.
#define BATCH_NORM_VECTORS(suffix, stats_blocks, T, V, CHANNELS)                      \
  BATCH_NORM_KERNEL(stats, StatsParams, suffix, stats_blocks, T, V, CHANNELS)         \
  BATCH_NORM_KERNEL(normalize, NormalizeParams, suffix, 4, T, V, CHANNELS)            \
  BATCH_NORM_KERNEL(backward_reduce, BackwardReduceParams, suffix, 4, T, V, CHANNELS) \
  BATCH_NORM_KERNEL(backward_apply, BackwardApplyParams, suffix, 4, T, V, CHANNELS)

#define BATCH_NORM_PLANES(dtype, T, V) BATCH_NORM_VECTORS(planes_##dtype##_v##V, 4, T, V, 1)
#define BATCH_NORM_ROWS(dtype, T, V, stats_blocks) BATCH_NORM_VECTORS(rows_##dtype##_v##V, stats_blocks, T, V, V)

/// Single elements, and what is rare enough to have no vectors.
#define BATCH_NORM_SINGLE(dtype, T)                                                  \
  BATCH_NORM_VECTORS(dtype##_v1, 4, T, 1, 1)                                         \
  BATCH_NORM_KERNEL(double_backward_reduce, DoubleBackwardReduceParams, dtype, 4, T) \
  BATCH_NORM_KERNEL(double_backward_apply, DoubleBackwardApplyParams, dtype, 4, T)
