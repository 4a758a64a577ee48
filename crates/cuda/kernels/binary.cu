// a + b, a − b, a · b, a / b: on equal layouts, with broadcasting, and with a scalar. Half types are computed in float.

#include "elementwise.cuh"

enum BinaryCode : u32 { ADD = 0, SUB = 1, MUL = 2, DIV = 3 };

template <class A> __device__ __forceinline__ A operate(u32 code, A a, A b) {
  switch (code) {
    case ADD: return a + b;
    case SUB: return a - b;
    case MUL: return a * b;
    default: return a / b;
  }
}

/// Calls body(f) with f(a, b) the operation of `code`.
template <class A, class Body> __device__ __forceinline__ void with_operation(u32 code, const Body& body) {
  switch (code) {
    case ADD: body([](A a, A b) { return a + b; }); break;
    case SUB: body([](A a, A b) { return a - b; }); break;
    case MUL: body([](A a, A b) { return a * b; }); break;
    default: body([](A a, A b) { return a / b; }); break;
  }
}

struct BinaryParams {
  const void* a;
  const void* b;
  void* output;  // may be a or b
  u64 len;
  u32 code, unused;
};

template <class T> __device__ __forceinline__ void binary(const BinaryParams& p) {
  const T* a = static_cast<const T*>(p.a);
  const T* b = static_cast<const T*>(p.b);
  with_operation<Accumulate<T>>(p.code, [&](auto f) { map(a, b, static_cast<T*>(p.output), p.len, f); });
}

struct BinaryBroadcastParams {
  const void* a;
  const void* b;
  void* output;  // dense
  u64 len;
  u32 code, unused;
  Space<2> space;  // a, b
};

template <class T> __device__ __forceinline__ void binary_broadcast(const BinaryBroadcastParams& p) {
  const T* a = static_cast<const T*>(p.a);
  const T* b = static_cast<const T*>(p.b);
  T* output = static_cast<T*>(p.output);
  for_each(p.len, [&](u64 i) {
    u64 offsets[2];
    locate(p.space, i, offsets);
    output[i] = from_accumulate<T>(operate(p.code, to_accumulate(a[offsets[0]]), to_accumulate(b[offsets[1]])));
  });
}

struct BinaryScalarParams {
  const void* a;
  void* output;  // may be a
  u64 len;
  double scalar;
  u32 code, unused;
};

template <class T> __device__ __forceinline__ void binary_scalar(const BinaryScalarParams& p) {
  using A = Accumulate<T>;
  const T* a = static_cast<const T*>(p.a);
  const A b = static_cast<A>(p.scalar);
  with_operation<A>(p.code, [&](auto f) {
    map(a, static_cast<T*>(p.output), p.len, [=](A value) { return f(value, b); });
  });
}

#define BINARY(dtype, T)                                                                 \
  KERNEL(binary_##dtype, BinaryParams, 256, binary<T>(p))                                \
  KERNEL(binary_broadcast_##dtype, BinaryBroadcastParams, 256, binary_broadcast<T>(p))   \
  KERNEL(binary_scalar_##dtype, BinaryScalarParams, 256, binary_scalar<T>(p))
BINARY(f32, float)
BINARY(f64, double)
BINARY(f16, __half)
BINARY(bf16, __nv_bfloat16)

struct AddBiasParams {
  void* data;        // outer × size × inner
  const void* bias;  // size
  u64 len;
  WideDivider size, inner;
};

/// data[…, c, …] += bias[c]
template <class T> __device__ __forceinline__ void add_bias(const AddBiasParams& p) {
  T* data = static_cast<T*>(p.data);
  const T* bias = static_cast<const T*>(p.bias);
  for_each(p.len, [&](u64 i) {
    u64 row = p.inner.quotient(i);
    data[i] += bias[p.size.split(row)];
  });
}

KERNEL(add_bias_f32, AddBiasParams, 256, add_bias<float>(p))
KERNEL(add_bias_f64, AddBiasParams, 256, add_bias<double>(p))
