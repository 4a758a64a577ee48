// The slot (0, mean, 1/√(var + eps)) of statistics that are constants, those of eval mode.

#include "batch_norm_slot.cuh"

struct ConstantStatisticsParams {
  const void* mean;
  const void* var;
  u64* kept;
  double eps;
  u32 mean_dtype;
  u32 var_dtype;
  u32 channels;
  u32 unused;
};

__device__ __forceinline__ void constant_statistics(const ConstantStatisticsParams& p) {
  const u64 channel = grid_thread();
  if (channel >= p.channels) return;
  if (channel == 0) p.kept[0] = 0;
  const double mean = load_as<double>(p.mean, p.mean_dtype, channel);
  const double var = load_as<double>(p.var, p.var_dtype, channel);
  batch_norm::store_entry(p.kept, p.channels, channel, mean, 1.0 / square_root(var + p.eps));
}

KERNEL(batch_norm_constant_statistics, ConstantStatisticsParams, 256, constant_statistics(p))
