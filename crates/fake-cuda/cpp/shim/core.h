// What every part of the shim uses: the types of a launch, the limits of a device, and how a test dies.
#pragma once
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

#include "sanitize.h"

// Function qualifiers mean nothing on the CPU: all code is host code.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __constant__ static
#define __align__(n) alignas(n)
/// A block runs on one operating system thread, so the block's memory is that thread's.
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace shim {

inline constexpr unsigned WARP = 32;
inline constexpr unsigned MAX_BLOCK_THREADS = 1024;
inline constexpr unsigned MAX_BLOCK_Z = 64;
inline constexpr unsigned MAX_GRID_X = 0x7FFFFFFF;
inline constexpr unsigned MAX_GRID_YZ = 65535;
/// What a block may use at most, opted in to (227 KiB on compute capability 9.0).
inline constexpr size_t MAX_SHARED_BYTES = 232448;

/// Ends the process: a kernel that does this would hang or be undefined on a GPU.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fatal(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fputs("cuda_shim: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::abort();
}

/// Position `index` of a box of size `size`, x fastest.
inline uint3 position(uint64_t index, dim3 size) {
  const uint64_t rows = index / size.x;
  return {unsigned(index % size.x), unsigned(rows % size.y), unsigned(rows / size.y)};
}

/// A small generator for the shuffled orders (xorshift64).
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15u + 1) {}
  SHIM_SCHEDULER uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
};

}  // namespace shim
