// Copies and fills, each checked against the allocations it touches. A copy from or to pinned memory happens in stream
// order and reads or writes the host's memory only then; one of pageable memory blocks the host.
#include <cstring>

#include "graph.h"
#include "memory.h"

using namespace fake;

namespace {

/// One end of a copy.
struct End {
  uint64_t address;
  bool on_device;
};

End device_end(uint64_t pointer) { return {pointer, true}; }
End host_end(const void* pointer) { return {reinterpret_cast<uint64_t>(pointer), false}; }

bool valid(const End& end, size_t bytes) {
  return end.on_device ? find_allocation(end.address, bytes) != nullptr : end.address != 0;
}

bool pageable(const End& end) { return !end.on_device && !is_pinned(end.address); }

void note(Stream& stream, uint64_t ticket, const End& end, const char* what) {
  if (end.on_device) note_use(stream, ticket, end.address, what);
}

void count_copy(const End& to, const End& from) {
  if (!from.on_device) count(&FakeCounters::copies_to_device);
  else if (!to.on_device) count(&FakeCounters::copies_to_host);
  else count(&FakeCounters::copies_on_device);
}

CUresult enqueue_copy(Lock& lock, Stream& stream, End to, End from, size_t bytes, bool synchronous) {
  if (bytes == 0) return CUDA_SUCCESS;
  if (!valid(to, bytes) || !valid(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
  const bool blocks = synchronous || pageable(to) || pageable(from);
  if (blocks) TRY(refuse_in_capture(stream));
  if (synchronous) TRY(unsafe_call());
  const auto run = [to, from, bytes] {
    std::memmove(reinterpret_cast<void*>(to.address), reinterpret_cast<const void*>(from.address), bytes);
  };
  const auto enqueued = [to, from](Stream& in, uint64_t ticket) {
    note(in, ticket, to, "a copy");
    note(in, ticket, from, "a copy");
  };
  TRY(submit(stream, {run, enqueued}));
  count_copy(to, from);
  if (blocks && !(synchronous && to.on_device && from.on_device)) host_wait(lock, stream);
  return CUDA_SUCCESS;
}

CUresult copy(End to, End from, size_t bytes, const void* handle, bool synchronous) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  return enqueue_copy(lock, *stream, to, from, bytes, synchronous);
}

/// Fills `count` elements with one value. Who fills a whole allocation with NaN is done with what was in it, on every
/// stream: so a program that keeps freed memory lets this driver find uses that nothing has waited for.
template <class T>
CUresult fill(uint64_t to, T value, size_t count, const void* handle, bool synchronous) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  if (synchronous) TRY(unsafe_call());
  if (count == 0) return CUDA_SUCCESS;
  const Allocation* block = find_allocation(to, count * sizeof(T));
  if (to % sizeof(T) != 0 || block == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const bool poisons = value == T(~T{}) && block->start == to && block->bytes == count * sizeof(T);
  if (poisons && stream->capture == nullptr) check_unused(*block, *stream, "filled with NaN");
  const auto run = [to, value, count] { std::fill_n(reinterpret_cast<T*>(to), count, value); };
  const auto enqueued = [to](Stream& in, uint64_t ticket) { note_use(in, ticket, to, "a fill"); };
  TRY(submit(*stream, {run, enqueued}));
  fake::count(&FakeCounters::memsets);
  return CUDA_SUCCESS;
}

}  // namespace

API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, const void* stream) {
  return copy(device_end(to), host_end(from), bytes, stream, false);
}
API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, const void* stream) {
  return copy(host_end(to), device_end(from), bytes, stream, false);
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, const void* stream) {
  return copy(device_end(to), device_end(from), bytes, stream, false);
}
API cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  return copy(device_end(to), host_end(from), bytes, nullptr, true);
}
API cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  return copy(host_end(to), device_end(from), bytes, nullptr, true);
}
/// On the device the host is not made to wait, as the driver's documentation of synchronisation says.
API cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
  return copy(device_end(to), device_end(from), bytes, nullptr, true);
}

/// What a pointer is, for the calls that find out themselves.
static End any_end(uint64_t pointer) {
  auto lock = lock_driver();
  return {pointer, find_allocation(pointer) != nullptr};
}

API cuMemcpyAsync(uint64_t to, uint64_t from, size_t bytes, const void* stream) {
  return copy(any_end(to), any_end(from), bytes, stream, false);
}
API cuMemcpy(uint64_t to, uint64_t from, size_t bytes) {
  return copy(any_end(to), any_end(from), bytes, nullptr, true);
}

/// Needs no peer access: the driver stages through the host where there is none.
API cuMemcpyPeerAsync(uint64_t to, Context* to_context, uint64_t from, Context* from_context, size_t bytes,
                      const void* handle) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  const Allocation *target = find_allocation(to, bytes), *source = find_allocation(from, bytes);
  const bool valid = target != nullptr && source != nullptr && to_context != nullptr && from_context != nullptr &&
                     target->device == to_context->device && source->device == from_context->device;
  if (!valid) return CUDA_ERROR_INVALID_VALUE;
  TRY(submit(*stream, {[to, from, bytes] {
                         std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
                       },
                       {}}));
  count(&FakeCounters::copies_on_device);
  return CUDA_SUCCESS;
}

API cuMemsetD8Async(uint64_t to, unsigned char value, size_t count, const void* stream) {
  return fill<uint8_t>(to, value, count, stream, false);
}
API cuMemsetD16Async(uint64_t to, unsigned short value, size_t count, const void* stream) {
  return fill<uint16_t>(to, value, count, stream, false);
}
API cuMemsetD32Async(uint64_t to, unsigned value, size_t count, const void* stream) {
  return fill<uint32_t>(to, value, count, stream, false);
}
API cuMemsetD8_v2(uint64_t to, unsigned char value, size_t count) {
  return fill<uint8_t>(to, value, count, nullptr, true);
}
API cuMemsetD32_v2(uint64_t to, unsigned value, size_t count) {
  return fill<uint32_t>(to, value, count, nullptr, true);
}
