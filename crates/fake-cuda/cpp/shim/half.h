// __half and __nv_bfloat16 as 2-byte storage with CUDA's conversions: to nearest even, NaN to the canonical NaN. No
// arithmetic: kernels compute in float32.
#pragma once
#include <bit>
#include <cstdint>

#include "vector.h"

struct alignas(2) __half {
  uint16_t bits;
};
struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

namespace shim {

/// `value >> shift`, the dropped bits rounded to nearest, ties to even. `shift` is 1 to 31.
constexpr uint32_t shift_to_nearest_even(uint32_t value, unsigned shift) {
  const uint32_t dropped = value & ((1u << shift) - 1), half = 1u << (shift - 1), kept = value >> shift;
  return kept + (dropped > half || (dropped == half && (kept & 1)));
}

constexpr uint16_t half_bits(float value) {
  const uint32_t all = std::bit_cast<uint32_t>(value), magnitude = all & 0x7FFFFFFF;
  const uint16_t sign = uint16_t(all >> 16 & 0x8000);
  if (magnitude > 0x7F800000) return 0x7FFF;
  if (magnitude >= 0x47800000) return sign | 0x7C00;  // 65536 and above
  if (magnitude >= 0x38800000) {                      // normal halves; rounding may carry up to infinity, as it must
    return uint16_t(sign | shift_to_nearest_even(magnitude - 0x38000000, 13));
  }
  if (magnitude < 0x33000000) return sign;  // below half of the smallest subnormal
  const uint32_t significand = (magnitude & 0x7FFFFF) | 0x800000;
  return uint16_t(sign | shift_to_nearest_even(significand, 126 - (magnitude >> 23)));
}

constexpr float half_value(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3FF;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | fraction << 13);
  if (exponent == 0) {  // subnormal: fraction * 2^-24, exact in float32
    const float magnitude = float(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

constexpr uint16_t bfloat16_bits(float value) {
  const uint32_t all = std::bit_cast<uint32_t>(value);
  if ((all & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
  return uint16_t(shift_to_nearest_even(all, 16));
}

}  // namespace shim

constexpr __half __float2half_rn(float value) { return {shim::half_bits(value)}; }
constexpr __half __float2half(float value) { return __float2half_rn(value); }
constexpr float __half2float(__half value) { return shim::half_value(value.bits); }
constexpr unsigned short __half_as_ushort(__half value) { return value.bits; }
constexpr __half __ushort_as_half(unsigned short bits) { return {bits}; }
constexpr __half2 __halves2half2(__half low, __half high) { return {low, high}; }
constexpr __half2 __floats2half2_rn(float low, float high) { return {__float2half_rn(low), __float2half_rn(high)}; }
constexpr __half2 __float22half2_rn(float2 value) { return __floats2half2_rn(value.x, value.y); }
constexpr float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }

constexpr __nv_bfloat16 __float2bfloat16_rn(float value) { return {shim::bfloat16_bits(value)}; }
constexpr __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }
constexpr float __bfloat162float(__nv_bfloat16 value) { return std::bit_cast<float>(uint32_t(value.bits) << 16); }
constexpr unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
constexpr __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
constexpr __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
constexpr __nv_bfloat162 __float22bfloat162_rn(float2 value) { return __floats2bfloat162_rn(value.x, value.y); }
constexpr float2 __bfloat1622float2(__nv_bfloat162 value) {
  return {__bfloat162float(value.x), __bfloat162float(value.y)};
}
