// How a thread goes through its values: where they lie, several of them at a time, and the tail that is shorter.
#pragma once

#include "batch_norm_layout.cuh"

namespace batch_norm {

/// The offsets of a thread's values, one after the other.
template <int CHANNELS> struct Cursor {
  u64 offset;
  i32 left;  // values of the plane from here on, or 2^30 where it is more

  __device__ __forceinline__ Cursor(const Layout& layout, const Place& place) {
    const u64 value = place.first + place.lane;
    if (CHANNELS > 1) {  // planes of one value
      offset = value * layout.columns + place.column;
      return;
    }
    // Most tensors are small enough for the much faster division of 32 bits.
    const bool narrow = (value | layout.spatial) >> 32 == 0;
    const u64 sample = narrow ? static_cast<u32>(value) / static_cast<u32>(layout.spatial) : value / layout.spatial;
    const u64 position = value - sample * layout.spatial;
    offset = (sample * layout.columns + place.column) * layout.spatial + position;
    left = static_cast<i32>(lesser(layout.spatial - position, static_cast<u64>(1u << 30)));
  }

  /// The offset of this value, in vectors; the cursor goes on to the value `lanes` further.
  __device__ __forceinline__ u64 next(const Layout& layout) {
    const u64 here = offset;
    offset += layout.step_offset;
    if (CHANNELS > 1) return here;
    left -= static_cast<i32>(layout.step_spatial);
    if (left <= 0) {
      left += static_cast<i32>(layout.plane);
      offset += layout.wrap_offset;
    }
    return here;
  }
};

/// The offsets of U values that are loaded and then stored, in elements, U after U. They are KEPT where registers allow;
/// else they are found again, which takes as many instructions as at first.
template <int V, int CHANNELS, int U, bool KEPT> struct Walk {
  Cursor<CHANNELS> loads, stores;
  u64 kept[U];

  __device__ __forceinline__ explicit Walk(const Cursor<CHANNELS>& start) : loads(start), stores(start) {}

  __device__ __forceinline__ u64 load(const Layout& layout, int j) {
    const u64 offset = loads.next(layout) * V;
    if (KEPT) kept[j] = offset;
    return offset;
  }

  __device__ __forceinline__ u64 store(const Layout& layout, int j) {
    return KEPT ? kept[j] : stores.next(layout) * V;
  }
};

/// How many of the COUNT values from `index` on, `lanes` apart, are in the part.
template <int COUNT> __device__ __forceinline__ u32 values_left(u32 index, const Place& place, u32 lanes) {
  if (index + (COUNT - 1) * lanes < place.length) return COUNT;
  u32 left = 0;
  for (int j = 0; j < COUNT - 1; j++) left += index + j * lanes < place.length;
  return left;
}

/// f(j) for the j below `valid`, without a comparison for each where that is COUNT.
template <int COUNT, class F> __device__ __forceinline__ void for_valid(u32 valid, const F& f) {
  if (valid == COUNT) {
    for (int j = 0; j < COUNT; j++) f(j);
  } else {
    for (int j = 0; j < COUNT - 1; j++) {
      if (j < static_cast<int>(valid)) f(j);
    }
  }
}

/// f(FIRST) + … + f(FIRST + COUNT − 1) as a balanced tree: rounding errors grow with the logarithm of COUNT.
template <int FIRST, int COUNT, class F> __device__ __forceinline__ auto tree_sum(const F& f) {
  if constexpr (COUNT == 1) {
    return f(FIRST);
  } else {
    return tree_sum<FIRST, COUNT / 2>(f) + tree_sum<FIRST + COUNT / 2, COUNT - COUNT / 2>(f);
  }
}

}  // namespace batch_norm
