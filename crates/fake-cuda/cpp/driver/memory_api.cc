// Allocation, of device and of pinned host memory, and what a pointer is.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "graph.h"
#include "memory.h"

using namespace fake;

static std::map<uint64_t, size_t>& pinned() {
  static auto* ranges = new std::map<uint64_t, size_t>;
  return *ranges;
}

bool fake::is_pinned(uint64_t pointer) {
  const auto next = pinned().upper_bound(pointer);
  if (next == pinned().begin()) return false;
  const auto& [start, bytes] = *std::prev(next);
  return pointer - start < bytes;
}

API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  *total = memory_limit();
  *free_bytes = memory_limit() - memory_used(context->device);
  return CUDA_SUCCESS;
}

API cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  TRY(unsafe_call());
  return allocate(*context, bytes, *pointer);
}

/// Waits for everything on the memory's device, as a real driver does.
static void wait_for_device(Lock& lock, int device) {
  std::vector<std::shared_ptr<Stream>> streams;
  for (auto& [handle, stream] : driver().streams) {
    if (stream->context->device == device) streams.push_back(stream);
  }
  for (auto& [ordinal, context] : driver().contexts) {
    if (ordinal == device && context->default_stream) streams.push_back(context->default_stream);
  }
  count(&FakeCounters::host_waits);
  lock.unlock();
  for (auto& stream : streams) stream->wait(stream->last_ticket());
  lock.lock();
}

API cuMemFree_v2(uint64_t pointer) {
  auto lock = lock_driver();
  Context* context;
  if (pointer == 0) return CUDA_SUCCESS;
  TRY(current_context(context));
  TRY(unsafe_call());
  Allocation* block = find_allocation(pointer);
  if (block == nullptr || block->start != pointer) return CUDA_ERROR_INVALID_VALUE;
  wait_for_device(lock, block->device);
  free_now(*find_allocation(pointer));
  return CUDA_SUCCESS;
}

/// Stream-ordered memory inside a capture would be a node of its own kind, which this driver does not have.
static CUresult refuse_memory_nodes(const Stream& stream) {
  return stream.capture == nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}

API cuMemAllocAsync(uint64_t* pointer, size_t bytes, const void* handle) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  TRY(refuse_memory_nodes(*stream));
  return allocate_in_stream(*stream, bytes, *pointer);
}

API cuMemFreeAsync(uint64_t pointer, const void* handle) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  TRY(refuse_memory_nodes(*stream));
  if (pointer == 0) return CUDA_SUCCESS;
  Allocation* block = find_allocation(pointer);
  if (block == nullptr || block->start != pointer) return CUDA_ERROR_INVALID_VALUE;
  return free_in_stream(*block, *stream);
}

API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  TRY(unsafe_call());
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  constexpr size_t PAGE = 4096;
  if (posix_memalign(pointer, PAGE, bytes) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
  std::memset(*pointer, 0xFF, bytes);
  pinned()[reinterpret_cast<uint64_t>(*pointer)] = bytes;
  return CUDA_SUCCESS;
}

API cuMemAllocHost_v2(void** pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }

API cuMemFreeHost(void* pointer) {
  auto lock = lock_driver();
  TRY(unsafe_call());
  if (pinned().erase(reinterpret_cast<uint64_t>(pointer)) == 0) return CUDA_ERROR_INVALID_VALUE;
  std::free(pointer);
  return CUDA_SUCCESS;
}

API cuMemHostGetDevicePointer_v2(uint64_t* device_pointer, void* pointer, unsigned) {
  auto lock = lock_driver();
  *device_pointer = reinterpret_cast<uint64_t>(pointer);
  return is_pinned(*device_pointer) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API cuMemGetAddressRange_v2(uint64_t* start, size_t* bytes, uint64_t pointer) {
  auto lock = lock_driver();
  const Allocation* block = find_allocation(pointer);
  if (block == nullptr) return CUDA_ERROR_NOT_FOUND;
  if (start != nullptr) *start = block->start;
  if (bytes != nullptr) *bytes = block->bytes;
  return CUDA_SUCCESS;
}

/// By the driver's numbers of memory types.
constexpr unsigned HOST_MEMORY = 1, DEVICE_MEMORY = 2;

static CUresult pointer_attribute(void* data, int attribute, uint64_t pointer) {
  const Allocation* block = find_allocation(pointer);
  if (block == nullptr && !is_pinned(pointer)) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case 1: {  // CONTEXT
      Context* context = block ? driver().contexts[block->device].get() : thread_state().context;
      std::memcpy(data, &context, sizeof context);
      return CUDA_SUCCESS;
    }
    case 2:  // MEMORY_TYPE
      *static_cast<unsigned*>(data) = block ? DEVICE_MEMORY : HOST_MEMORY;
      return CUDA_SUCCESS;
    case 3:  // DEVICE_POINTER
      *static_cast<uint64_t*>(data) = pointer;
      return CUDA_SUCCESS;
    case 8:  // IS_MANAGED
      *static_cast<unsigned*>(data) = 0;
      return CUDA_SUCCESS;
    case 9:  // DEVICE_ORDINAL
      *static_cast<int*>(data) = block ? block->device : 0;
      return CUDA_SUCCESS;
    case 11:  // RANGE_START_ADDR
      if (block == nullptr) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<uint64_t*>(data) = block->start;
      return CUDA_SUCCESS;
    case 12:  // RANGE_SIZE
      if (block == nullptr) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<size_t*>(data) = block->bytes;
      return CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
}

API cuPointerGetAttribute(void* data, int attribute, uint64_t pointer) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  return pointer_attribute(data, attribute, pointer);
}

/// Succeeds for a pointer the driver does not know: its attributes are then 0, the ordinal -2, as in a real driver.
API cuPointerGetAttributes(unsigned count, const int* attributes, void** data, uint64_t pointer) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  for (unsigned i = 0; i < count; i++) {
    const CUresult result = pointer_attribute(data[i], attributes[i], pointer);
    if (result == CUDA_ERROR_NOT_SUPPORTED) return CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) continue;
    constexpr int MEMORY_TYPE = 2, IS_MANAGED = 8, DEVICE_ORDINAL = 9, UNKNOWN_DEVICE = -2;
    const bool narrow = attributes[i] == MEMORY_TYPE || attributes[i] == IS_MANAGED || attributes[i] == DEVICE_ORDINAL;
    std::memset(data[i], 0, narrow ? sizeof(int) : sizeof(uint64_t));
    if (attributes[i] == DEVICE_ORDINAL) *static_cast<int*>(data[i]) = UNKNOWN_DEVICE;
  }
  return CUDA_SUCCESS;
}
