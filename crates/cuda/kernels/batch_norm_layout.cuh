// How threads share a tensor of batch norm, in both memory formats.
//
// A tensor is a table of columns: one channel each in the contiguous format (N, C, S), `CHANNELS` neighbouring channels
// each in channels last (N·S, C), or one of them. A column's values are vectors of V elements: V neighbours of one
// channel, or one element of each of V channels. `width` neighbouring columns belong to a block, whose threads are
// `lanes` rows of `width`; a column that is long is cut into `parts` of `chunk` values, each in a block of its own.
//
//   offset of value i of column c, in vectors = (i / spatial · columns + c) · spatial + i % spatial
//
// with spatial = S / V, or 1 in channels last. Width and lanes are powers of two. The host computes Layout, in
// crates/cuda/src/batch_norm/geometry.rs.
#pragma once

#include "common.cuh"

namespace batch_norm {

/// Threads of a block at most. Their number is a power of two.
constexpr u32 BLOCK_THREADS = 256;

/// Channels of a block at most: those of 128 bytes, or of 32 single elements.
constexpr u32 BLOCK_CHANNELS = 64;

/// Vectors of so many bytes that a thread has in flight: 64 bytes of them, fewer where registers would run out. 32 bytes
/// saturate memory with half of a multiprocessor's threads. Where two tensors are read, half as many of each.
template <int BYTES> constexpr int UNROLL = BYTES == 2 ? 16 : BYTES == 16 ? 4 : 8;

struct Layout {
  u64 values;   // of a column
  u64 chunk;    // values of a part, except the last; below 2^29
  u64 columns;
  u64 spatial;
  u64 step_offset;   // from a value to the one `lanes` further on, within a plane
  u64 wrap_offset;   // added to it at the end of a plane
  u32 step_spatial;  // lanes % spatial
  u32 plane;         // spatial, or 2^30 where it is more: such a plane does not end twice within a part
  u32 log_width;
  u32 lanes;
  u32 parts;
  u32 group;  // parts whose numbers come together before those of all
  u32 channels;
  u32 unused;

  __device__ __forceinline__ u32 width() const { return 1u << log_width; }
  __device__ __forceinline__ u32 groups() const { return (parts + group - 1) / group; }
};

/// Which columns the block has, and which part of them. Kernels that read a tensor for the second time go through it in
/// reverse: its end is what the caches still hold.
__device__ __forceinline__ u32 block_tile(bool reverse) { return reverse ? gridDim.x - 1 - blockIdx.x : blockIdx.x; }
__device__ __forceinline__ u32 block_part(bool reverse) { return reverse ? gridDim.y - 1 - blockIdx.y : blockIdx.y; }

/// Whether the block is among the first to be scheduled, one for each tile: what else has to be done for the channels of
/// a tile is done there, where other blocks hide it.
__device__ __forceinline__ bool block_is_early() { return blockIdx.y == 0; }

/// A thread's share.
struct Place {
  u64 column;
  u64 first;   // the part's first value
  u32 length;  // the part's values
  u32 tile;    // which columns the block has
  u32 part;
  u32 lane;
  bool inside;  // whether the thread has values at all

  /// The thread's column among those of the block.
  __device__ __forceinline__ u32 block_column(const Layout& layout) const {
    return threadIdx.x & (layout.width() - 1);
  }

  __device__ __forceinline__ Place(const Layout& layout, bool reverse) {
    tile = block_tile(reverse);
    part = block_part(reverse);
    lane = threadIdx.x >> layout.log_width;
    column = (static_cast<u64>(tile) << layout.log_width) + block_column(layout);
    first = part * layout.chunk;
    length = static_cast<u32>(lesser(layout.chunk, layout.values - first));
    inside = column < layout.columns;
    if (!inside) length = 0;
  }
};

/// Calls f(channel, i) for channel i of the block of `tile`, each in one thread, and waits for all of them. CHANNELS is
/// that of the vectors. All threads of the block take part.
template <int CHANNELS, class F>
__device__ __forceinline__ void for_block_channels(const Layout& layout, u32 tile, const F& f) {
  const u32 most = layout.width() * CHANNELS, first = tile * most;
  const u32 channels = lesser(most, layout.channels - first);
  ROLLED for (u32 i = threadIdx.x; i < channels; i += blockDim.x) f(first + i, i);
  __syncthreads();
}

}  // namespace batch_norm
