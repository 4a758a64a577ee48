// Reductions over element types and operations.
#include "reduce.h"

#include <algorithm>
#include <type_traits>

#include "shim/half.h"

namespace nccl {
namespace {

template <class T>
T load(T value) { return value; }
float load(__half value) { return __half2float(value); }
float load(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T, class V>
T store(V value) {
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(value);
  else return T(value);
}

/// Integers wrap around, as on the device.
template <class V>
V add(V a, V b) {
  if constexpr (std::is_integral_v<V>) return V(std::make_unsigned_t<V>(a) + std::make_unsigned_t<V>(b));
  else return a + b;
}
template <class V>
V multiply(V a, V b) {
  if constexpr (std::is_integral_v<V>) return V(uint64_t(a) * uint64_t(b));
  else return a * b;
}

template <class V>
V combine(int operation, V a, V b) {
  switch (operation) {
    case ncclProd: return multiply(a, b);
    case ncclMax: return std::max(a, b);
    case ncclMin: return std::min(a, b);
    default: return add(a, b);
  }
}

template <class T>
void reduce_as(int operation, const char* const* of_rank, int ranks, int first, size_t count, char* to) {
  for (size_t i = 0; i < count; i++) {
    T sum = reinterpret_cast<const T*>(of_rank[first])[i];
    for (int step = 1; step < ranks; step++) {
      const T next = reinterpret_cast<const T*>(of_rank[(first + step) % ranks])[i];
      sum = store<T>(combine(operation, load(sum), load(next)));
    }
    if (operation == ncclAvg) sum = store<T>(load(sum) / decltype(load(sum))(ranks));
    reinterpret_cast<T*>(to)[i] = sum;
  }
}

}  // namespace

void reduce(const Call& call, const char* const* of_rank, int ranks, int first, size_t bytes, char* to) {
  const auto as = [&]<class T>(T) { reduce_as<T>(call.operation, of_rank, ranks, first, bytes / sizeof(T), to); };
  switch (call.type) {
    case ncclInt8: return as(int8_t{});
    case ncclUint8: return as(uint8_t{});
    case ncclInt32: return as(int32_t{});
    case ncclUint32: return as(uint32_t{});
    case ncclInt64: return as(int64_t{});
    case ncclUint64: return as(uint64_t{});
    case ncclFloat16: return as(__half{});
    case ncclFloat32: return as(float{});
    case ncclFloat64: return as(double{});
    case ncclBfloat16: return as(__nv_bfloat16{});
  }
}

}  // namespace nccl
