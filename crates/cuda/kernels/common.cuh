// What every kernel shares: entry points, element types, vectors, reductions over warps and blocks.
//
// The same source is compiled by nvcc and, for tests without a GPU, by a C++ compiler with cuda_shim.h, which defines
// CUDA_SHIM, the built-ins used here and SHIM_REGISTER.
#pragma once

#ifdef CUDA_SHIM
#include "cuda_shim.h"
#define REGISTER_KERNEL(name, Params) SHIM_REGISTER(name, Params);
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define REGISTER_KERNEL(name, Params)
#endif

/// Before a loop that runs rarely or long: unrolling it would only make the code larger.
#ifdef CUDA_SHIM
#define ROLLED
#else
#define ROLLED _Pragma("unroll 1")
#endif

typedef int i32;
typedef long long i64;
typedef unsigned int u32;
typedef unsigned long long u64;

/// Defines the entry point `name`, whose only parameter is the struct `p`, as a call in terms of `p`. Blocks have at
/// most `threads` threads. Params are multiples of 8 bytes, which makes them equal to their mirrors in Rust.
#define KERNEL(name, Params, threads, ...) KERNEL_BOUNDED(name, Params, __launch_bounds__(threads), __VA_ARGS__)

/// The same for `blocks` on a multiprocessor at least: they share out its registers, which the compiler then uses before
/// it keeps anything in memory.
#define KERNEL_OF_BLOCKS(name, Params, threads, blocks, ...) \
  KERNEL_BOUNDED(name, Params, __launch_bounds__(threads, blocks), __VA_ARGS__)

#define KERNEL_BOUNDED(name, Params, bounds, ...)                                                  \
  static_assert(alignof(Params) == 8 && sizeof(Params) % 8 == 0, "parameters are made of 8 bytes"); \
  extern "C" __global__ void bounds name(const Params p) { __VA_ARGS__; }                           \
  REGISTER_KERNEL(name, Params)

// ---------------------------------------------------------------------------------------------- element types

/// Run-time codes of element types, in the order of syncbn_core::DType::ALL.
enum DTypeCode : u32 { F32 = 0, F64 = 1, F16 = 2, BF16 = 3, I32 = 4, I64 = 5 };

/// The type arithmetic on T is done in: float for the half types, else T.
template <class T> struct AccumulateOf { using type = T; };
template <> struct AccumulateOf<__half> { using type = float; };
template <> struct AccumulateOf<__nv_bfloat16> { using type = float; };
template <class T> using Accumulate = typename AccumulateOf<T>::type;

template <class T> __device__ __forceinline__ T to_accumulate(T value) { return value; }
__device__ __forceinline__ float to_accumulate(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_accumulate(__nv_bfloat16 value) { return __bfloat162float(value); }

/// The nearest bfloat16, ties to even, and the canonical NaN: as __float2bfloat16_rn, which compilers for less than
/// compute capability 8.0 make of many more instructions, with a branch.
__device__ __forceinline__ __nv_bfloat16 to_bfloat16(float value) {
  const u32 bits = __float_as_uint(value);
  const u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return __ushort_as_bfloat16(static_cast<unsigned short>(value == value ? rounded : 0x7fffu));
}

template <class T> struct FromAccumulate {
  static __device__ __forceinline__ T convert(T value) { return value; }
};
template <> struct FromAccumulate<__half> {
  static __device__ __forceinline__ __half convert(float value) { return __float2half_rn(value); }
};
template <> struct FromAccumulate<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 convert(float value) { return to_bfloat16(value); }
};

/// Rounds to the nearest T.
template <class T> __device__ __forceinline__ T from_accumulate(Accumulate<T> value) {
  return FromAccumulate<T>::convert(value);
}

/// Element `index` of an array of floating-point numbers whose type is known at run time.
template <class A> __device__ __forceinline__ A load_as(const void* array, u32 dtype, u64 index) {
  switch (dtype) {
    case F64: return static_cast<A>(static_cast<const double*>(array)[index]);
    case F16: return static_cast<A>(__half2float(static_cast<const __half*>(array)[index]));
    case BF16: return static_cast<A>(__bfloat162float(static_cast<const __nv_bfloat16*>(array)[index]));
    default: return static_cast<A>(static_cast<const float*>(array)[index]);
  }
}

/// The same, and `otherwise` if there is no array.
template <class A>
__device__ __forceinline__ A load_or(const void* array, u32 dtype, u64 index, A otherwise) {
  return array == nullptr ? otherwise : load_as<A>(array, dtype, index);
}

/// Rounds `value` into element `index`. A double goes to the half types by way of float.
template <class A> __device__ __forceinline__ void store_as(void* array, u32 dtype, u64 index, A value) {
  switch (dtype) {
    case F64: static_cast<double*>(array)[index] = static_cast<double>(value); break;
    case F16: static_cast<__half*>(array)[index] = __float2half_rn(static_cast<float>(value)); break;
    case BF16: static_cast<__nv_bfloat16*>(array)[index] = to_bfloat16(static_cast<float>(value)); break;
    default: static_cast<float*>(array)[index] = static_cast<float>(value); break;
  }
}

// ---------------------------------------------------------------------------------------------- vectors

