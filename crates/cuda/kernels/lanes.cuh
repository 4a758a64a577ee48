// Blocks that reduce several lines at once: each line has `lanes` threads, a power of two, that end in a tree.
//
// Neighbouring threads are neighbours in the line where that is what is dense in memory, else in different lines. The
// order of the sums depends on the sizes alone.
#pragma once

#include "indexing.cuh"

constexpr u32 LANE_THREADS = 256;

struct Lanes {
  u32 lane, lanes;  // this thread's in its line
  u32 line, lines;  // this thread's line in the block

  __device__ __forceinline__ Lanes(u32 lanes, bool adjacent) : lanes(lanes), lines(LANE_THREADS / lanes) {
    lane = adjacent ? threadIdx.x % lanes : threadIdx.x / lines;
    line = adjacent ? threadIdx.x / lanes : threadIdx.x % lines;
  }

  /// combine(a, b) over the values of the line's lanes, the same in each. All threads of the block take part.
  template <class A, class F> __device__ __forceinline__ A reduce(A value, const F& combine) const {
    __shared__ A slots[LANE_THREADS];
    __syncthreads();  // the slots of an earlier call are free
    slots[lane * lines + line] = value;
    for (u32 half = lanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half) {
        slots[lane * lines + line] = combine(slots[lane * lines + line], slots[(lane + half) * lines + line]);
      }
    }
    __syncthreads();
    return slots[line];
  }

  /// Calls f(line) in all threads of the block for lines of the grid's x blocks up to `count`, rounded up to whole
  /// blocks, so that f may reduce.
  template <class F> __device__ __forceinline__ void for_each_line(u64 count, const F& f) const {
#pragma unroll 1
    for (u64 block = blockIdx.x; block * lines < count; block += gridDim.x) f(block * lines + line);
  }
};

/// Whether `a` replaces the maximum `b`: larger, or the first NaN.
template <class T> __device__ __forceinline__ bool exceeds(T a, T b) { return a > b || (!(a == a) && b == b); }
