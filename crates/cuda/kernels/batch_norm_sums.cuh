// Plain sums of each of several channels, as batch_norm_reduce.cuh reduces them.
#pragma once

#include "common.cuh"

namespace batch_norm {

/// Plain sums.
template <class A, int ROWS_, int CHANNELS> struct Sums {
  using Total = Sums<double, ROWS_, 1>;
  static constexpr int ROWS = ROWS_;
  A rows[ROWS][CHANNELS];

  __device__ __forceinline__ void merge(const Sums& other) {
    for (int row = 0; row < ROWS; row++) {
      for (int c = 0; c < CHANNELS; c++) rows[row][c] += other.rows[row][c];
    }
  }

  __device__ __forceinline__ Sums from_lane(u32 distance) const {
    Sums of;
    for (int row = 0; row < ROWS; row++) {
      for (int c = 0; c < CHANNELS; c++) of.rows[row][c] = __shfl_down_sync(FULL_WARP, rows[row][c], distance);
    }
    return of;
  }

  __device__ __forceinline__ void set_count(u64) {}

  /// Those of channel `c`.
  __device__ __forceinline__ Total total(int c) const {
    Total of{};
    for (int row = 0; row < ROWS; row++) of.rows[row][0] = static_cast<double>(rows[row][c]);
    return of;
  }
};

}  // namespace batch_norm
