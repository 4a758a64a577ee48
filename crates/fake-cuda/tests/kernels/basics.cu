// What the fake driver's tests launch, and what each part of the shim computes.
#include "params.cuh"

/// y = x + value
extern "C" __global__ void fake_test_add(const FakeTestParams p) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.count) p.y[i] = p.x[i] + p.value;
}
SHIM_REGISTER(fake_test_add, FakeTestParams);

/// One block. Row r of y, as long as the block, holds the results of the r-th warp function of the values 0, 1, 2...
extern "C" __global__ void fake_test_warp_functions(const FakeTestParams p) {
  const unsigned n = blockDim.x, i = threadIdx.x, full = 0xFFFFFFFFu;
  const double value = i;
  p.y[0 * n + i] = float(__shfl_sync(full, value, 5));
  p.y[1 * n + i] = float(__shfl_sync(full, value, 9, 8));  // lane 1 of each group of 8
  p.y[2 * n + i] = __shfl_down_sync(full, float(i), 3);
  p.y[3 * n + i] = float(__shfl_up_sync(full, i, 3, 16));
  p.y[4 * n + i] = float(__shfl_xor_sync(full, (unsigned long long)i, 7));
  p.y[5 * n + i] = float(__popc(__ballot_sync(full, i % 3 == 0)));
  p.y[6 * n + i] = float(__any_sync(full, i == 40));
  p.y[7 * n + i] = float(__all_sync(full, i < 32));
  // The halves of a warp on their own, one of them twice: neither may see the other's values.
  const unsigned mine = i % 32 < 16 ? 0xFFFFu : 0xFFFF0000u;
  float sum = float(i);
  if (i % 32 < 16) sum += __shfl_xor_sync(mine, sum, 1);
  sum += __shfl_xor_sync(mine, sum, 8);
  __syncwarp();
  p.y[8 * n + i] = __shfl_sync(full, sum, 31 - int(i % 32));
}
SHIM_REGISTER(fake_test_warp_functions, FakeTestParams);

/// y = x as float16 and back, then, `count` elements on, as bfloat16 and back.
extern "C" __global__ void fake_test_half_types(const FakeTestParams p) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  p.y[i] = __half2float(__float2half_rn(p.x[i]));
  p.y[p.count + i] = __bfloat162float(__float2bfloat16_rn(p.x[i]));
}
SHIM_REGISTER(fake_test_half_types, FakeTestParams);

/// y[i] = x[i] for vectors of four.
extern "C" __global__ void fake_test_copy_vectors(const FakeTestParams p) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i * 4 < p.count) reinterpret_cast<float4*>(p.y)[i] = reinterpret_cast<const float4*>(p.x)[i];
}
SHIM_REGISTER(fake_test_copy_vectors, FakeTestParams);
