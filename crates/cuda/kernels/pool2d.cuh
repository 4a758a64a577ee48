// Windows of two-dimensional pooling, of fixed size or adaptive, from the side of the output and of the input.
//
// Gradients are gathered: every input element visits the windows that cover it, in their order, so nothing is added
// atomically.
#pragma once

#include "indexing.cuh"

/// One dimension of a pooling.
struct Window {
  u64 input, output;  // sizes
  u64 kernel, stride, padding;
};

/// Geometry of a pooling. Mirrored in src/ops/pool2d.rs.
struct Pool2d {
  u64 batch;
  u64 channels_last, adaptive;
  Window height, width;
  WideDivider channels, input_height, input_width, output_height, output_width;
};

struct Range {
  u64 start, end;

  __device__ __forceinline__ u64 len() const { return end - start; }
};

/// The input positions under window `i`, clipped to the input; of adaptive windows ⌊i·in/out⌋ … ⌈(i+1)·in/out⌉.
__device__ __forceinline__ Range window_at(const Window& w, const WideDivider& output, bool adaptive, u64 i) {
  if (adaptive) return {output.quotient(i * w.input), output.quotient((i + 1) * w.input + w.output - 1)};
  const u64 start = i * w.stride, end = start + w.kernel;
  return {start > w.padding ? start - w.padding : 0, lesser(end > w.padding ? end - w.padding : 0, w.input)};
}

/// The windows that cover input position `h`.
__device__ __forceinline__ Range windows_over(const Window& w, const WideDivider& input, bool adaptive, u64 h) {
  if (adaptive) return {input.quotient(h * w.output), input.quotient((h + 1) * w.output + w.input - 1)};
  const u64 last = h + w.padding;
  const u64 start = last < w.kernel ? 0 : (last - w.kernel) / w.stride + 1;
  return {start, lesser(last / w.stride + 1, w.output)};
}

/// An element (n, c, h, w).
struct Place {
  u64 sample, channel, row, column;
};

/// Element `i` of a tensor of so many rows and columns, in the order of its layout.
__device__ __forceinline__ Place place_of(const Pool2d& g, u64 i, const WideDivider& rows, const WideDivider& columns) {
  Place at;
  if (g.channels_last) at.channel = g.channels.split(i);
  at.column = columns.split(i);
  at.row = rows.split(i);
  if (!g.channels_last) at.channel = g.channels.split(i);
  at.sample = i;
  return at;
}

/// Offset of the first element of (sample, channel) in a tensor of so many positions a plane, and from one position to
/// the next.
__device__ __forceinline__ u64 plane_start(const Pool2d& g, const Place& at, u64 positions) {
  const u64 channels = g.channels.divisor, sample = at.sample * channels * positions;
  return g.channels_last ? sample + at.channel : sample + at.channel * positions;
}

__device__ __forceinline__ u64 plane_step(const Pool2d& g) { return g.channels_last ? g.channels.divisor : 1; }
