// Count, mean and M2 = Σ(x − mean)² of values, and how two of them become one: crates/core/src/channel_stats.rs.
#pragma once

#include "batch_norm_slot.cuh"

namespace batch_norm {

/// What a set of `b` values weighs in its merge with one of `a`, which has some.
template <class A> struct MergeWeights {
  A share;    // b / (a + b)
  A between;  // a·b / (a + b)

  __device__ __forceinline__ MergeWeights(A a, A b) : share(b / (a + b)), between(a * share) {}
};

/// The moments of one channel but for the number of values.
///
/// Where the mean is far above the deviation, its rounding is not small against the deviation, and merges square it. So
/// what the mean cannot hold is kept in `rest`.
template <class A> struct Spread {
  A mean, rest, m2;

  /// mean + rest becomes mean + shift, by Knuth's TwoSum, which is exact.
  __device__ __forceinline__ void move_mean(A shift) {
    const A moved = mean + shift;
    const A by = moved - mean;
    rest = (mean - (moved - by)) + (shift - by);
    mean = moved;
  }

  /// Chan, Golub, LeVeque (1979), eq. 2.1. Kernels that merge the messages of ranks must agree to the bit, whatever
  /// they are inlined into: no product here is added to anything but by multiply_add.
  __device__ __forceinline__ void merge(const Spread& other, MergeWeights<A> weights) {
    const A delta = (other.mean - mean) + (other.rest - rest);
    const A spread = delta * weights.between;
    m2 = multiply_add(delta, spread, m2 + other.m2);
    move_mean(multiply_add(delta, weights.share, rest));
  }
};

/// Moments of the values of each of CHANNELS channels; their number is the same for all.
template <class A, int CHANNELS> struct Moments {
  using Total = Moments<double, 1>;
  static constexpr int ROWS = 3;  // mean, rest, M2: Spread
  A rows[ROWS][CHANNELS];
  u64 count;

  __device__ __forceinline__ void merge(const Moments& other) {
    if (count == 0) {
      *this = other;
      return;
    }
    const MergeWeights<A> weights(static_cast<A>(count), static_cast<A>(other.count));
    for (int c = 0; c < CHANNELS; c++) {
      Spread<A> spread = get(c);
      spread.merge(other.get(c), weights);
      set(c, spread);
    }
    count += other.count;
  }

  __device__ __forceinline__ Spread<A> get(int c) const { return {rows[0][c], rows[1][c], rows[2][c]}; }

  __device__ __forceinline__ void set(int c, const Spread<A>& spread) {
    rows[0][c] = spread.mean;
    rows[1][c] = spread.rest;
    rows[2][c] = spread.m2;
  }

  __device__ __forceinline__ Moments from_lane(u32 distance) const {
    Moments of;
    for (int row = 0; row < ROWS; row++) {
      for (int c = 0; c < CHANNELS; c++) of.rows[row][c] = __shfl_down_sync(FULL_WARP, rows[row][c], distance);
    }
    of.count = __shfl_down_sync(FULL_WARP, count, distance);
    return of;
  }

  __device__ __forceinline__ void set_count(u64 values) { count = values; }

  /// Those of channel `c`.
  __device__ __forceinline__ Total total(int c) const {
    return {{{static_cast<double>(rows[0][c])}, {static_cast<double>(rows[1][c])}, {static_cast<double>(rows[2][c])}},
            count};
  }
};

/// Moments of the slots of all ranks for one channel, or an only slot's entry as it is.
///
/// 2^log_lanes lanes of a warp share the work: each merges its run of neighbouring slots, then pairs of lanes merge, and
/// so on. That is rank order, and the same for every layout. Valid in the first of the lanes; all lanes of the warp take
/// part. There is one place that merges, because the divisions of double take many instructions and registers.
__device__ __forceinline__ Moments<double, 1> merge_slots(const u64* slots, u32 world_size, u32 channels, u32 channel,
                                                          u32 log_lanes) {
  const u32 lanes = 1u << log_lanes, lane = threadIdx.x & (lanes - 1);
  const u32 run = (world_size + lanes - 1) >> log_lanes;
  Moments<double, 1> mine{};
  ROLLED for (u32 step = 0; step < run + log_lanes; step++) {
    Moments<double, 1> other{};
    const u32 rank = lane * run + step;
    if (step >= run) {
      other = mine.from_lane(1u << (step - run));
    } else if (rank < world_size) {
      const SlotEntry entry = load_entry(slots + rank * slot_words(channels), channels, channel);
      other = {{{entry.mean}, {0.0}, {entry.second}}, entry.count};
    }
    mine.merge(other);
  }
  return mine;
}

}  // namespace batch_norm
