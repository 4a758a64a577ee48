// This rank's Σdy and Σdy·(x − mean) of every channel, and the gradients of weight and bias, which are these sums.
#pragma once

#include "batch_norm_cursor.cuh"
#include "batch_norm_reduce.cuh"
#include "batch_norm_slot.cuh"
#include "batch_norm_sums.cuh"

namespace batch_norm {

template <class T> struct BackwardReduceParams {
  const T* input;
  const T* grad_output;
  const u64* kept;         // slot (count, mean, invstd)
  double* sums;            // two rows
  void* grad_weight;       // or null
  void* grad_bias;         // or null
  void* memory;            // of reduce_column
  u32* counters;
  u32 grad_weight_dtype;
  u32 grad_bias_dtype;
  Layout layout;
};

/// Σdy and Σdy·(x − mean) about the nearest Accumulate<T> to the mean.
template <class T, int V, int CHANNELS>
__device__ __forceinline__ Sums<Accumulate<T>, 2, CHANNELS> thread_sums(const BackwardReduceParams<T>& p,
                                                                        const Place& place) {
  using A = Accumulate<T>;
  constexpr int U = UNROLL<V * sizeof(T)> / 2;  // two tensors
  constexpr int PER = V / CHANNELS;
  Sums<A, 2, CHANNELS> mine{};
  Cursor<CHANNELS> cursor(p.layout, place);
  Vector<T, V> x[U], dy[U];
  u32 index = place.lane, valid;
  const auto load = [&]() {
    valid = values_left<U>(index, place, p.layout.lanes);
    if (valid < U) {
      for (int j = 0; j < U; j++) x[j] = dy[j] = Vector<T, V>{};
    }
    for_valid<U>(valid, [&](int j) {
      const u64 offset = cursor.next(p.layout) * V;
      x[j] = load_vector<V>(p.input + offset);
      dy[j] = load_vector<V>(p.grad_output + offset);
    });
  };
  load();  // before the means, which it does not need
  A mean[CHANNELS];
  for (int c = 0; c < CHANNELS; c++) {
    mean[c] = SplitMean<A>(load_entry(p.kept, p.layout.channels, place.column * CHANNELS + c).mean).near;
  }
  ROLLED for (; valid > 0; load()) {
    for (int c = 0; c < CHANNELS; c++) {
      const auto grad = [&](int k) { return to_accumulate(dy[k / PER].at[c * PER + k % PER]); };
      const auto centred = [&](int k) { return to_accumulate(x[k / PER].at[c * PER + k % PER]) - mean[c]; };
      mine.rows[0][c] += tree_sum<0, U * PER>(grad);
      mine.rows[1][c] += tree_sum<0, U * PER>([&](int k) { return grad(k) * centred(k); });
    }
    index += U * p.layout.lanes;
  }
  return mine;
}

template <class T, int V, int CHANNELS>
__device__ __forceinline__ void backward_reduce(const BackwardReduceParams<T>& p) {
  using A = Accumulate<T>;
  const Place place(p.layout, false);
  Sums<A, 2, CHANNELS> mine{};
  if (place.inside) mine = thread_sums<T, V, CHANNELS>(p, place);
  const auto finish = [&](u64 channel, const Sums<double, 2, 1>& total) {
    const SlotEntry kept = load_entry(p.kept, p.layout.channels, channel);
    const double dy = total.rows[0][0], dy_xmu = SplitMean<A>(kept.mean).take_rest(total.rows[1][0], dy);
    p.sums[channel] = dy;
    p.sums[p.layout.channels + channel] = dy_xmu;
    if (p.grad_weight != nullptr) {
      store_as<double>(p.grad_weight, p.grad_weight_dtype, channel, dy_xmu * kept.second);
    }
    if (p.grad_bias != nullptr) store_as<double>(p.grad_bias, p.grad_bias_dtype, channel, dy);
  };
  reduce_column<CHANNELS, A>(mine, p.layout, place, p.memory, p.counters, V / CHANNELS, finish);
}

}  // namespace batch_norm
