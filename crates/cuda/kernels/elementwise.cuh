// Functions of each element, at the speed of memory: 16 bytes at a time where every array is aligned to them.
//
// An output may be one of the inputs: a thread reads what it overwrites first.
#pragma once

#include "indexing.cuh"

__device__ __forceinline__ u64 address(const void* pointer) { return reinterpret_cast<u64>(pointer); }

/// output[i] = f(a[i]) for i below `len`, in the type arithmetic on T is done in.
template <class T, class F>
__device__ __forceinline__ void map(const T* a, T* output, u64 len, const F& f) {
  constexpr int N = VECTOR<T>;
  const u64 vectors = (address(a) | address(output)) % 16 == 0 ? len / N : 0;
  for (u64 v = grid_thread(); v < vectors; v += grid_threads()) {
    Vector<T, N> values = load_vector<N>(a + v * N);
    for (int n = 0; n < N; n++) values.at[n] = from_accumulate<T>(f(to_accumulate(values.at[n])));
    store_vector(output + v * N, values);
  }
  for (u64 i = vectors * N + grid_thread(); i < len; i += grid_threads()) {
    output[i] = from_accumulate<T>(f(to_accumulate(a[i])));
  }
}

/// output[i] = f(a[i], b[i]) for i below `len`, in the type arithmetic on T is done in.
template <class T, class F>
__device__ __forceinline__ void map(const T* a, const T* b, T* output, u64 len, const F& f) {
  constexpr int N = VECTOR<T>;
  const u64 vectors = (address(a) | address(b) | address(output)) % 16 == 0 ? len / N : 0;
  for (u64 v = grid_thread(); v < vectors; v += grid_threads()) {
    Vector<T, N> values = load_vector<N>(a + v * N);
    const Vector<T, N> others = load_vector<N>(b + v * N);
    for (int n = 0; n < N; n++) {
      values.at[n] = from_accumulate<T>(f(to_accumulate(values.at[n]), to_accumulate(others.at[n])));
    }
    store_vector(output + v * N, values);
  }
  for (u64 i = vectors * N + grid_thread(); i < len; i += grid_threads()) {
    output[i] = from_accumulate<T>(f(to_accumulate(a[i]), to_accumulate(b[i])));
  }
}
