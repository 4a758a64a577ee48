// Cross entropy over int64 class indices: the loss from log-probabilities, and its gradient for the logits.
//
// A target that is neither a class nor the ignored index sets the status word, and its loss and gradient are NaN.

#include "indexing.cuh"

enum LossReductionCode : u32 { EACH = 0, SUM = 1, MEAN = 2 };

/// The class of a target, or one of these.
constexpr i64 IGNORED = -1, OUT_OF_RANGE = -2;

__device__ __forceinline__ i64 class_of(i64 target, i64 ignore_index, u64 classes, u32* status) {
  if (target == ignore_index) return IGNORED;
  if (target >= 0 && static_cast<u64>(target) < classes) return target;
  set_status(status, TARGET_OUT_OF_RANGE);
  return OUT_OF_RANGE;
}

__device__ __forceinline__ double not_a_number() { return bits_as<double>(0x7ff8000000000000ull); }

struct NllLossParams {
  const void* log_probs;
  const i64* targets;  // one for each line
  void* losses;        // one for each target, or one
  void* counted;       // one
  double* partial;     // [blocks][2]: their sums and counts
  u32* status;
  u32* counter;        // of blocks that are done
  i64 ignore_index;
  u32 reduction, unused;
  Along along;         // the class dimension
};

/// The last block to finish adds up what the others found, in their order.
template <class T> __device__ __forceinline__ void nll_loss(const NllLossParams& p) {
  const T* log_probs = static_cast<const T*>(p.log_probs);
  T* losses = static_cast<T*>(p.losses);
  double sums[2] = {0, 0};
  for_each(p.along.lines(), [&](u64 line) {
    const i64 chosen = class_of(p.targets[line], p.ignore_index, p.along.size, p.status);
    double loss = chosen == IGNORED ? 0.0 : not_a_number();
    if (chosen >= 0) loss = -static_cast<double>(log_probs[p.along.start(line) + chosen * p.along.step()]);
    if (p.reduction == EACH) losses[line] = static_cast<T>(loss);
    sums[0] += loss;
    sums[1] += chosen == IGNORED ? 0 : 1;
  });
  block_sum(sums);
  if (threadIdx.x == 0) {
    p.partial[2 * blockIdx.x] = sums[0];
    p.partial[2 * blockIdx.x + 1] = sums[1];
  }
  if (!last_to_arrive(p.counter, gridDim.x)) return;
  sums[0] = sums[1] = 0;
  for (u32 block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
    sums[0] += p.partial[2 * block];
    sums[1] += p.partial[2 * block + 1];
  }
  block_sum(sums);
  if (threadIdx.x != 0) return;
  *static_cast<T*>(p.counted) = static_cast<T>(sums[1]);
  if (p.reduction != EACH) losses[0] = static_cast<T>(p.reduction == MEAN ? sums[0] / sums[1] : sums[0]);
}

struct CrossEntropyBackwardParams {
  const void* grad_losses;  // one for each target, or one
  const void* log_probs;
  const i64* targets;
  const void* counted;      // one
  void* grad_logits;
  u32* status;
  i64 ignore_index;
  u32 reduction, unused;
  Along along;
  WideDivider size;         // along.size
};

__device__ __forceinline__ double exponential_minus(float x, bool one) { return one ? expm1f(x) : expf(x); }
__device__ __forceinline__ double exponential_minus(double x, bool one) { return one ? expm1(x) : exp(x); }

/// dlogits = (softmax − one-hot)·dloss, over the number of targets that count for the mean; 0 for ignored targets.
template <class T> __device__ __forceinline__ void cross_entropy_backward(const CrossEntropyBackwardParams& p) {
  const T* grad_losses = static_cast<const T*>(p.grad_losses);
  const T* log_probs = static_cast<const T*>(p.log_probs);
  T* grad_logits = static_cast<T*>(p.grad_logits);
  const double count = p.reduction == MEAN ? static_cast<double>(*static_cast<const T*>(p.counted)) : 1.0;
  for_each(p.along.lines() * p.along.size, [&](u64 i) {
    u64 rest = i;
    const u64 column = p.along.inner.split(rest), k = p.size.split(rest), line = rest * p.along.step() + column;
    const i64 chosen = class_of(p.targets[line], p.ignore_index, p.along.size, p.status);
    const double share = static_cast<double>(grad_losses[p.reduction == EACH ? line : 0]) / count;
    double gradient = chosen == IGNORED ? 0.0 : not_a_number();
    if (chosen >= 0) gradient = exponential_minus(log_probs[i], static_cast<u64>(chosen) == k) * share;
    grad_logits[i] = static_cast<T>(gradient);
  });
}

#define LOSS(dtype, T)                                           \
  KERNEL(nll_loss_##dtype, NllLossParams, 256, nll_loss<T>(p))   \
  KERNEL(cross_entropy_backward_##dtype, CrossEntropyBackwardParams, 256, cross_entropy_backward<T>(p))
LOSS(f32, float)
LOSS(f64, double)
