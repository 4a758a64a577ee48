// The patches of a convolution (im2col), and the sum of patches where they came from (col2im).
//
// Of each sample and group, the patches of contiguous tensors are a K × P matrix, K = C/groups·KH·KW in the order of
// the weights (channel, row, column), P output positions. Those of channels-last tensors are P × groups × K with K in
// the order (row, column, channel), so that rows are moved whole in both layouts. A launch does some samples, or some
// positions of one sample.

#include "indexing.cuh"

/// Mirrored in src/ops/patches.rs.
struct PatchParams {
  const void* input;  // im2col: the samples; col2im: the patches
  void* output;       // im2col: the patches; col2im: the samples
  u64 samples, first_position;
  u64 height, width;
  u64 kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
  u64 accumulate;  // col2im adds to the samples instead of replacing them
  WideDivider channels, group_channels, positions, output_width;  // positions: of this launch
  WideDivider input_height, input_width;                          // height and width again
  WideDivider stride_rows, stride_columns;                        // the strides again
  u64 output_height;
};

/// Elements from the first tap of a channel's patch to the next tap, in the matrix of patches.
__device__ __forceinline__ u64 tap_step(const PatchParams& p, bool last) {
  return last ? p.group_channels.divisor : p.positions.divisor;
}

/// Elements from one position's patch to the next.
__device__ __forceinline__ u64 position_step(const PatchParams& p, bool last) {
  return last ? p.channels.divisor * p.kernel_height * p.kernel_width : 1;
}

/// Offset of the first tap of (sample, channel, position) in the matrix of patches.
__device__ __forceinline__ u64 patch_start(const PatchParams& p, bool last, u64 sample, u64 channel, u64 position) {
  const u64 taps = p.kernel_height * p.kernel_width, positions = p.positions.divisor, channels = p.channels.divisor;
  if (!last) return ((sample * channels + channel) * taps) * positions + position;
  u64 group = channel;
  const u64 inner = p.group_channels.split(group), size = p.group_channels.divisor * taps;
  return (sample * positions + position) * position_step(p, last) + group * size + inner;
}

/// Offset of (sample, channel, row, column) in the samples.
__device__ __forceinline__ u64 sample_offset(const PatchParams& p, bool last, u64 sample, u64 channel, u64 position) {
  const u64 plane = p.height * p.width, channels = p.channels.divisor;
  return last ? (sample * plane + position) * channels + channel : (sample * channels + channel) * plane + position;
}

/// A thread copies all taps of one channel at one position.
template <class T, bool LAST> __device__ __forceinline__ void im2col(const PatchParams& p) {
  const T* samples = static_cast<const T*>(p.input);
  T* patches = static_cast<T*>(p.output);
  for_each(p.samples * p.positions.divisor * p.channels.divisor, [&](u64 rest) {
    u64 channel = 0;
    if (LAST) channel = p.channels.split(rest);
    const u64 position = p.positions.split(rest);
    if (!LAST) channel = p.channels.split(rest);
    u64 row = p.first_position + position;
    const u64 column = p.output_width.split(row) * p.stride_width, top = row * p.stride_height;
    T* patch = patches + patch_start(p, LAST, rest, channel, position);
    for (u64 i = 0; i < p.kernel_height; i++) {
      // Positions in the padding wrap below zero and are above the size.
      const u64 y = top + i - p.padding_height;
      for (u64 j = 0; j < p.kernel_width; j++, patch += tap_step(p, LAST)) {
        const u64 x = column + j - p.padding_width;
        const bool inside = y < p.height && x < p.width;
        *patch = inside ? samples[sample_offset(p, LAST, rest, channel, y * p.width + x)] : T(0);
      }
    }
  });
}

/// The first output index whose window reaches `at` (an input index plus the padding), and one past the last.
struct Reach {
  u64 start, end;

  __device__ __forceinline__ Reach(u64 at, u64 kernel, const WideDivider& stride, u64 output)
      : start(at < kernel ? 0 : stride.quotient(at - kernel) + 1), end(lesser(stride.quotient(at) + 1, output)) {}
};

/// A thread gathers one element of the samples from the patches that hold it, in the order of their positions.
template <class T, bool LAST> __device__ __forceinline__ void col2im(const PatchParams& p) {
  const T* patches = static_cast<const T*>(p.input);
  T* samples = static_cast<T*>(p.output);
  for_each(p.samples * p.channels.divisor * p.height * p.width, [&](u64 index) {
    u64 rest = index, channel = 0;
    if (LAST) channel = p.channels.split(rest);
    const u64 x = p.input_width.split(rest) + p.padding_width, y = p.input_height.split(rest) + p.padding_height;
    if (!LAST) channel = p.channels.split(rest);
    const Reach rows(y, p.kernel_height, p.stride_rows, p.output_height);
    const Reach columns(x, p.kernel_width, p.stride_columns, p.output_width.divisor);
    // The element is at position row·W' + column − first, tap (y − row·stride)·KW + x − column·stride: a sum of what
    // depends on the row, on the column, and on neither. Steps below zero wrap around.
    const u64 row_step = p.output_width.divisor * position_step(p, LAST) -
                         p.stride_height * p.kernel_width * tap_step(p, LAST);
    const u64 column_step = position_step(p, LAST) - p.stride_width * tap_step(p, LAST);
    const u64 start = patch_start(p, LAST, rest, channel, 0) + (y * p.kernel_width + x) * tap_step(p, LAST) -
                      p.first_position * position_step(p, LAST);
    T total = p.accumulate ? samples[index] : T(0);
    for (u64 row = rows.start; row < rows.end; row++) {
      for (u64 column = columns.start; column < columns.end; column++) {
        // Positions before the first of this launch wrap around and are above the number of positions.
        const u64 position = row * p.output_width.divisor + column - p.first_position;
        if (position < p.positions.divisor) total += patches[start + row * row_step + column * column_step];
      }
    }
    samples[index] = total;
  });
}

#define PATCHES(dtype, T)                                                                   \
  KERNEL(im2col_contiguous_##dtype, PatchParams, 256, im2col<T, false>(p))                  \
  KERNEL(im2col_channels_last_##dtype, PatchParams, 256, im2col<T, true>(p))                \
  KERNEL(col2im_contiguous_##dtype, PatchParams, 256, col2im<T, false>(p))                  \
  KERNEL(col2im_channels_last_##dtype, PatchParams, 256, col2im<T, true>(p))
PATCHES(f32, float)
PATCHES(f64, double)
