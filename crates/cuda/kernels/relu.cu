// max(x, 0), where NaN stays NaN, and its gradient: dy where the output is above 0 or NaN.

#include "elementwise.cuh"

struct ReluParams {
  const void* input;
  void* output;
  u64 len;
};

template <class T> __device__ __forceinline__ void relu(const ReluParams& p) {
  using A = Accumulate<T>;
  map(static_cast<const T*>(p.input), static_cast<T*>(p.output), p.len, [](A x) { return x <= A(0) ? A(0) : x; });
}

struct ReluBackwardParams {
  const void* grad_output;
  const void* output;  // of the forward; it is positive exactly where the input was
  void* grad_input;
  u64 len;
};

template <class T> __device__ __forceinline__ void relu_backward(const ReluBackwardParams& p) {
  using A = Accumulate<T>;
  map(static_cast<const T*>(p.grad_output), static_cast<const T*>(p.output), static_cast<T*>(p.grad_input), p.len,
      [](A dy, A y) { return y <= A(0) ? A(0) : dy; });
}

#define RELU(dtype, T)                                  \
  KERNEL(relu_##dtype, ReluParams, 256, relu<T>(p))     \
  KERNEL(relu_backward_##dtype, ReluBackwardParams, 256, relu_backward<T>(p))
RELU(f32, float)
RELU(f64, double)
RELU(f16, __half)
RELU(bf16, __nv_bfloat16)
