// What kernel code writes: indices, barriers, warp functions, atomics, shared memory.
#pragma once
#include <atomic>
#include <cstring>

#include "block.h"
#include "arithmetic.h"

#define threadIdx (shim::runner->current->thread_index)
#define blockIdx (shim::runner->block_index)
#define blockDim (shim::runner->block)
#define gridDim (shim::runner->grid)
inline constexpr int warpSize = int(shim::WARP);

/// The block's dynamic shared memory as `type* name`.
#define DYN_SHARED(type, name) type* name = reinterpret_cast<type*>(shim::runner->dynamic_shared)

inline void __syncthreads() { shim::runner->block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { shim::runner->warp_barrier(shim::WarpOp::Barrier, mask, 0, 0); }

namespace shim {

/// Names the address of the fences for ThreadSanitizer: what precedes a fence precedes what follows a later one.
inline char fence_order;

inline int lane_index() { return int(runner->current->linear % WARP); }

inline void check_width(int width) {
  const bool valid = width >= 1 && width <= int(WARP) && (width & (width - 1)) == 0;
  if (!valid) fatal("shuffle width %d is no power of two <= 32", width);
}

/// The value of lane `source`, or this lane's own if that is outside its segment.
template <class T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = runner->warp_barrier(WarpOp::Shuffle, mask, source, bits);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline bool same_segment(int a, int b, int width) { return a >= 0 && (a & ~(width - 1)) == (b & ~(width - 1)); }

}  // namespace shim

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  shim::check_width(width);
  return shim::shuffle(mask, value, (shim::lane_index() & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  shim::check_width(width);
  const int lane = shim::lane_index(), source = lane + int(delta);
  return shim::shuffle(mask, value, shim::same_segment(source, lane, width) ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  shim::check_width(width);
  const int lane = shim::lane_index(), source = lane - int(delta);
  return shim::shuffle(mask, value, shim::same_segment(source, lane, width) ? source : lane);
}
/// A source in a later segment gives the lane's own value, in an earlier one that lane's, as on the GPU.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {
  shim::check_width(width);
  const int lane = shim::lane_index(), source = lane ^ lanes;
  return shim::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(shim::runner->warp_barrier(shim::WarpOp::Ballot, mask, 0, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

/// Orders this thread's writes before its later ones for every other thread. The reader needs a fence too.
inline void __threadfence() {
#if defined(__SANITIZE_THREAD__)
  shim::happens_before(&shim::fence_order);
  shim::happens_after(&shim::fence_order);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}

template <class T>
T __ldcs(const T* pointer) {
  return *pointer;
}

// Atomics order nothing but themselves, as on the GPU: data that they announce needs __threadfence() on both sides.
// None for floating point: results must not depend on the order of threads.
#define SHIM_ATOMIC_INTEGER(type)                                                                                  \
  inline type atomicAdd(type* p, type v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }                    \
  inline type atomicSub(type* p, type v) { return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED); }                    \
  inline type atomicAnd(type* p, type v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }                    \
  inline type atomicOr(type* p, type v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }                      \
  inline type atomicXor(type* p, type v) { return __atomic_fetch_xor(p, v, __ATOMIC_RELAXED); }                    \
  inline type atomicExch(type* p, type v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }                  \
  inline type atomicCAS(type* p, type expected, type v) {                                                          \
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                       \
    return expected;                                                                                               \
  }                                                                                                                \
  inline type atomicMax(type* p, type v) { return shim::update(p, [v](type old) { return old < v ? v : old; }); }  \
  inline type atomicMin(type* p, type v) { return shim::update(p, [v](type old) { return v < old ? v : old; }); }

namespace shim {

/// Replaces `*p` by a function of it, atomically; returns what it was.
template <class T, class F>
T update(T* p, F replacement) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, replacement(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

}  // namespace shim

SHIM_ATOMIC_INTEGER(int)
SHIM_ATOMIC_INTEGER(unsigned)
SHIM_ATOMIC_INTEGER(unsigned long long)
#undef SHIM_ATOMIC_INTEGER

/// Counts up and wraps to 0 after `last`.
inline unsigned atomicInc(unsigned* p, unsigned last) {
  return shim::update(p, [last](unsigned old) { return old >= last ? 0 : old + 1; });
}
/// Counts down and wraps to `last` after 0.
inline unsigned atomicDec(unsigned* p, unsigned last) {
  return shim::update(p, [last](unsigned old) { return old == 0 || old > last ? last : old - 1; });
}
