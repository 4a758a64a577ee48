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

  /// Whether the thread has the total in the end.
  __device__ __forceinline__ bool finishes() const { return inside && threadIdx.x < width; }
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

/// Gives the threads below at.width the totals of the lanes' leaders, where one of these has several channels.
template <int CHANNELS, class Value>
__device__ __forceinline__ typename Value::Total share_out(const Value& mine, const Finisher& at, bool leads,
                                                           typename Value::Total* shared) {
  if constexpr (CHANNELS == 1) return mine.total(0);
  __syncthreads();  // what was there before has been read
  for (int c = 0; leads && c < CHANNELS; c++) shared[threadIdx.x * CHANNELS + c] = mine.total(c);
  __syncthreads();
  return at.finishes() ? shared[threadIdx.x] : typename Value::Total{};
}

/// Writes the part's numbers, those of a column in one thread.
template <int CHANNELS, class Value, class A>
__device__ __forceinline__ void store_part(const Value& mine, const Layout& layout, const Place& place, A* of_parts) {
  for (int row = 0; row < Value::ROWS; row++) {
    Vector<A, CHANNELS> numbers;
    for (int c = 0; c < CHANNELS; c++) numbers.at[c] = mine.rows[row][c];
    const u64 to = (static_cast<u64>(place.part) * Value::ROWS + row) * layout.channels + place.column * CHANNELS;
    store_vector(of_parts + to, numbers);
  }
}

/// Brings the parts together once this one is stored: whether this block is the last of all, which has the `total`.
template <class Total, class A>
__device__ __forceinline__ bool meet(const Layout& layout, const Place& place, const Finisher& at, double* of_groups,
                                     const A* of_parts, u32* counters, u32 per_value, Total* shared, Total& total) {
  const u32 groups = layout.groups(), group = place.part / layout.group;
  const u32 first = group * layout.group, count = lesser(layout.group, layout.parts - first);
  const u64 span = layout.chunk * per_value, elements = layout.values * per_value;
  counters += place.tile * (groups + 1);
  if (!last_to_arrive(counters + group, count)) return false;
  total = reduce_stored(layout, at, shared, of_parts, first, count, span, elements);
  if (groups == 1) return true;
  for (int row = 0; at.finishes() && row < Total::ROWS; row++) {
    of_groups[(static_cast<u64>(group) * Total::ROWS + row) * layout.channels + at.channel] = total.rows[row][0];
  }
  if (!last_to_arrive(counters + groups, groups)) return false;
  total = reduce_stored(layout, at, shared, of_groups, 0, groups, span * layout.group, elements);
  return true;
}

/// Reduces `mine` over the lanes and parts of the column and calls finish(channel, total), once for each channel, in a
/// thread of one block. CHANNELS is that of the vectors and `per_value` the elements of a channel in each. `memory` is
/// what Plan::scratch makes: doubles of the groups, if there are several, and then the parts' numbers. All threads of
/// the block take part.
template <int CHANNELS, class A, class Value, class Finish>
__device__ __forceinline__ void reduce_column(Value& mine, const Layout& layout, const Place& place, void* memory,
                                              u32* counters, u32 per_value, const Finish& finish) {
  using Total = typename Value::Total;
  constexpr auto OF_THREADS = BLOCK_THREADS / 2 * greater(sizeof(Value), sizeof(Total));
  __shared__ u64 shared[greater(OF_THREADS, BLOCK_CHANNELS * sizeof(Total)) / sizeof(u64)];
  Total* totals = reinterpret_cast<Total*>(shared);
  reduce_threads(mine, reinterpret_cast<Value*>(shared), blockDim.x, layout.width());
  const Finisher at(layout, place.tile, CHANNELS);
  const bool leads = place.inside && place.lane == 0;
  Total total;
  if (layout.parts == 1) {
    total = share_out<CHANNELS>(mine, at, leads, totals);
  } else {
    const u64 groups = layout.groups();
    double* of_groups = static_cast<double*>(memory);
    A* of_parts = reinterpret_cast<A*>(of_groups + (groups > 1 ? groups * Value::ROWS * layout.channels : 0));
    if (leads) store_part<CHANNELS>(mine, layout, place, of_parts);
    if (!meet(layout, place, at, of_groups, of_parts, counters, per_value, totals, total)) return;
  }
  if (at.finishes()) finish(at.channel, total);
}

}  // namespace batch_norm
