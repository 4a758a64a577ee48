// Kernels that would hang or be undefined on a GPU: the shim must end each with the right message.
#include "params.cuh"

/// Only the first `count` threads come to the barrier; the others exit.
extern "C" __global__ void fake_test_divergent_barrier(const FakeTestParams p) {
  if (threadIdx.x < p.count) __syncthreads();
}
SHIM_REGISTER(fake_test_divergent_barrier, FakeTestParams);

/// Lane 0 shuffles with a mask that it is not in.
extern "C" __global__ void fake_test_wrong_mask(const FakeTestParams p) {
  p.y[threadIdx.x] = __shfl_sync(0xFFFFFFFEu, float(threadIdx.x), 1);
}
SHIM_REGISTER(fake_test_wrong_mask, FakeTestParams);

/// Half of the warp exits; the rest names it in a mask.
extern "C" __global__ void fake_test_exited_lane(const FakeTestParams p) {
  if (threadIdx.x >= 16) return;
  p.y[threadIdx.x] = __shfl_down_sync(0xFFFFFFFFu, float(threadIdx.x), 1);
}
SHIM_REGISTER(fake_test_exited_lane, FakeTestParams);

/// One half of the warp votes, the other shuffles.
extern "C" __global__ void fake_test_mixed_functions(const FakeTestParams p) {
  if (threadIdx.x % 32 < 16) p.y[threadIdx.x] = float(__ballot_sync(0xFFFFFFFFu, 1));
  else p.y[threadIdx.x] = __shfl_sync(0xFFFFFFFFu, 1.0f, 0);
}
SHIM_REGISTER(fake_test_mixed_functions, FakeTestParams);

/// One half of the warp waits for the warp, the other for the block.
extern "C" __global__ void fake_test_deadlock(const FakeTestParams) {
  if (threadIdx.x % 32 < 16) __syncwarp();
  else __syncthreads();
}
SHIM_REGISTER(fake_test_deadlock, FakeTestParams);

/// Writes one float more than the launch's dynamic shared memory.
extern "C" __global__ void fake_test_shared_overrun(const FakeTestParams p) {
  DYN_SHARED(float, tile);
  if (threadIdx.x == 0) tile[p.count] = 1;
}
SHIM_REGISTER(fake_test_shared_overrun, FakeTestParams);
