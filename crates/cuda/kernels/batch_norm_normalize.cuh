// y = weight·(x − mean)·invstd + bias, after the messages of all ranks have been merged; the statistics backward needs,
// and the running statistics.
//
// Every block merges what it needs of the messages: that costs less than a kernel of its own, and its first elements are
// on their way meanwhile. The earliest block of each tile writes what is kept. A number of batches is counted by the last
// of those blocks, when all have read it.
#pragma once

#include "batch_norm_cursor.cuh"
#include "batch_norm_moments.cuh"

namespace batch_norm {

template <class T> struct NormalizeParams {
  const T* input;
  T* output;
  const u64* messages;  // world_size slots (count, mean, M2); one slot (count, mean, invstd) if world_size is 0
  u64* kept;            // slot (count, mean, invstd); not with a world_size of 0
  const void* weight;   // or null
  const void* bias;     // or null
  void* running_mean;   // or null, like all that is running
  void* running_var;
  i64* batches_tracked;  // or null
  u32* counters;
  u32* status;
  double eps;
  double momentum;
  u32 weight_dtype;
  u32 bias_dtype;
  u32 running_mean_dtype;
  u32 running_var_dtype;
  u32 cumulative;  // 1: the momentum is 1 / batches
  u32 world_size;
  u32 log_lanes;  // of merge_slots
  u32 unused;
  Layout layout;
};

/// What y = (x − mean)·scale + shift needs. What A cannot hold of the mean is in the shift.
template <class A> struct Affine {
  A mean;
  A scale;
  A shift;
};

/// running = (1 − f)·running + f·value, in double, which is exact for f = 1 in both types.
__device__ __forceinline__ void update_running(void* running, u32 dtype, u32 channel, double factor, double value) {
  const double old = load_as<double>(running, dtype, channel);
  store_as<double>(running, dtype, channel, multiply_add(factor, value, (1.0 - factor) * old));
}

/// Whether the running statistics take in a batch of so many values.
///
/// Blocks ask for themselves. The host clears the word from another stream when it reports an error, so a batch that
/// runs at that moment, behind the error, may reach the statistics of some channels alone; what is never half done is
/// the arrival of blocks in count_batch.
template <class T> __device__ __forceinline__ bool commits(const NormalizeParams<T>& p, u64 count) {
  return p.running_mean != nullptr && count > 1 && *p.status == 0;
}

/// Writes what is kept of `channel`. One thread for each channel.
template <class T>
__device__ __forceinline__ void keep(const NormalizeParams<T>& p, u32 channel, u64 count, double mean, double m2,
                                     double invstd) {
  if (channel == 0) {
    p.kept[0] = count;
    if (count == 1) set_status(p.status, TOO_FEW_VALUES);
  }
  store_entry(p.kept, p.layout.channels, channel, mean, invstd);
  if (!commits(p, count)) return;
  double factor = p.momentum;
  if (p.cumulative != 0) factor = 1.0 / static_cast<double>(greater(*p.batches_tracked + 1, static_cast<i64>(1)));
  const double unbiased = m2 / static_cast<double>(count - 1);
  update_running(p.running_mean, p.running_mean_dtype, channel, factor, mean);
  update_running(p.running_var, p.running_var_dtype, channel, factor, unbiased);
}

/// Fills `affine` for the channels of the block and `count` with that of the group, and `keeps` what is to be kept. All
/// threads of the block take part.
template <class T, class A>
__device__ __forceinline__ void merge_messages(const NormalizeParams<T>& p, bool keeps, u32 block_channels,
                                               Affine<A>* affine, u64* count) {
  const u32 first = block_tile(true) * block_channels;
  const u32 channels = lesser(block_channels, p.layout.channels - first);
  const u32 at_once = blockDim.x >> p.log_lanes, mine = threadIdx.x >> p.log_lanes;
  const u32 warps_first = (threadIdx.x & ~(WARP_THREADS - 1)) >> p.log_lanes;
  // Whole warps without a channel have nothing to do: where a GPU has few units for double, this is what it waits for.
  ROLLED for (u32 base = 0; base + warps_first < channels; base += at_once) {
    const bool active = base + mine < channels;
    const u32 channel = first + (active ? base + mine : 0);
    const u32 slots = greater(p.world_size, 1u);
    const Moments<double, 1> merged = merge_slots(p.messages, slots, p.layout.channels, channel, p.log_lanes);
    if (!active || (threadIdx.x & ((1u << p.log_lanes) - 1)) != 0) continue;
    const double mean = merged.rows[0][0], m2 = merged.rows[2][0];
    double invstd = m2;
    if (p.world_size > 0) {
      const double var = m2 / static_cast<double>(merged.count);
      invstd = merged.count == 0 ? 0.0 : 1.0 / square_root(var + p.eps);
    }
    if (keeps) keep(p, channel, merged.count, mean, m2, invstd);
    const SplitMean<A> split(mean);
    const double scale = invstd * load_or<double>(p.weight, p.weight_dtype, channel, 1.0);
    const double shift = split.take_rest(load_or<double>(p.bias, p.bias_dtype, channel, 0.0), scale);
    affine[base + mine] = {split.near, static_cast<A>(scale), static_cast<A>(shift)};
    if (base + mine == 0) *count = merged.count;
  }
}

/// Counts the batch when every block that keeps something has come so far. All of them arrive, whatever they saw of the
/// status word: a counter that some leave out would stay above 0, and later reductions would end early.
template <class T> __device__ __forceinline__ void count_batch(const NormalizeParams<T>& p, u64 count) {
  if (p.batches_tracked == nullptr) return;
  __threadfence();  // this block has read the number before it arrives
  if (atomicInc(p.counters, gridDim.x - 1) != gridDim.x - 1) return;
  __threadfence();
  if (commits(p, count)) *p.batches_tracked += 1;
}

template <class T, int V, int CHANNELS>
__device__ __forceinline__ void normalize(const NormalizeParams<T>& p) {
  using A = Accumulate<T>;
  constexpr int U = lesser(UNROLL<V * sizeof(T)>, 8);
  __shared__ Affine<A> shared[BLOCK_CHANNELS];
  __shared__ u64 count;
  const Place place(p.layout, true);
  const Cursor<CHANNELS> start(p.layout, place);
  Cursor<CHANNELS> ahead = start;
  for (int j = 0; j < U; j++) {
    const u64 offset = ahead.next(p.layout) * V;
    if (place.lane + j * p.layout.lanes < place.length) prefetch(p.input + offset);
  }
  const bool keeps = p.world_size > 0 && block_is_early();
  merge_messages(p, keeps, p.layout.width() * CHANNELS, shared, &count);
  __syncthreads();
  if (keeps && threadIdx.x == 0) count_batch(p, count);
  Affine<A> affine[CHANNELS];
  const u32 column = place.block_column(p.layout);
  for (int c = 0; c < CHANNELS; c++) affine[c] = shared[column * CHANNELS + c];
  Walk<V, CHANNELS, U, CHANNELS == 1 && (V == 1 || U <= 4)> walk(start);
  ROLLED for (u32 index = place.lane; index < place.length; index += U * p.layout.lanes) {
    const u32 valid = values_left<U>(index, place, p.layout.lanes);
    Vector<T, V> x[U];
    for_valid<U>(valid, [&](int j) { x[j] = load_vector_once<V>(p.input + walk.load(p.layout, j)); });
    for (int j = 0; j < U; j++) {
      for (int v = 0; v < V; v++) {
        const Affine<A>& of = affine[CHANNELS == 1 ? 0 : v];
        x[j].at[v] = from_accumulate<T>(multiply_add(to_accumulate(x[j].at[v]) - of.mean, of.scale, of.shift));
      }
    }
    for_valid<U>(valid, [&](int j) { store_vector(p.output + walk.store(p.layout, j), x[j]); });
  }
}

}  // namespace batch_norm
