// Elementwise conversion between element types.
//
// Rounds to nearest even, by way of float to the half types; floats become integers by truncation, saturating, and NaN
// becomes 0; integers wrap.

#include "indexing.cuh"

struct CastParams {
  const void* input;
  void* output;
  u64 len;
};

/// Truncates to an integer type with the given least value, whose negative is one above the greatest.
template <class I, class A> __device__ __forceinline__ I saturate(A value, I least) {
  const A bound = static_cast<A>(least);
  if (!(value == value)) return 0;
  if (value <= bound) return least;
  return value >= -bound ? ~least : static_cast<I>(value);
}

template <class To> struct Convert {
  template <class A> static __device__ __forceinline__ To from(A value) { return static_cast<To>(value); }
};
template <> struct Convert<__half> {
  template <class A> static __device__ __forceinline__ __half from(A value) {
    return from_accumulate<__half>(static_cast<float>(value));
  }
};
template <> struct Convert<__nv_bfloat16> {
  template <class A> static __device__ __forceinline__ __nv_bfloat16 from(A value) {
    return from_accumulate<__nv_bfloat16>(static_cast<float>(value));
  }
};
template <> struct Convert<i32> {
  static constexpr i32 LEAST = -0x7fffffff - 1;
  static __device__ __forceinline__ i32 from(float value) { return saturate(value, LEAST); }
  static __device__ __forceinline__ i32 from(double value) { return saturate(value, LEAST); }
  static __device__ __forceinline__ i32 from(i64 value) { return static_cast<i32>(value); }
};
template <> struct Convert<i64> {
  static constexpr i64 LEAST = -0x7fffffffffffffffll - 1;
  static __device__ __forceinline__ i64 from(float value) { return saturate(value, LEAST); }
  static __device__ __forceinline__ i64 from(double value) { return saturate(value, LEAST); }
  static __device__ __forceinline__ i64 from(i32 value) { return value; }
};

template <class From, class To> __device__ __forceinline__ void cast(const CastParams& p) {
  const From* input = static_cast<const From*>(p.input);
  To* output = static_cast<To*>(p.output);
  for_each(p.len, [&](u64 i) { output[i] = Convert<To>::from(to_accumulate(input[i])); });
}

#define CAST(from, From, to, To) KERNEL(cast_##from##_##to, CastParams, 256, cast<From, To>(p))
CAST(f32, float, f64, double)
CAST(f32, float, f16, __half)
CAST(f32, float, bf16, __nv_bfloat16)
CAST(f32, float, i32, i32)
CAST(f32, float, i64, i64)
CAST(f64, double, f32, float)
CAST(f64, double, f16, __half)
CAST(f64, double, bf16, __nv_bfloat16)
CAST(f64, double, i32, i32)
CAST(f64, double, i64, i64)
CAST(f16, __half, f32, float)
CAST(f16, __half, f64, double)
CAST(f16, __half, bf16, __nv_bfloat16)
CAST(f16, __half, i32, i32)
CAST(f16, __half, i64, i64)
CAST(bf16, __nv_bfloat16, f32, float)
CAST(bf16, __nv_bfloat16, f64, double)
CAST(bf16, __nv_bfloat16, f16, __half)
CAST(bf16, __nv_bfloat16, i32, i32)
CAST(bf16, __nv_bfloat16, i64, i64)
CAST(i32, i32, f32, float)
CAST(i32, i32, f64, double)
CAST(i32, i32, f16, __half)
CAST(i32, i32, bf16, __nv_bfloat16)
CAST(i32, i32, i64, i64)
CAST(i64, i64, f32, float)
CAST(i64, i64, f64, double)
CAST(i64, i64, f16, __half)
CAST(i64, i64, bf16, __nv_bfloat16)
CAST(i64, i64, i32, i32)
