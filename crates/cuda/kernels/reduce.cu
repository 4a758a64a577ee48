// Sums over any dimensions and the position of maxima along one.
//
// Sums are made in double, so their error does not grow with the number of terms. Where there are few outputs, several
// blocks share one: their partial sums are doubles, which a second launch of the same kernel adds up.

#include "lanes.cuh"

struct SumParams {
  const void* input;
  void* output;     // [blocks of y][outputs]
  u64 outputs;      // positions of `kept`
  u64 terms;        // positions of `reduced`
  u64 split_terms;  // how many of them a block of y adds
  double scale;     // of the sums
  u32 lanes, adjacent;
  Space<1> kept, reduced;
};

template <class In, class Out> __device__ __forceinline__ void sum(const SumParams& p) {
  const In* input = static_cast<const In*>(p.input);
  Out* output = static_cast<Out*>(p.output) + blockIdx.y * p.outputs;
  const Lanes lanes(p.lanes, p.adjacent != 0);
  const u64 start = blockIdx.y * p.split_terms, end = lesser(start + p.split_terms, p.terms);
  lanes.for_each_line(p.outputs, [&](u64 line) {
    double total = 0;
    if (line < p.outputs) {
      const In* base = input + locate(p.kept, line);
      if (p.reduced.dimensions == 1) {
        const u64 stride = p.reduced.strides[0][0];
#pragma unroll 4
        for (u64 term = start + lanes.lane; term < end; term += lanes.lanes) total += base[term * stride];
      } else {
#pragma unroll 1
        for (u64 term = start + lanes.lane; term < end; term += lanes.lanes) total += base[locate(p.reduced, term)];
      }
    }
    total = lanes.reduce(total, [](double a, double b) { return a + b; });
    if (line < p.outputs && lanes.lane == 0) output[line] = static_cast<Out>(total * p.scale);
  });
}

KERNEL(sum_f32_f32, SumParams, 256, sum<float, float>(p))
KERNEL(sum_f32_f64, SumParams, 256, sum<float, double>(p))
KERNEL(sum_f64_f32, SumParams, 256, sum<double, float>(p))
KERNEL(sum_f64_f64, SumParams, 256, sum<double, double>(p))

struct ArgmaxParams {
  const void* input;
  i64* output;  // one for each line
  Along along;
  u32 lanes, adjacent;
};

template <class T> struct Candidate {
  T value;
  u64 index;
};

template <class T> __device__ __forceinline__ void argmax(const ArgmaxParams& p) {
  const T* input = static_cast<const T*>(p.input);
  const Lanes lanes(p.lanes, p.adjacent != 0);
  lanes.for_each_line(p.along.lines(), [&](u64 line) {
    const bool inside = line < p.along.lines();
    const T* base = input + (inside ? p.along.start(line) : 0);
    // A lane beyond the end of a short line repeats the first element, which then wins or loses as the first lane's.
    const u64 first = lanes.lane < p.along.size ? lanes.lane : 0;
    Candidate<T> best{base[first * p.along.step()], first};
    for (u64 k = first + lanes.lanes; k < p.along.size; k += lanes.lanes) {
      const T value = base[k * p.along.step()];
      if (exceeds(value, best.value)) best = {value, k};
    }
    best = lanes.reduce(best, [](Candidate<T> a, Candidate<T> b) {
      const bool replaces = exceeds(b.value, a.value) || (!exceeds(a.value, b.value) && b.index < a.index);
      return replaces ? b : a;
    });
    if (inside && lanes.lane == 0) p.output[line] = static_cast<i64>(best.index);
  });
}

KERNEL(argmax_f32, ArgmaxParams, 256, argmax<float>(p))
KERNEL(argmax_f64, ArgmaxParams, 256, argmax<double>(p))
