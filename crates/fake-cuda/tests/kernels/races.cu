// A right reduction and what becomes of it when one piece is left out.
#include "params.cuh"

/// Sums `value` over the threads of a block of 128; the result is right in thread 0.
template <bool SYNCHRONIZED>
__device__ float block_sum(float value) {
  __shared__ float warps[4];
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(0xFFFFFFFFu, value, distance);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  if (SYNCHRONIZED) __syncthreads();
  return threadIdx.x == 0 ? warps[0] + warps[1] + warps[2] + warps[3] : 0;
}

/// y[1 + block] = the block's sum of x; y[0] = the sum of all, by the block that finishes last. x begins with the
/// counter of finished blocks and a second unused element.
template <bool SYNCHRONIZED, bool FENCED>
__device__ void sum(const FakeTestParams& p) {
  __shared__ bool last;
  const unsigned i = blockIdx.x * 128 + threadIdx.x;
  const float total = block_sum<SYNCHRONIZED>(i < p.count ? p.x[i + 2] : 0);
  auto* finished = reinterpret_cast<unsigned*>(const_cast<float*>(p.x));
  if (threadIdx.x == 0) {
    p.y[1 + blockIdx.x] = total;
    if (FENCED) __threadfence();
    last = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  __threadfence();
  float all = 0;
  for (unsigned block = 0; block < gridDim.x; block++) all += p.y[1 + block];
  p.y[0] = all;
}

extern "C" __global__ void fake_test_sum(const FakeTestParams p) { sum<true, true>(p); }
SHIM_REGISTER(fake_test_sum, FakeTestParams);

extern "C" __global__ void fake_test_sum_without_sync(const FakeTestParams p) { sum<false, true>(p); }
SHIM_REGISTER(fake_test_sum_without_sync, FakeTestParams);

extern "C" __global__ void fake_test_sum_without_fence(const FakeTestParams p) { sum<true, false>(p); }
SHIM_REGISTER(fake_test_sum_without_fence, FakeTestParams);

/// y[2 * block] is what the block finds in static, y[2 * block + 1] in dynamic shared memory that it has not written;
/// then it writes both, for the next block to find if nobody cleans up.
extern "C" __global__ void fake_test_unwritten_shared(const FakeTestParams p) {
  __shared__ float fixed[1];
  DYN_SHARED(float, dynamic);
  if (threadIdx.x != 0) return;
  p.y[2 * blockIdx.x] = fixed[0];
  p.y[2 * blockIdx.x + 1] = dynamic[0];
  fixed[0] = dynamic[0] = 1;
}
SHIM_REGISTER(fake_test_unwritten_shared, FakeTestParams);

/// y[0] = the number of the block that runs first, y[1] = of its thread that runs first.
extern "C" __global__ void fake_test_who_is_first(const FakeTestParams p) {
  auto* taken = reinterpret_cast<unsigned*>(const_cast<float*>(p.x));
  if (atomicCAS(taken, 0u, 1u) != 0) return;
  p.y[0] = float(blockIdx.x);
  p.y[1] = float(threadIdx.x);
}
SHIM_REGISTER(fake_test_who_is_first, FakeTestParams);

/// y[i] = the sum of x[i], x[i + 1], ... x[i + 15], by way of an array that each thread keeps to itself. No barriers.
extern "C" __global__ void fake_test_local_arrays(const FakeTestParams p) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i + 16 > p.count) return;
  float window[16];
  for (unsigned k = 0; k < 16; k++) window[(i + k) % 16] = p.x[i + k];
  float total = 0;
  for (unsigned k = 0; k < 16; k++) total += window[k];
  p.y[i] = total;
}
SHIM_REGISTER(fake_test_local_arrays, FakeTestParams);

/// As above, with one array for all threads: nothing orders what they write there.
extern "C" __global__ void fake_test_shared_array(const FakeTestParams p) {
  __shared__ float window[16];
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i + 16 > p.count) return;
  for (unsigned k = 0; k < 16; k++) window[(i + k) % 16] = p.x[i + k];
  p.y[i] = window[0];
}
SHIM_REGISTER(fake_test_shared_array, FakeTestParams);
