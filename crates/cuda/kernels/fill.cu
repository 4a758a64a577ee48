// Every element becomes one value, given as its bits: one kernel for each size of elements.

#include "indexing.cuh"

struct FillParams {
  void* output;
  u64 len;   // elements
  u64 bits;  // of one element, in the low bytes
};

template <class T> __device__ __forceinline__ void fill(const FillParams& p) {
  constexpr int N = VECTOR<T>;
  T* output = static_cast<T*>(p.output);
  const T value = static_cast<T>(p.bits);
  Vector<T, N> values;
  for (int n = 0; n < N; n++) values.at[n] = value;
  const u64 before = reinterpret_cast<u64>(output) % 16;
  const u64 aligned = before == 0 ? 0 : lesser<u64>((16 - before) / sizeof(T), p.len);
  const u64 vectors = (p.len - aligned) / N;
  for (u64 i = grid_thread(); i < aligned; i += grid_threads()) output[i] = value;
  for (u64 v = grid_thread(); v < vectors; v += grid_threads()) store_vector(output + aligned + v * N, values);
  for (u64 i = aligned + vectors * N + grid_thread(); i < p.len; i += grid_threads()) output[i] = value;
}

KERNEL(fill_b16, FillParams, 256, fill<unsigned short>(p))
KERNEL(fill_b32, FillParams, 256, fill<u32>(p))
KERNEL(fill_b64, FillParams, 256, fill<u64>(p))

struct IncrementParams {
  i64* counter;
};

/// Adds one to a counter: what changes from step to step must live on the device, so that a graph can be replayed.
KERNEL(increment_i64, IncrementParams, 32, if (threadIdx.x == 0) *p.counter += 1)
