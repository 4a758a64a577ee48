// dx = weight·invstd·(dy − Σdy/n − (x − mean)·invstd²·Σdy·(x − mean)/n), or weight·invstd·dy where the statistics were
// constants.
#pragma once

#include "batch_norm_cursor.cuh"
#include "batch_norm_slot.cuh"

namespace batch_norm {

template <class T> struct BackwardApplyParams {
  const T* input;
  const T* grad_output;
  T* grad_input;
  const u64* kept;     // slot (count, mean, invstd); the count is that of the group
  const double* sums;  // the group's two rows, or null for constants
  const void* weight;  // or null
  u32 weight_dtype;
  u32 unused;
  Layout layout;
};

/// The formula for one channel: dx = scale·(dy − mean_dy − (x − mean)·slope). What A cannot hold of the mean is in
/// mean_dy.
template <class A> struct Gradient {
  A mean;
  A scale;
  A mean_dy;
  A slope;
};

template <class T>
__device__ __forceinline__ Gradient<Accumulate<T>> gradient(const BackwardApplyParams<T>& p, u64 channel) {
  using A = Accumulate<T>;
  // All that is read, before any of it is needed.
  const SlotEntry kept = load_entry(p.kept, p.layout.channels, channel);
  const double weight = load_or<double>(p.weight, p.weight_dtype, channel, 1.0);
  const double sum_dy = p.sums == nullptr ? 0.0 : p.sums[channel];
  const double sum_dy_xmu = p.sums == nullptr ? 0.0 : p.sums[p.layout.channels + channel];
  const double invstd = kept.second;
  const SplitMean<A> split(kept.mean);
  const A scale = static_cast<A>(invstd * weight);
  if (p.sums == nullptr) return {split.near, scale, A(0), A(0)};
  if (kept.count == 0) return {split.near, A(0), A(0), A(0)};  // statistics of nothing move with nothing
  const double per_value = 1.0 / static_cast<double>(kept.count);
  const double slope = sum_dy_xmu * per_value * invstd * invstd;
  const double mean_dy = split.take_rest(sum_dy * per_value, slope);
  return {split.near, scale, static_cast<A>(mean_dy), static_cast<A>(slope)};
}

/// All of the block's elements; without BATCH_STATISTICS x is not read.
template <bool BATCH_STATISTICS, class T, int V, int CHANNELS>
__device__ __forceinline__ void apply(const BackwardApplyParams<T>& p, Gradient<Accumulate<T>>* of_columns) {
  using A = Accumulate<T>;
  constexpr int U = UNROLL<V * sizeof(T)> / 2;  // two tensors
  const Place place(p.layout, true);
  Walk<V, CHANNELS, U, CHANNELS == 1 && U <= 4> walk(Cursor<CHANNELS>(p.layout, place));
  Vector<T, V> x[U], dy[U];
  u32 index = place.lane, valid;
  const auto load = [&]() {
    valid = values_left<U>(index, place, p.layout.lanes);
    for_valid<U>(valid, [&](int j) {
      const u64 offset = walk.load(p.layout, j);
      if (BATCH_STATISTICS) x[j] = load_vector_once<V>(p.input + offset);
      dy[j] = load_vector_once<V>(p.grad_output + offset);
    });
  };
  load();  // before the formulas, which it does not need
  for_block_channels<CHANNELS>(p.layout, place.tile, [&](u64 channel, u32 i) { of_columns[i] = gradient(p, channel); });
  Gradient<A> gradients[CHANNELS];
  for (int c = 0; c < CHANNELS; c++) gradients[c] = of_columns[place.block_column(p.layout) * CHANNELS + c];
  ROLLED for (; valid > 0; load()) {
    for (int j = 0; j < U; j++) {
      for (int v = 0; v < V; v++) {
        const Gradient<A>& of = gradients[CHANNELS == 1 ? 0 : v];
        A value = to_accumulate(dy[j].at[v]);
        if (BATCH_STATISTICS) value = value - of.mean_dy - (to_accumulate(x[j].at[v]) - of.mean) * of.slope;
        dy[j].at[v] = from_accumulate<T>(of.scale * value);
      }
    }
    for_valid<U>(valid, [&](int j) { store_vector(p.grad_input + walk.store(p.layout, j), dy[j]); });
    index += U * p.layout.lanes;
  }
}

template <class T, int V, int CHANNELS>
__device__ __forceinline__ void backward_apply(const BackwardApplyParams<T>& p) {
  __shared__ Gradient<Accumulate<T>> of_columns[BLOCK_CHANNELS];
  if (p.sums != nullptr) {
    apply<true, T, V, CHANNELS>(p, of_columns);
  } else {
    apply<false, T, V, CHANNELS>(p, of_columns);
  }
}

}  // namespace batch_norm
