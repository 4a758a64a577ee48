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

/// The offsets of a thread's values, one after the other.
template <int CHANNELS> struct Cursor {
  u64 offset;
  i32 left;  // values of the plane from here on, or 2^30 where it is more

  __device__ __forceinline__ Cursor(const Layout& layout, const Place& place) {
    const u64 value = place.first + place.lane;
    if (CHANNELS > 1) {  // planes of one value
      offset = value * layout.columns + place.column;
      return;
    }
    // Most tensors are small enough for the much faster division of 32 bits.
    const bool narrow = (value | layout.spatial) >> 32 == 0;
    const u64 sample = narrow ? static_cast<u32>(value) / static_cast<u32>(layout.spatial) : value / layout.spatial;
    const u64 position = value - sample * layout.spatial;
    offset = (sample * layout.columns + place.column) * layout.spatial + position;
    left = static_cast<i32>(lesser(layout.spatial - position, static_cast<u64>(1u << 30)));
  }

  /// The offset of this value, in vectors; the cursor goes on to the value `lanes` further.
  __device__ __forceinline__ u64 next(const Layout& layout) {
    const u64 here = offset;
    offset += layout.step_offset;
    if (CHANNELS > 1) return here;
    left -= static_cast<i32>(layout.step_spatial);
    if (left <= 0) {
      left += static_cast<i32>(layout.plane);
      offset += layout.wrap_offset;
    }
    return here;
  }
};

/// The offsets of U values that are loaded and then stored, in elements, U after U. They are KEPT where registers allow;
/// else they are found again, which takes as many instructions as at first.
template <int V, int CHANNELS, int U, bool KEPT> struct Walk {
  Cursor<CHANNELS> loads, stores;
  u64 kept[U];

  __device__ __forceinline__ explicit Walk(const Cursor<CHANNELS>& start) : loads(start), stores(start) {}

  __device__ __forceinline__ u64 load(const Layout& layout, int j) {
    const u64 offset = loads.next(layout) * V;
    if (KEPT) kept[j] = offset;
    return offset;
  }

  __device__ __forceinline__ u64 store(const Layout& layout, int j) {
    return KEPT ? kept[j] : stores.next(layout) * V;
  }
};

/// How many of the COUNT values from `index` on, `lanes` apart, are in the part.
template <int COUNT> __device__ __forceinline__ u32 values_left(u32 index, const Place& place, u32 lanes) {
  if (index + (COUNT - 1) * lanes < place.length) return COUNT;
  u32 left = 0;
  for (int j = 0; j < COUNT - 1; j++) left += index + j * lanes < place.length;
  return left;
}

/// f(j) for the j below `valid`, without a comparison for each where that is COUNT.
template <int COUNT, class F> __device__ __forceinline__ void for_valid(u32 valid, const F& f) {
  if (valid == COUNT) {
    for (int j = 0; j < COUNT; j++) f(j);
  } else {
    for (int j = 0; j < COUNT - 1; j++) {
      if (j < static_cast<int>(valid)) f(j);
    }
  }
}

/// f(FIRST) + … + f(FIRST + COUNT − 1) as a balanced tree: rounding errors grow with the logarithm of COUNT.
template <int FIRST, int COUNT, class F> __device__ __forceinline__ auto tree_sum(const F& f) {
  if constexpr (COUNT == 1) {
    return f(FIRST);
  } else {
    return tree_sum<FIRST, COUNT / 2>(f) + tree_sum<FIRST + COUNT / 2, COUNT - COUNT / 2>(f);
  }
}

}  // namespace batch_norm
