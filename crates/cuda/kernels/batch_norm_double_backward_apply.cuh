// The gradients of the gradient, to x, dy and the weight.
#pragma once

#include "batch_norm_double_backward.cuh"

namespace batch_norm {

template <class T> struct DoubleBackwardApplyParams {
  DoubleBackwardInputs<T> inputs;
  const void* grad_grad_bias;  // u, or null for 0
  const double* sums;          // the group's, or null for statistics that were constants
  const double* local_sums;    // LOCAL_ROWS
  T* grad_input;
  T* grad_grad_output;
  void* grad_weight;  // or null
  u32 grad_grad_bias_dtype;
  u32 grad_weight_dtype;
};

/// The formulas for one channel, in the names of docs/numerics.md.
template <class A> struct Formula {
  A s, weight, v, u;
  A a, b, gm, d, mean_h, mean_h_xh;
  A t;  // T·s²/M

  __device__ __forceinline__ A to_dy(const Element<A>& element) const {
    const A xh = element.xmu * s;
    return s * (weight * element.g - gm - xh * d) + v * xh + u;
  }

  __device__ __forceinline__ A to_x(const Element<A>& element) const {
    const A xh = element.xmu * s;
    const A h = v * element.dy - s * (d * element.dy + b * weight * element.g);
    return s * (h - mean_h - xh * mean_h_xh) - t * xh;
  }

  __device__ __forceinline__ A to_weight(A g, A g_xmu, A g_dy) const { return s * (g_dy - a * g - b * s * g_xmu); }

  /// Every number rounded to To.
  template <class To> __device__ __forceinline__ Formula<To> to() const {
    const auto r = [](A value) { return static_cast<To>(value); };
    return {r(s), r(weight), r(v), r(u), r(a), r(b), r(gm), r(d), r(mean_h), r(mean_h_xh), r(t)};
  }
};

template <class T>
__device__ __forceinline__ Formula<double> formula(const DoubleBackwardApplyParams<T>& p, u64 channel) {
  const DoubleBackwardInputs<T>& inputs = p.inputs;
  const u64 channels = inputs.layout.channels;
  const SlotEntry kept = load_entry(inputs.kept, inputs.layout.channels, channel);
  Formula<double> f{};
  f.s = kept.second;
  f.weight = load_or<double>(inputs.weight, inputs.weight_dtype, channel, 1.0);
  f.v = load_or<double>(inputs.grad_grad_weight, inputs.grad_grad_weight_dtype, channel, 0.0);
  f.u = load_or<double>(p.grad_grad_bias, p.grad_grad_bias_dtype, channel, 0.0);
  if (p.sums == nullptr || kept.count == 0) return f;
  const double per_value = 1.0 / static_cast<double>(kept.count);
  const auto mean_of = [&](int row) { return p.sums[row * channels + channel] * per_value; };
  f.a = mean_of(0);
  f.b = f.s * mean_of(1);
  f.gm = mean_of(2);
  f.d = f.s * mean_of(3);
  f.mean_h = mean_of(5) - f.s * (f.d * f.a + f.b * f.gm);
  f.mean_h_xh = f.s * mean_of(6) - 2.0 * f.s * f.b * f.d;
  f.t = (mean_of(4) - f.gm * f.a - f.b * f.d) * f.s * f.s;
  return f;
}

template <class T>
__device__ __forceinline__ void double_backward_apply(const DoubleBackwardApplyParams<T>& p) {
  using A = Accumulate<T>;
  __shared__ Formula<A> formulas[BLOCK_CHANNELS];
  const Layout& layout = p.inputs.layout;
  for_block_channels<1>(layout, block_tile(true), [&](u64 channel, u32 i) {
    const Formula<double> exact = formula(p, channel);
    formulas[i] = exact.template to<A>();
    if (!block_is_early() || p.grad_weight == nullptr) return;
    const double* local = p.local_sums + channel;
    const u64 channels = layout.channels;
    const double grad_weight = exact.to_weight(local[0], local[channels], local[2 * channels]);
    store_as<double>(p.grad_weight, p.grad_weight_dtype, channel, grad_weight);
  });
  const Place place(layout, true);
  if (!place.inside) return;
  const Formula<A> of = formulas[place.block_column(layout)];
  const SplitMean<A> mean(load_entry(p.inputs.kept, layout.channels, place.column).mean);
  Cursor<1> cursor(layout, place);
  for (u32 index = place.lane; index < place.length; index += layout.lanes) {
    const u64 offset = cursor.next(layout);
    const Element<A> element = load_element(p.inputs, offset, mean);
    p.grad_input[offset] = from_accumulate<T>(of.to_x(element));
    p.grad_grad_output[offset] = from_accumulate<T>(of.to_dy(element));
  }
}

}  // namespace batch_norm
