// Device functions that the C library lacks. rsqrtf is exact here and within 2 ulp on a GPU: tests need a tolerance.
#pragma once
#include <math.h>  // the global names kernels use: fmaf, sqrtf, expf, isnan

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline double rsqrt(double value) { return 1.0 / std::sqrt(value); }
inline float rsqrt(float value) { return rsqrtf(value); }

// One rounding each, never fused with a neighbour. The compiler here fuses nothing across a call it cannot see into,
// and without -mfma not at all.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __drcp_rn(double a) { return 1.0 / a; }

constexpr unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
constexpr int __float_as_int(float value) { return std::bit_cast<int>(value); }
constexpr float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
constexpr float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
constexpr long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
constexpr double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }
constexpr float __uint2float_rn(unsigned value) { return float(value); }
constexpr float __int2float_rn(int value) { return float(value); }
constexpr float __ull2float_rn(unsigned long long value) { return float(value); }
constexpr double __ull2double_rn(unsigned long long value) { return double(value); }
constexpr float __double2float_rn(double value) { return float(value); }

constexpr unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
constexpr int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
constexpr unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
constexpr long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
constexpr int __popc(unsigned value) { return std::popcount(value); }
constexpr int __popcll(unsigned long long value) { return std::popcount(value); }
constexpr int __clz(int value) { return std::countl_zero(unsigned(value)); }
constexpr int __clzll(long long value) { return std::countl_zero((unsigned long long)value); }
constexpr int __ffs(int value) { return value == 0 ? 0 : std::countr_zero(unsigned(value)) + 1; }
constexpr int __ffsll(long long value) { return value == 0 ? 0 : std::countr_zero((unsigned long long)value) + 1; }

// min and max of CUDA: of mixed signedness unsigned, of floating point the operand that is not NaN.
#define SHIM_MIN_MAX(result, left, right)        \
  constexpr result min(left first, right second) { \
    const result a = static_cast<result>(first), b = static_cast<result>(second); \
    return a < b ? a : b;                          \
  }                                                \
  constexpr result max(left first, right second) { \
    const result a = static_cast<result>(first), b = static_cast<result>(second); \
    return a > b ? a : b;                          \
  }
SHIM_MIN_MAX(int, int, int)
SHIM_MIN_MAX(unsigned, unsigned, unsigned)
SHIM_MIN_MAX(unsigned, int, unsigned)
SHIM_MIN_MAX(unsigned, unsigned, int)
SHIM_MIN_MAX(long, long, long)
SHIM_MIN_MAX(unsigned long, unsigned long, unsigned long)
SHIM_MIN_MAX(long long, long long, long long)
SHIM_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
SHIM_MIN_MAX(unsigned long long, long long, unsigned long long)
SHIM_MIN_MAX(unsigned long long, unsigned long long, long long)
#undef SHIM_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
