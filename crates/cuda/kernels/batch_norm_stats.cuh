// This rank's (count, mean, M2) of every channel, written straight into its slot of the message.
//
// A sum of squares minus a squared sum loses everything when the mean is far above the deviation. So each thread takes
// the moments of the handful of values it holds in registers, about their own mean, and merges them into its own.
#pragma once

#include "batch_norm_cursor.cuh"
#include "batch_norm_moments.cuh"
#include "batch_norm_reduce.cuh"

namespace batch_norm {

template <class T> struct StatsParams {
  const T* input;
  u64* slot;  // count, mean[channels], M2[channels]
  void* memory;  // of reduce_column
  u32* counters;
  u64 count;
  Layout layout;
};

/// Moments of those x[k] whose k / PER < valid, all of them if FULL; the others are 0. About the values' rounded mean,
/// which leaves small numbers, whose own mean is what the rounding took.
template <int K, int PER, bool FULL, class A>
__device__ __forceinline__ Spread<A> tile_moments(const A (&x)[K], u32 valid) {
  const A inverse = A(1) / (FULL ? A(K) : static_cast<A>(valid * PER));
  const A pivot = tree_sum<0, K>([&](int k) { return x[k] * inverse; });
  const auto deviation = [&](int k) { return FULL || k / PER < static_cast<int>(valid) ? x[k] - pivot : A(0); };
  const A sum = tree_sum<0, K>(deviation);
  const A squares = tree_sum<0, K>([&](int k) { return deviation(k) * deviation(k); });
  Spread<A> spread{pivot, A(0), greater(squares - sum * sum * inverse, A(0))};
  spread.move_mean(product(sum, inverse));  // which is exact only in what it is given
  return spread;
}

/// Takes `valid` vectors into the thread's moments.
template <bool FULL, class T, int V, int CHANNELS, int U>
__device__ __forceinline__ void take(Moments<Accumulate<T>, CHANNELS>& mine, u32& count,
                                     const Vector<T, V> (&loaded)[U], u32 valid) {
  using A = Accumulate<T>;
  constexpr int PER = V / CHANNELS;
  const MergeWeights<A> weights(static_cast<A>(count), static_cast<A>(valid * PER));
  for (int c = 0; c < CHANNELS; c++) {
    A x[U * PER];
    for (int k = 0; k < U * PER; k++) x[k] = to_accumulate(loaded[k / PER].at[c * PER + k % PER]);
    const Spread<A> tile = tile_moments<U * PER, PER, FULL>(x, valid);
    Spread<A> spread = mine.get(c);
    if (count == 0) {
      spread = tile;
    } else {
      spread.merge(tile, weights);
    }
    mine.set(c, spread);
  }
  count += valid * PER;
}

template <class T, int V, int CHANNELS>
__device__ __forceinline__ Moments<Accumulate<T>, CHANNELS> thread_moments(const StatsParams<T>& p,
                                                                           const Place& place) {
  constexpr int U = UNROLL<V * sizeof(T)>;
  const u32 lanes = p.layout.lanes;
  Moments<Accumulate<T>, CHANNELS> mine{};
  u32 count = 0;
  Cursor<CHANNELS> cursor(p.layout, place);
  ROLLED for (u32 index = place.lane; index < place.length; index += U * lanes) {
    Vector<T, V> loaded[U];
    const u32 valid = values_left<U>(index, place, lanes);
    if (valid == U) {
      for (int j = 0; j < U; j++) loaded[j] = load_vector<V>(p.input + cursor.next(p.layout) * V);
      take<true>(mine, count, loaded, U);
    } else {
      for (int j = 0; j < U; j++) {
        const u64 offset = cursor.next(p.layout) * V;
        loaded[j] = j < static_cast<int>(valid) ? load_vector<V>(p.input + offset) : Vector<T, V>{};
      }
      take<false>(mine, count, loaded, valid);
    }
  }
  mine.count = count;
  return mine;
}

template <class T, int V, int CHANNELS> __device__ __forceinline__ void stats(const StatsParams<T>& p) {
  using A = Accumulate<T>;
  const Place place(p.layout, false);
  if (place.tile == 0 && place.part == 0 && threadIdx.x == 0) p.slot[0] = p.count;
  Moments<A, CHANNELS> mine = thread_moments<T, V, CHANNELS>(p, place);
  const auto finish = [&](u64 channel, const Moments<double, 1>& total) {
    store_entry(p.slot, p.layout.channels, channel, total.rows[0][0] + total.rows[1][0], total.rows[2][0]);
  };
  reduce_column<CHANNELS, A>(mine, p.layout, place, p.memory, p.counters, V / CHANNELS, finish);
}

}  // namespace batch_norm
