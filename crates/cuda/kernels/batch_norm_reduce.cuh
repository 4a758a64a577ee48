// Reductions of batch norm over the lanes of a block and the parts of a column, in an order that depends on the shape
// alone.
//
// What is reduced has ROWS numbers for each of CHANNELS channels, `rows`, and a `merge`. Lanes come together in the type
// of the arithmetic, parts in double: a `Total` is one channel's.
#pragma once

#include "batch_norm_layout.cuh"

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

  __device__ __forceinline__ void set_count(u64) {}

  /// Those of channel `c`.
  __device__ __forceinline__ Total total(int c) const {
    Total of{};
    for (int row = 0; row < ROWS; row++) of.rows[row][0] = static_cast<double>(rows[row][c]);
    return of;
  }
};

/// Leaves in lane 0 what all lanes of its column have together: lane l takes in lane l + n/2, n halving. `shared` has an element for each thread. All threads of the block take part.
template <class Value>
__device__ __forceinline__ void reduce_lanes(Value& mine, Value* shared, const Layout& layout, u32 lane) {
  __syncthreads();  // the shared memory of an earlier call is free
  shared[threadIdx.x] = mine;
  ROLLED for (u32 left = layout.lanes; left > 1;) {
    const u32 half = (left + 1) / 2;
    __syncthreads();
    if (lane + half < left) {
      mine.merge(shared[threadIdx.x + half * layout.width.divisor]);
      shared[threadIdx.x] = mine;
    }
    left = half;
  }
}

/// This lane's share of the parts' numbers for one channel.
template <class Value, class A>
__device__ __forceinline__ typename Value::Total merge_parts(const Layout& layout, const Place& place, u64 channel,
                                                             const A* partials, u32 per_value) {
  typename Value::Total total{};
  ROLLED for (u32 part = place.lane; place.inside && part < layout.parts; part += layout.lanes) {
    typename Value::Total other;
    for (int row = 0; row < Value::ROWS; row++) {
      const u64 at = (static_cast<u64>(part) * Value::ROWS + row) * layout.channels + channel;
      other.rows[row][0] = static_cast<double>(partials[at]);
    }
    other.set_count(lesser(layout.chunk, layout.values - part * layout.chunk) * per_value);
    total.merge(other);
  }
  return total;
}

/// Reduces `mine` over the lanes and parts of the column and calls finish(channel, total), once for each of its
/// channels: in lane 0 of one block. CHANNELS is that of the vectors and `per_value` the elements of a channel in each.
/// `partials` has room for parts × ROWS × channels numbers. All threads of the block take part.
template <int CHANNELS, class Value, class A, class Finish>
__device__ __forceinline__ void reduce_column(Value& mine, const Layout& layout, const Place& place, A* partials,
                                              u32* counters, u32 per_value, const Finish& finish) {
  using Total = typename Value::Total;
  __shared__ u64 memory[BLOCK_THREADS * greater(sizeof(Value), sizeof(Total)) / sizeof(u64)];
  reduce_lanes(mine, reinterpret_cast<Value*>(memory), layout, place.lane);
  const bool leads = place.inside && place.lane == 0;
  const u32 channel = static_cast<u32>(place.column) * CHANNELS;
  if (layout.parts > 1) {
    for (int row = 0; leads && row < Value::ROWS; row++) {
      A* to = partials + (static_cast<u64>(place.part) * Value::ROWS + row) * layout.channels + channel;
      for (int c = 0; c < CHANNELS; c++) to[c] = mine.rows[row][c];
    }
    if (!last_to_arrive(counters + place.tile, layout.parts)) return;
  }
  // One channel at a time, so that double needs no more memory than the lanes did.
  for (int c = 0; c < CHANNELS; c++) {
    Total total = mine.total(c);
    if (layout.parts > 1) {
      total = merge_parts<Value>(layout, place, channel + c, partials, per_value);
      reduce_lanes(total, reinterpret_cast<Total*>(memory), layout, place.lane);
    }
    if (leads) finish(channel + c, total);
  }
}

}  // namespace batch_norm