/// N elements that are moved at once; at most 16 bytes.
template <class T, int N> struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

/// The built-in type of a memory instruction of so many bytes.
template <int BYTES> struct RawOf;
template <> struct RawOf<2> { using type = unsigned short; };
template <> struct RawOf<4> { using type = unsigned int; };
template <> struct RawOf<8> { using type = uint2; };
template <> struct RawOf<16> { using type = uint4; };
template <class T, int N> using Raw = typename RawOf<static_cast<int>(sizeof(T)) * N>::type;

/// Elements of T in the widest vector, 16 bytes.
template <class T> constexpr int VECTOR = 16 / static_cast<int>(sizeof(T));

/// By value: a copy through a reference to memory would be made byte by byte, since memcpy knows of no alignment.
template <class To, class From> __device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), sizeof(To));
  return to;
}

/// N elements from `p`, which is aligned to all of them.
template <int N, class T> __device__ __forceinline__ Vector<T, N> load_vector(const T* p) {
  const Raw<T, N> raw = *reinterpret_cast<const Raw<T, N>*>(p);
  return bits_as<Vector<T, N>>(raw);
}

/// The same for memory that is not read again soon: it leaves the caches first.
template <int N, class T> __device__ __forceinline__ Vector<T, N> load_vector_once(const T* p) {
  return bits_as<Vector<T, N>>(__ldcs(reinterpret_cast<const Raw<T, N>*>(p)));
}

/// Brings what is at `p` into the second-level cache: a load that will hit it, without a register that waits for it.
__device__ __forceinline__ void prefetch(const void* p) {
#ifndef CUDA_SHIM
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
#else
  static_cast<void>(p);
#endif
}

/// N elements to `p`, which is aligned to all of them.
template <int N, class T> __device__ __forceinline__ void store_vector(T* p, const Vector<T, N>& vector) {
  *reinterpret_cast<Raw<T, N>*>(p) = bits_as<Raw<T, N>>(vector);
}

// ---------------------------------------------------------------------------------------------- arithmetic

template <class T> constexpr __device__ __forceinline__ T lesser(T a, T b) { return b < a ? b : a; }
template <class T> constexpr __device__ __forceinline__ T greater(T a, T b) { return a < b ? b : a; }

__device__ __forceinline__ float square_root(float value) { return sqrtf(value); }
__device__ __forceinline__ double square_root(double value) { return sqrt(value); }

/// a·b + c with one rounding, on every compiler. What must give the same bits in different kernels leaves no product
/// that a compiler may fuse with a sum.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

/// a·b, rounded by itself: no compiler, that of the driver included, joins it to a sum it goes into.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }

// ---------------------------------------------------------------------------------------------- threads

constexpr u32 WARP_THREADS = 32;
constexpr u32 FULL_WARP = 0xffffffffu;

/// Index of this thread in a grid of one dimension.
__device__ __forceinline__ u64 grid_thread() { return static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; }

/// Threads of a grid of one dimension.
__device__ __forceinline__ u64 grid_threads() { return static_cast<u64>(gridDim.x) * blockDim.x; }

/// Index of this thread in its block, of two dimensions at most.
__device__ __forceinline__ u32 block_thread() { return threadIdx.y * blockDim.x + threadIdx.x; }

/// The sum over the warp, the same bits in every lane. All lanes take part.
template <class A> __device__ __forceinline__ A warp_sum(A value) {
  for (u32 lanes = WARP_THREADS / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(FULL_WARP, value, lanes);
  return value;
}

/// Replaces each of K values by its sum over the block, the same bits in every thread. All threads of the block take
/// part; they are whole warps of a block of one dimension.
template <int K, class A> __device__ __forceinline__ void block_sum(A (&values)[K]) {
  __shared__ A warps[K][WARP_THREADS];
  const u32 lane = threadIdx.x % WARP_THREADS, warp = threadIdx.x / WARP_THREADS, count = blockDim.x / WARP_THREADS;
  for (int k = 0; k < K; k++) values[k] = warp_sum(values[k]);
  __syncthreads();  // the shared memory of an earlier call is free
  if (lane == 0) {
    for (int k = 0; k < K; k++) warps[k][warp] = values[k];
  }
  __syncthreads();
  for (int k = 0; k < K; k++) values[k] = warp_sum(lane < count ? warps[k][lane] : A(0));
}

/// Whether this block is the last of `blocks` to arrive at `counter`, which is then 0 again. What the others wrote
/// before they arrived is visible to the last. All threads of the block take part.
__device__ __forceinline__ bool last_to_arrive(u32* counter, u32 blocks) {
  __shared__ u32 arrived;
  __threadfence();
  __syncthreads();
  if (block_thread() == 0) arrived = atomicInc(counter, blocks - 1);
  __syncthreads();
  const bool last = arrived == blocks - 1;
  if (last) __threadfence();
  return last;
}

/// Errors only the device can see; the host reads the word when it waits next.
enum StatusCode : u32 { TOO_FEW_VALUES = 1, TARGET_OUT_OF_RANGE = 2 };

/// Sets the status word unless an earlier error did.
__device__ __forceinline__ void set_status(u32* status, StatusCode code) {
  atomicCAS(status, 0u, static_cast<u32>(code));
}
