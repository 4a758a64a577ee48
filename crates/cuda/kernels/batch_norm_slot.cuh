// Statistics as ranks exchange them and as they are kept for backward: crates/core/src/message.rs.
//
// Slots and sums have rows of double for every input type: float cannot hold a mean that is far above the deviation. The
// loops over elements stay in the type of the arithmetic, which a SplitMean leads to.
#pragma once

#include "common.cuh"

namespace batch_norm {

/// One channel of a slot.
struct SlotEntry {
  u64 count;
  double mean;
  double second;  // M2 in a message, invstd in what is kept
};

/// The words of a slot: a count and two rows.
__device__ __forceinline__ u64 slot_words(u32 channels) { return 1 + 2 * static_cast<u64>(channels); }

__device__ __forceinline__ SlotEntry load_entry(const u64* slot, u32 channels, u64 channel) {
  const double* rows = reinterpret_cast<const double*>(slot + 1);
  return {slot[0], rows[channel], rows[channels + channel]};
}

/// Writes all of an entry but the count, which is that of all channels.
__device__ __forceinline__ void store_entry(u64* slot, u32 channels, u64 channel, double mean, double second) {
  double* rows = reinterpret_cast<double*>(slot + 1);
  rows[channel] = mean;
  rows[channels + channel] = second;
}

/// A mean as the nearest number of the arithmetic and the rest.
///
/// Whatever is linear in x − mean = (x − near) − rest takes in the rest once a channel: loops subtract `near` alone,
/// which is exact for values close to it.
template <class A> struct SplitMean {
  A near;
  double rest;

  __device__ __forceinline__ explicit SplitMean(double mean) : near(static_cast<A>(mean)) {
    const double held = static_cast<double>(near);
    rest = held == mean ? 0.0 : mean - held;  // an infinite mean has no rest
  }

  /// value − rest·slope; where there is no rest, an infinite slope does not matter.
  __device__ __forceinline__ double take_rest(double value, double slope) const {
    return rest == 0.0 ? value : multiply_add(-rest, slope, value);
  }
};

}  // namespace batch_norm
