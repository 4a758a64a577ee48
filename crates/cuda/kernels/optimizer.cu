// The updates of torch.optim.SGD and torch.optim.AdamW, in the element type of the parameters.

#include "indexing.cuh"

struct SgdStepParams {
  void* parameter;
  const void* gradient;
  void* momentum_buffer;  // or null
  u64 len;
  double lr, momentum, kept, weight_decay;  // kept: share of the gradient that goes into the momentum buffer
  u32 nesterov, first;
};

template <class T> __device__ __forceinline__ void sgd_step(const SgdStepParams& p) {
  T* parameter = static_cast<T*>(p.parameter);
  const T* gradient = static_cast<const T*>(p.gradient);
  T* velocity = static_cast<T*>(p.momentum_buffer);
  const T lr = static_cast<T>(p.lr), momentum = static_cast<T>(p.momentum), kept = static_cast<T>(p.kept),
          decay = static_cast<T>(p.weight_decay);
  for_each(p.len, [&](u64 i) {
    const T value = parameter[i];
    T direction = gradient[i];
    // No weight decay must not turn an infinite parameter into NaN.
    if (p.weight_decay != 0) direction += decay * value;
    if (velocity != nullptr) {
      const T updated = p.first ? direction : momentum * velocity[i] + kept * direction;
      velocity[i] = updated;
      direction = p.nesterov ? direction + momentum * updated : updated;
    }
    parameter[i] = value - lr * direction;
  });
}

KERNEL(sgd_step_f32, SgdStepParams, 256, sgd_step<float>(p))
KERNEL(sgd_step_f64, SgdStepParams, 256, sgd_step<double>(p))

/// What AdamW's element update needs of one step.
struct AdamWCoefficients {
  double step_size, root_correction;  // lr / (1 − β1ᵗ), √(1 − β2ᵗ)
};

struct AdamWParams {
  void* parameter;
  const void* gradient;
  void* first_moment;
  void* second_moment;
  u64 len;
  double shrink;             // 1 − lr · weight decay
  double beta1, beta2, eps;
};

/// Loshchilov, Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2, with PyTorch's order of operations.
template <class T> __device__ __forceinline__ void adamw(const AdamWParams& p, const AdamWCoefficients& step) {
  T* parameter = static_cast<T*>(p.parameter);
  const T* gradient = static_cast<const T*>(p.gradient);
  T* first_moment = static_cast<T*>(p.first_moment);
  T* second_moment = static_cast<T*>(p.second_moment);
  const T step_size = static_cast<T>(step.step_size), root_correction = static_cast<T>(step.root_correction);
  const T shrink = static_cast<T>(p.shrink), eps = static_cast<T>(p.eps);
  const T new1 = static_cast<T>(1 - p.beta1), beta2 = static_cast<T>(p.beta2), new2 = static_cast<T>(1 - p.beta2);
  for_each(p.len, [&](u64 i) {
    const T g = gradient[i];
    const T m = first_moment[i] + new1 * (g - first_moment[i]);
    const T v = beta2 * second_moment[i] + new2 * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    parameter[i] = shrink * parameter[i] - step_size * (m / (square_root(v) / root_correction + eps));
  });
}

struct AdamWStepParams {
  AdamWParams update;
  AdamWCoefficients step;
};

KERNEL(adamw_step_f32, AdamWStepParams, 256, adamw<float>(p.update, p.step))
KERNEL(adamw_step_f64, AdamWStepParams, 256, adamw<double>(p.update, p.step))

struct AdamWStepCountedParams {
  AdamWParams update;
  const i64* step;  // number of this step, from 1
  double lr;
};

/// The same with the number of the step in device memory, so that a replayed graph counts on.
template <class T> __device__ __forceinline__ void adamw_counted(const AdamWStepCountedParams& p) {
  __shared__ AdamWCoefficients coefficients;
  if (threadIdx.x == 0) {
    const double step = static_cast<double>(*p.step);
    coefficients.step_size = p.lr / (1 - pow(p.update.beta1, step));
    coefficients.root_correction = sqrt(1 - pow(p.update.beta2, step));
  }
  __syncthreads();
  adamw<T>(p.update, coefficients);
}

KERNEL(adamw_step_counted_f32, AdamWStepCountedParams, 256, adamw_counted<float>(p))
KERNEL(adamw_step_counted_f64, AdamWStepCountedParams, 256, adamw_counted<double>(p))
