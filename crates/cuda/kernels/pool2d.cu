// Two-dimensional pooling in both layouts: maximum, average over fixed windows with padding counted as zeros, and
// average over adaptive windows. One thread computes one output.

#include "pool2d.cuh"

struct MaxPool2dParams {
  const void* input;
  void* output;
  i64* indices;  // of the maxima, h·W + w
  Pool2d geometry;
};

/// The first of equal maxima; NaN counts as largest.
template <class T> __device__ __forceinline__ void max_pool2d(const MaxPool2dParams& p) {
  const Pool2d& g = p.geometry;
  const u64 positions = g.height.input * g.width.input, step = plane_step(g);
  for_each(g.batch * g.channels.divisor * g.height.output * g.width.output, [&](u64 i) {
    const Place at = place_of(g, i, g.output_height, g.output_width);
    const T* plane = static_cast<const T*>(p.input) + plane_start(g, at, positions);
    const Range rows = window_at(g.height, g.output_height, false, at.row);
    const Range columns = window_at(g.width, g.output_width, false, at.column);
    u64 best = rows.start * g.width.input + columns.start;
    T max = plane[best * step];
    for (u64 row = rows.start; row < rows.end; row++) {
      for (u64 column = columns.start; column < columns.end; column++) {
        const u64 here = row * g.width.input + column;
        const T value = plane[here * step];
        if (value > max || (!(value == value) && max == max)) max = value, best = here;
      }
    }
    static_cast<T*>(p.output)[i] = max;
    p.indices[i] = static_cast<i64>(best);
  });
}

struct MaxPool2dBackwardParams {
  const void* grad_output;
  const i64* indices;
  void* grad_input;
  Pool2d geometry;
};

template <class T> __device__ __forceinline__ void max_pool2d_backward(const MaxPool2dBackwardParams& p) {
  const Pool2d& g = p.geometry;
  const u64 positions = g.height.output * g.width.output, step = plane_step(g);
  for_each(g.batch * g.channels.divisor * g.height.input * g.width.input, [&](u64 i) {
    const Place at = place_of(g, i, g.input_height, g.input_width);
    const u64 start = plane_start(g, at, positions);
    const i64 here = static_cast<i64>(at.row * g.width.input + at.column);
    const Range rows = windows_over(g.height, g.input_height, false, at.row);
    const Range columns = windows_over(g.width, g.input_width, false, at.column);
    T total = 0;
    for (u64 row = rows.start; row < rows.end; row++) {
      for (u64 column = columns.start; column < columns.end; column++) {
        const u64 window = start + (row * g.width.output + column) * step;
        if (p.indices[window] == here) total += static_cast<const T*>(p.grad_output)[window];
      }
    }
    static_cast<T*>(p.grad_input)[i] = total;
  });
}

struct AvgPool2dParams {
  const void* input;  // or the gradient of the output
  void* output;       // or the gradient of the input
  Pool2d geometry;
};

/// What the sum of a window is divided by: the whole kernel, or the size of an adaptive window.
__device__ __forceinline__ double window_size(const Pool2d& g, u64 row, u64 column) {
  if (!g.adaptive) return static_cast<double>(g.height.kernel * g.width.kernel);
  const Range rows = window_at(g.height, g.output_height, true, row);
  return static_cast<double>(rows.len() * window_at(g.width, g.output_width, true, column).len());
}

template <class T> __device__ __forceinline__ void avg_pool2d(const AvgPool2dParams& p) {
  const Pool2d& g = p.geometry;
  const u64 positions = g.height.input * g.width.input, step = plane_step(g);
  for_each(g.batch * g.channels.divisor * g.height.output * g.width.output, [&](u64 i) {
    const Place at = place_of(g, i, g.output_height, g.output_width);
    const T* plane = static_cast<const T*>(p.input) + plane_start(g, at, positions);
    const Range rows = window_at(g.height, g.output_height, g.adaptive, at.row);
    const Range columns = window_at(g.width, g.output_width, g.adaptive, at.column);
    double total = 0;
    for (u64 row = rows.start; row < rows.end; row++) {
      for (u64 column = columns.start; column < columns.end; column++) {
        total += plane[(row * g.width.input + column) * step];
      }
    }
    static_cast<T*>(p.output)[i] = static_cast<T>(total / window_size(g, at.row, at.column));
  });
}

template <class T> __device__ __forceinline__ void avg_pool2d_backward(const AvgPool2dParams& p) {
  const Pool2d& g = p.geometry;
  const u64 positions = g.height.output * g.width.output, step = plane_step(g);
  for_each(g.batch * g.channels.divisor * g.height.input * g.width.input, [&](u64 i) {
    const Place at = place_of(g, i, g.input_height, g.input_width);
    const T* plane = static_cast<const T*>(p.input) + plane_start(g, at, positions);
    const Range rows = windows_over(g.height, g.input_height, g.adaptive, at.row);
    const Range columns = windows_over(g.width, g.input_width, g.adaptive, at.column);
    T total = 0;
    for (u64 row = rows.start; row < rows.end; row++) {
      for (u64 column = columns.start; column < columns.end; column++) {
        const double gradient = plane[(row * g.width.output + column) * step];
        total += static_cast<T>(gradient / window_size(g, row, column));
      }
    }
    static_cast<T*>(p.output)[i] = total;
  });
}

#define POOL2D(dtype, T)                                                                             \
  KERNEL(max_pool2d_##dtype, MaxPool2dParams, 256, max_pool2d<T>(p))                                 \
  KERNEL(max_pool2d_backward_##dtype, MaxPool2dBackwardParams, 256, max_pool2d_backward<T>(p))       \
  KERNEL(avg_pool2d_##dtype, AvgPool2dParams, 256, avg_pool2d<T>(p))                                 \
  KERNEL(avg_pool2d_backward_##dtype, AvgPool2dParams, 256, avg_pool2d_backward<T>(p))
POOL2D(f32, float)
POOL2D(f64, double)
