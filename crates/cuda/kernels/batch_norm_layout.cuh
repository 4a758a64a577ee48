// How threads share a tensor of batch norm, in both memory formats.
//
// A tensor is a table of columns: one channel each in the contiguous format (N, C, S), `CHANNELS` neighbouring channels
// each in channels last (N·S, C), or one of them. A column's values are vectors of V elements: V neighbours of one
// channel, or one element of each of V channels. `width` neighbouring columns belong to a block, whose threads are
// `lanes` rows of `width`; a column that is long is cut into `parts` of `chunk` values, each in a block of its own.
//
//   offset of value i of column c, in vectors = (i / spatial · columns + c) · spatial + i % spatial
//
// with spatial = S / V, or 1 in channels last. The host computes Layout, in crates/cuda/src/batch_norm/geometry.rs.
#pragma once

#include "common.cuh"

namespace batch_norm {

/// Threads of a block at most.
constexpr u32 BLOCK_THREADS = 256;

/// Columns of a block at most.
constexpr u32 BLOCK_COLUMNS = 32;

/// Channels of a block at most: those of its columns, in vectors of 4.
constexpr u32 BLOCK_CHANNELS = BLOCK_COLUMNS * 4;

/// Vectors a thread of a reduction has in flight: 64 bytes of them, fewer where registers would run out. 32 bytes
/// saturate memory with half of a multiprocessor's threads.
template <int BYTES, int CHANNELS> constexpr int UNROLL = CHANNELS > 1 ? 4 : BYTES == 2 ? 16 : BYTES == 16 ? 4 : 8;

struct Layout {
  u64 values;        // of a column
  u64 chunk;         // values of a part, except the last; below 2^28
  u64 columns;
  u64 spatial;
  u64 step_spatial;  // lanes % spatial
  u64 step_offset;   // from a value to the one `lanes` further on, within a plane
  u64 wrap_offset;   // added to it at the end of a plane
  Divider width;
  u32 lanes;
  u32 parts;
  u32 channels;
  u32 unused;
};

/// Which columns the block has, and which part of them. Kernels that read a tensor for the second time go through it in
/// reverse: its end is what the caches still hold.
__device__ __forceinline__ u32 block_tile(bool reverse) { return reverse ? gridDim.x - 1 - blockIdx.x : blockIdx.x; }
__device__ __forceinline__ u32 block_part(bool reverse) { return reverse ? gridDim.y - 1 - blockIdx.y : blockIdx.y; }

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
    return threadIdx.x - lane * layout.width.divisor;
  }

  __device__ __forceinline__ Place(const Layout& layout, bool reverse) {
    tile = block_tile(reverse);
    part = block_part(reverse);
    lane = layout.width.quotient(threadIdx.x);
    column = static_cast<u64>(tile) * layout.width.divisor + (threadIdx.x - lane * layout.width.divisor);
    first = part * layout.chunk;
    length = static_cast<u32>(lesser(layout.chunk, layout.values - first));
    inside = column < layout.columns && lane < layout.lanes;
  }
};

/// Calls f(channel, i) for channel i of the block of `tile`, each in one thread, and waits for all of them. CHANNELS is
/// that of the vectors. All threads of the block take part.
template <int CHANNELS, class F>
__device__ __forceinline__ void for_block_channels(const Layout& layout, u32 tile, const F& f) {
  const u32 most = layout.width.divisor * CHANNELS, first = tile * most;
  const u32 channels = lesser(most, layout.channels - first);
  ROLLED for (u32 i = threadIdx.x; i < channels; i += blockDim.x) f(first + i, i);
  __syncthreads();
}

/// The offsets of a thread's values, one after the other.
struct Cursor {
  u64 offset;
  u64 position;

  __device__ __forceinline__ Cursor(const Layout& layout, const Place& place) {
    const u64 value = place.first + place.lane;
    // Most tensors are small enough for the much faster division of 32 bits.
    const bool narrow = (value | layout.spatial) >> 32 == 0;
    const u64 sample = narrow ? static_cast<u32>(value) / static_cast<u32>(layout.spatial) : value / layout.spatial;
    position = value - sample * layout.spatial;
    offset = (sample * layout.columns + place.column) * layout.spatial + position;
  }

  /// The offset of this value, in vectors; the cursor goes on to the value `lanes` further.
  __device__ __forceinline__ u64 next(const Layout& layout) {
    const u64 here = offset;
    offset += layout.step_offset;
    position += layout.step_spatial;
    if (position >= layout.spatial) {
      position -= layout.spatial;
      offset += layout.wrap_offset;
    }
    return here;
  }
};

/// How many of the UNROLL values from `index` on, `lanes` apart, are in the part.
template <int COUNT> __device__ __forceinline__ u32 values_left(u32 index, const Place& place, u32 lanes) {
  u32 left = 0;
  for (int j = 0; j < COUNT; j++) left += index + j * lanes < place.length;
  return left;
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
