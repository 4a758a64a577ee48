// softmax and its logarithm along one dimension, and their gradients from the output.
//
// The maximum is subtracted first, so nothing overflows; sums and quotients are made in double, exponentials in the
// element type.

#include "lanes.cuh"

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

struct SoftmaxParams {
  const void* input;
  void* output;
  Along along;
  u32 lanes, adjacent;
  u32 logarithm, unused;
};

template <class T> __device__ __forceinline__ void softmax(const SoftmaxParams& p) {
  const T* input = static_cast<const T*>(p.input);
  T* output = static_cast<T*>(p.output);
  const Lanes lanes(p.lanes, p.adjacent != 0);
  const u64 step = p.along.step();
  lanes.for_each_line(p.along.lines(), [&](u64 line) {
    // Lines beyond the last repeat it up to the writing.
    const bool inside = line < p.along.lines();
    const u64 start = p.along.start(inside ? line : p.along.lines() - 1);
    // NaN is passed over here and met again in the sum.
    T max = input[start];
    for (u64 k = lanes.lane; k < p.along.size; k += lanes.lanes) {
      const T value = input[start + k * step];
      if (value > max || !(max == max)) max = value;
    }
    max = lanes.reduce(max, [](T a, T b) { return b > a || !(a == a) ? b : a; });
    double total = 0;
    for (u64 k = lanes.lane; k < p.along.size; k += lanes.lanes) total += exponential(input[start + k * step] - max);
    total = lanes.reduce(total, [](double a, double b) { return a + b; });
    if (!inside) return;
    const double shift = p.logarithm ? log(total) : 0;
    for (u64 k = lanes.lane; k < p.along.size; k += lanes.lanes) {
      const T x = input[start + k * step];
      output[start + k * step] = p.logarithm
                                     ? static_cast<T>(static_cast<double>(x) - static_cast<double>(max) - shift)
                                     : static_cast<T>(exponential(x - max) / total);
    }
  });
}

struct SoftmaxBackwardParams {
  const void* grad_output;
  const void* output;  // of the forward
  void* grad_input;
  Along along;
  u32 lanes, adjacent;
  u32 logarithm, unused;
};

/// dx = y·(dy − Σ dy·y), or dy − eʸ·Σ dy for the logarithm.
template <class T> __device__ __forceinline__ void softmax_backward(const SoftmaxBackwardParams& p) {
  const T* grad_output = static_cast<const T*>(p.grad_output);
  const T* output = static_cast<const T*>(p.output);
  T* grad_input = static_cast<T*>(p.grad_input);
  const Lanes lanes(p.lanes, p.adjacent != 0);
  const u64 step = p.along.step();
  lanes.for_each_line(p.along.lines(), [&](u64 line) {
    const bool inside = line < p.along.lines();
    const u64 start = p.along.start(inside ? line : p.along.lines() - 1);
    double total = 0;
    for (u64 k = lanes.lane; k < p.along.size; k += lanes.lanes) {
      const double dy = grad_output[start + k * step];
      total += p.logarithm ? dy : dy * output[start + k * step];
    }
    total = lanes.reduce(total, [](double a, double b) { return a + b; });
    if (!inside) return;
    for (u64 k = lanes.lane; k < p.along.size; k += lanes.lanes) {
      const u64 i = start + k * step;
      const double dy = grad_output[i];
      const T y = output[i];
      grad_input[i] = static_cast<T>(p.logarithm ? dy - exponential(y) * total : y * (dy - total));
    }
  });
}

#define SOFTMAX(dtype, T)                                       \
  KERNEL(softmax_##dtype, SoftmaxParams, 256, softmax<T>(p))    \
  KERNEL(softmax_backward_##dtype, SoftmaxBackwardParams, 256, softmax_backward<T>(p))
SOFTMAX(f32, float)
SOFTMAX(f64, double)
