// Index spaces: which element of memory a position of a tensor is, and how a grid walks many positions.
//
// Positions and offsets have 64 bits throughout; what makes that cheap is that every division is a multiplication.
#pragma once

#include "common.cuh"

/// Division of n < 2^63 by an invariant d in 1…2^63−1: `Divider` of common.cuh in 64 bits. Mirrored in
/// src/ops/space.rs.
struct WideDivider {
  u64 divisor, multiplier, shift;

  __device__ __forceinline__ u64 quotient(u64 n) const {
    return (__umul64hi(n, multiplier) + n) >> shift;
  }

  /// Replaces n by its quotient and returns the remainder.
  __device__ __forceinline__ u64 split(u64& n) const {
    const u64 whole = quotient(n), rest = n - whole * divisor;
    n = whole;
    return rest;
  }
};

/// Dimensions of an index space, after neighbours that are walked as one were joined.
constexpr int MAX_DIMENSIONS = 8;

/// An index space in row-major order and how K tensors lie in it, in elements. Mirrored in src/ops/space.rs.
template <int K> struct Space {
  u64 dimensions;
  WideDivider sizes[MAX_DIMENSIONS];
  u64 strides[K][MAX_DIMENSIONS];
};

/// Offsets of position `index` in each tensor.
template <int K> __device__ __forceinline__ void locate(const Space<K>& space, u64 index, u64 (&offsets)[K]) {
  for (int k = 0; k < K; k++) offsets[k] = 0;
  if (space.dimensions == 0) return;
#pragma unroll 1
  for (int d = static_cast<int>(space.dimensions) - 1; d > 0; d--) {
    const u64 position = space.sizes[d].split(index);
    for (int k = 0; k < K; k++) offsets[k] += position * space.strides[k][d];
  }
  for (int k = 0; k < K; k++) offsets[k] += index * space.strides[k][0];
}

/// Offset of position `index` in the only tensor of `space`.
__device__ __forceinline__ u64 locate(const Space<1>& space, u64 index) {
  u64 offsets[1];
  locate(space, index, offsets);
  return offsets[0];
}

/// Calls f(i) for every i below `len`, spread over a grid of one dimension.
template <class F> __device__ __forceinline__ void for_each(u64 len, const F& f) {
#pragma unroll 1
  for (u64 i = grid_thread(); i < len; i += grid_threads()) f(i);
}

/// A tensor seen as outer × size × inner around one dimension. Mirrored in src/ops/space.rs.
struct Along {
  u64 outer, size;
  WideDivider inner;

  /// Lines along the dimension.
  __device__ __forceinline__ u64 lines() const { return outer * inner.divisor; }

  /// Elements from one of a line to the next.
  __device__ __forceinline__ u64 step() const { return inner.divisor; }

  /// Offset of the first element of a line.
  __device__ __forceinline__ u64 start(u64 line) const {
    const u64 column = inner.split(line);
    return line * (size * inner.divisor) + column;
  }
};
