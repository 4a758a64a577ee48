// The gradients of the gradients of batch norm: what both kernels read. Formulas in docs/numerics.md; with M the
// group's count, s = invstd, xmu = x − mean and G the gradient that arrives at dx.
#pragma once

#include "batch_norm_cursor.cuh"
#include "batch_norm_slot.cuh"

namespace batch_norm {

/// Rows of sums over the group: Σdy, Σdy·xmu, w·ΣG, w·ΣG·xmu, w·ΣG·dy, v·Σdy, v·Σdy·xmu.
constexpr int GROUP_ROWS = 7;

/// Rows of sums that stay local: ΣG, ΣG·xmu, ΣG·dy.
constexpr int LOCAL_ROWS = 3;

template <class T> struct DoubleBackwardInputs {
  const T* input;
  const T* grad_output;
  const T* grad_grad_input;      // G
  const void* grad_grad_weight;  // v, or null for 0
  const void* weight;            // w, or null for 1
  const u64* kept;               // slot (count, mean, invstd)
  u32 grad_grad_weight_dtype;
  u32 weight_dtype;
  Layout layout;
};

/// One element of each tensor, x without the mean.
template <class A> struct Element {
  A xmu;
  A dy;
  A g;
};

template <class T>
__device__ __forceinline__ Element<Accumulate<T>> load_element(const DoubleBackwardInputs<T>& inputs, u64 offset,
                                                               const SplitMean<Accumulate<T>>& mean) {
  const Accumulate<T> xmu = to_accumulate(inputs.input[offset]) - mean.near - static_cast<Accumulate<T>>(mean.rest);
  return {xmu, to_accumulate(inputs.grad_output[offset]),
          to_accumulate(inputs.grad_grad_input[offset])};
}

}  // namespace batch_norm
