// The sums the gradient of the gradient needs: seven rows for the group, three that stay local.
#pragma once

#include "batch_norm_double_backward.cuh"
#include "batch_norm_reduce.cuh"
#include "batch_norm_sums.cuh"

namespace batch_norm {

template <class T> struct DoubleBackwardReduceParams {
  DoubleBackwardInputs<T> inputs;
  double* sums;        // GROUP_ROWS
  double* local_sums;  // LOCAL_ROWS
  void* memory;        // of reduce_column
  u32* counters;
};

template <class T>
__device__ __forceinline__ void double_backward_reduce(const DoubleBackwardReduceParams<T>& p) {
  using A = Accumulate<T>;
  const Layout& layout = p.inputs.layout;
  const Place place(layout, false);
  Sums<A, 5, 1> mine{};  // Σdy, Σdy·xmu, ΣG, ΣG·xmu, ΣG·dy
  if (place.inside) {
    const SplitMean<A> mean(load_entry(p.inputs.kept, layout.channels, place.column).mean);
    Cursor<1> cursor(layout, place);
    for (u32 index = place.lane; index < place.length; index += layout.lanes) {
      const Element<A> of = load_element(p.inputs, cursor.next(layout), mean);
      const A terms[5] = {of.dy, of.dy * of.xmu, of.g, of.g * of.xmu, of.g * of.dy};
      for (int row = 0; row < 5; row++) mine.rows[row][0] += terms[row];
    }
  }
  const auto finish = [&](u64 channel, const Sums<double, 5, 1>& total) {
    const double weight = load_or<double>(p.inputs.weight, p.inputs.weight_dtype, channel, 1.0);
    const double ggw = load_or<double>(p.inputs.grad_grad_weight, p.inputs.grad_grad_weight_dtype, channel, 0.0);
    const double dy = total.rows[0][0], dy_xmu = total.rows[1][0];
    const double local[LOCAL_ROWS] = {total.rows[2][0], total.rows[3][0], total.rows[4][0]};
    const double group[GROUP_ROWS] = {dy,       dy_xmu,      weight * local[0], weight * local[1], weight * local[2],
                                      ggw * dy, ggw * dy_xmu};
    const u64 channels = layout.channels;
    for (int row = 0; row < GROUP_ROWS; row++) p.sums[row * channels + channel] = group[row];
    for (int row = 0; row < LOCAL_ROWS; row++) p.local_sums[row * channels + channel] = local[row];
  };
  reduce_column<1, A>(mine, layout, place, p.memory, p.counters, 1, finish);
}

}  // namespace batch_norm
