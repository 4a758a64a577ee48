// Reductions of batch norm over the lanes of a block and the parts of a column, in an order that depends on the shape
// alone.
//
// What is reduced has ROWS numbers for each of CHANNELS channels, `rows`, a `merge`, and `from_lane`, which is another
// lane's. Lanes come together in the type of the arithmetic, parts in double: a `Total` is one channel's.
//
// Parts meet in two steps. The last block of `group` neighbouring parts to end merges theirs, the last group to end
// merges the groups'; with about √parts in each, what is left to do when the last part has been read is a few merges in
// each thread. One step would be √parts times as many: with 64 channels in channels last, more than the reading takes.
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

/// Leaves in each thread t below `width` what the threads t, t + width, … below `threads` have together: t takes in
/// t + n/2, n halving. All are powers of two. `shared` has room for half of the threads. All threads of the block take
/// part.
template <class Value>
__device__ __forceinline__ void reduce_threads(Value& mine, Value* shared, u32 threads, u32 width) {
  ROLLED for (u32 distance = threads / 2; distance >= width; distance /= 2) {
    Value other;
    if (distance >= WARP_THREADS) {
      __syncthreads();  // what was there before has been read
      if (threadIdx.x >= distance && threadIdx.x < 2 * distance) shared[threadIdx.x - distance] = mine;
      __syncthreads();
      if (threadIdx.x < distance) other = shared[threadIdx.x];
    } else {
      other = mine.from_lane(distance);
    }
    if (threadIdx.x < distance) mine.merge(other);
  }
}

/// The block's channels as its threads finish them: neighbouring threads have neighbouring channels.
struct Finisher {
  u32 width;    // channels, a power of two
  u32 channel;  // this thread's
  u32 lane;     // which of the threads that share the channel
  u32 lanes;
  bool inside;

  __device__ __forceinline__ Finisher(const Layout& layout, u32 tile, int channels_of_column)
      : width(layout.width() * channels_of_column),
        channel(tile * width + (threadIdx.x & (width - 1))),
        lane(threadIdx.x / width),
        lanes(blockDim.x / width),
        inside(channel < layout.channels) {}
};

/// This thread's share of what `count` blocks from `first` on have stored for its channel, each about `span` elements of
/// it, `elements` in all.
template <class Total, class A>
__device__ __forceinline__ Total merge_stored(const Layout& layout, const Finisher& at, const A* stored, u32 first,
                                              u32 count, u64 span, u64 elements) {
  Total total{};
  const u32 end = at.inside ? first + count : 0;
  A next[Total::ROWS];
  const auto load = [&](u32 from) {
    for (int row = 0; from < end && row < Total::ROWS; row++) {
      next[row] = stored[(static_cast<u64>(from) * Total::ROWS + row) * layout.channels + at.channel];
    }
  };
  load(first + at.lane);
  ROLLED for (u32 i = first + at.lane; i < end; i += at.lanes) {
    Total other;
    for (int row = 0; row < Total::ROWS; row++) other.rows[row][0] = static_cast<double>(next[row]);
    other.set_count(lesser(span, elements - i * span));
    load(i + at.lanes);  // takes longer than a merge
    total.merge(other);
  }
  return total;
}

/// Reduces over the `count` blocks from `first` on that have stored something: as merge_stored, in the threads below
/// at.width.
template <class Total, class A>
__device__ __forceinline__ Total reduce_stored(const Layout& layout, const Finisher& at, Total* shared, const A* stored,
                                               u32 first, u32 count, u64 span, u64 elements) {
  Total total = merge_stored<Total>(layout, at, stored, first, count, span, elements);
  u32 threads = blockDim.x;
  while (threads / 2 >= count * at.width) threads /= 2;  // the others have nothing
  reduce_threads(total, shared, threads, at.width);
  return total;
}

/// Reduces `mine` over the lanes and parts of the column and calls finish(channel, total), once for each channel, in a
/// thread of one block. CHANNELS is that of the vectors and `per_value` the elements of a channel in each. `memory` is
/// what Plan::scratch makes: doubles of the groups, if there are several, and then the parts' numbers. All threads of
/// the block take part.
template <int CHANNELS, class A, class Value, class Finish>
__device__ __forceinline__ void reduce_column(Value& mine, const Layout& layout, const Place& place, void* memory,
                                              u32* counters, u32 per_value, const Finish& finish) {
  using Total = typename Value::Total;
  constexpr int ROWS = Value::ROWS;
  constexpr u64 SHARED = greater(BLOCK_THREADS / 2 * greater(sizeof(Value), sizeof(Total)), BLOCK_CHANNELS * sizeof(Total));
  __shared__ u64 shared[SHARED / sizeof(u64)];
  Total* totals = reinterpret_cast<Total*>(shared);
  reduce_threads(mine, reinterpret_cast<Value*>(shared), blockDim.x, layout.width());
  const Finisher at(layout, place.tile, CHANNELS);
  const bool leads = place.inside && place.lane == 0;
  Total total;
  if (layout.parts == 1) {
    total = mine.total(0);
    if (CHANNELS > 1) {
      __syncthreads();  // the lanes have read it
      for (int c = 0; leads && c < CHANNELS; c++) totals[threadIdx.x * CHANNELS + c] = mine.total(c);
      __syncthreads();
      if (threadIdx.x < at.width && at.inside) total = totals[threadIdx.x];
    }
  } else {
    const u32 groups = (layout.parts + layout.group - 1) / layout.group, group = place.part / layout.group;
    const u32 first = group * layout.group, count = lesser(layout.group, layout.parts - first);
    double* of_groups = static_cast<double*>(memory);
    A* of_parts = reinterpret_cast<A*>(of_groups + (groups > 1 ? static_cast<u64>(groups) * ROWS * layout.channels : 0));
    for (int row = 0; leads && row < ROWS; row++) {
      Vector<A, CHANNELS> numbers;
      for (int c = 0; c < CHANNELS; c++) numbers.at[c] = mine.rows[row][c];
      const u64 to = (static_cast<u64>(place.part) * ROWS + row) * layout.channels + place.column * CHANNELS;
      store_vector(of_parts + to, numbers);
    }
    counters += place.tile * (groups + 1);
    if (!last_to_arrive(counters + group, count)) return;
    const u64 span = layout.chunk * per_value, elements = layout.values * per_value;
    total = reduce_stored(layout, at, totals, of_parts, first, count, span, elements);
    if (groups > 1) {
      for (int row = 0; threadIdx.x < at.width && at.inside && row < ROWS; row++) {
        of_groups[(static_cast<u64>(group) * ROWS + row) * layout.channels + at.channel] = total.rows[row][0];
      }
      if (!last_to_arrive(counters + groups, groups)) return;
      total = reduce_stored(layout, at, totals, of_groups, 0, groups, span * layout.group, elements);
    }
  }
  if (threadIdx.x < at.width && at.inside) finish(at.channel, total);
}

}  // namespace batch_norm
