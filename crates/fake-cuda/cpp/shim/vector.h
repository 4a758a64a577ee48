// CUDA's short vectors, with CUDA's alignments: a 16-byte load through a misaligned pointer is an error on a GPU, and
// -fsanitize=alignment makes it one here.
#pragma once

#include "core.h"

#define SHIM_VECTOR(name, type, align1, align2, align4)                                                          \
  struct alignas(align1) name##1 { type x; };                                                                    \
  struct alignas(align2) name##2 { type x, y; };                                                                 \
  struct alignas(align1) name##3 { type x, y, z; };                                                              \
  struct alignas(align4) name##4 { type x, y, z, w; };                                                           \
  constexpr name##1 make_##name##1(type x) { return {x}; }                                                       \
  constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                                            \
  constexpr name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                                 \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

SHIM_VECTOR(char, signed char, 1, 2, 4)
SHIM_VECTOR(uchar, unsigned char, 1, 2, 4)
SHIM_VECTOR(short, short, 2, 4, 8)
SHIM_VECTOR(ushort, unsigned short, 2, 4, 8)
SHIM_VECTOR(int, int, 4, 8, 16)
SHIM_VECTOR(longlong, long long, 8, 16, 16)
SHIM_VECTOR(ulonglong, unsigned long long, 8, 16, 16)
SHIM_VECTOR(float, float, 4, 8, 16)
SHIM_VECTOR(double, double, 8, 16, 16)
#undef SHIM_VECTOR

// uint3 is the type of threadIdx and lives in core.h.
struct uint1 { unsigned x; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
constexpr uint1 make_uint1(unsigned x) { return {x}; }
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
