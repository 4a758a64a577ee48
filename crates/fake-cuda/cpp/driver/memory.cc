// The table of device memory: live allocations, and freed ones that are kept a while to find who still writes to them.
#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>

namespace fake {
namespace {

constexpr uint8_t POISON = 0xFF, FENCE = 0x5C;
constexpr size_t ALIGNMENT = 256;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t FENCE_BYTES = 0;  // AddressSanitizer's own red zones are exact
constexpr size_t QUARANTINE_BYTES = 0;
#else
constexpr size_t FENCE_BYTES = 256;
constexpr size_t QUARANTINE_BYTES = 64 << 20;
#endif

/// A freed block. One freed in stream order may go to another stream's allocation at once, as a pool would do it.
struct Freed {
  Allocation allocation;
  std::shared_ptr<Stream> stream;  // null: freed at once
  uint64_t ticket;
  bool poisoned() const { return !stream || stream->done(ticket); }
};

struct Memory {
  std::map<uint64_t, Allocation> live;
  std::map<uint64_t, Freed> freed;
  std::deque<uint64_t> freed_order;
  size_t freed_bytes = 0;
  std::map<int, size_t> used;
};

Memory& memory() {
  static auto* one = new Memory;
  return *one;
}

template <class Table>
auto containing(Table& table, uint64_t pointer) {
  auto next = table.upper_bound(pointer);
  return next == table.begin() ? table.end() : std::prev(next);
}

uint8_t* bytes_at(uint64_t address) { return reinterpret_cast<uint8_t*>(address); }

bool all_are(uint64_t from, size_t bytes, uint8_t value) {
  return std::all_of(bytes_at(from), bytes_at(from) + bytes, [value](uint8_t byte) { return byte == value; });
}

void check_fences(const Allocation& block) {
  const bool whole = all_are(block.start - FENCE_BYTES, FENCE_BYTES, FENCE) &&
                     all_are(block.start + block.bytes, FENCE_BYTES, FENCE);
  if (!whole) misuse("device memory was written outside an allocation of %zu bytes", block.bytes);
}

/// Gives the oldest freed blocks back to the C library until no more than the bound is kept.
void trim_quarantine() {
  auto& all = memory();
  for (size_t i = all.freed_order.size(); i > 0 && all.freed_bytes > QUARANTINE_BYTES; i--) {
    const uint64_t start = all.freed_order.front();
    all.freed_order.pop_front();
    const auto found = all.freed.find(start);
    if (found == all.freed.end()) continue;
    const Allocation& block = found->second.allocation;
    if (!found->second.poisoned()) {
      all.freed_order.push_back(start);
      continue;
    }
    if (FENCE_BYTES > 0 && !all_are(start, block.bytes, POISON)) {
      misuse("device memory of %zu bytes was written after it was freed", block.bytes);
    }
    all.freed_bytes -= block.bytes;
    std::free(bytes_at(start - FENCE_BYTES));
    all.freed.erase(found);
  }
}

void add_live(uint64_t start, size_t bytes, int device) {
  memory().live[start] = {start, bytes, device, {}};
  memory().used[device] += bytes;
  count(&FakeCounters::allocations);
  count(&FakeCounters::live_bytes, int64_t(bytes));
}

void move_to_freed(Allocation& allocation, std::shared_ptr<Stream> stream, uint64_t ticket) {
  auto& all = memory();
  Allocation block = std::move(allocation);
  all.live.erase(block.start);
  all.used[block.device] -= block.bytes;
  count(&FakeCounters::frees);
  count(&FakeCounters::live_bytes, -int64_t(block.bytes));
  block.uses.clear();
  const uint64_t start = block.start;
  all.freed_bytes += block.bytes;
  all.freed_order.push_back(start);
  all.freed[start] = {std::move(block), std::move(stream), ticket};
  trim_quarantine();
}

/// A block of this size that a stream freed, with what must come before its next use.
std::map<uint64_t, Freed>::iterator find_reusable(int device, size_t bytes) {
  auto& freed = memory().freed;
  return std::find_if(freed.begin(), freed.end(), [&](auto& entry) {
    return entry.second.stream && entry.second.allocation.device == device && entry.second.allocation.bytes == bytes;
  });
}

}  // namespace

size_t memory_limit() { return setting("FAKE_CUDA_MEMORY", uint64_t{4} << 30); }
size_t memory_used(int device) { return memory().used[device]; }

CUresult allocate(Context& context, size_t bytes, uint64_t& pointer) {
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (bytes > memory_limit() - std::min(memory_limit(), memory_used(context.device))) return CUDA_ERROR_OUT_OF_MEMORY;
  void* block = nullptr;
  if (posix_memalign(&block, ALIGNMENT, bytes + 2 * FENCE_BYTES) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
  const uint64_t start = reinterpret_cast<uint64_t>(block) + FENCE_BYTES;
  std::memset(bytes_at(start - FENCE_BYTES), FENCE, FENCE_BYTES);
  std::memset(bytes_at(start), POISON, bytes);
  std::memset(bytes_at(start + bytes), FENCE, FENCE_BYTES);
  add_live(start, bytes, context.device);
  pointer = start;
  return CUDA_SUCCESS;
}

CUresult allocate_in_stream(Stream& stream, size_t bytes, uint64_t& pointer) {
  const auto found = find_reusable(stream.context->device, bytes);
  if (found == memory().freed.end()) return allocate(*stream.context, bytes, pointer);
  // Handed on while the stream that freed it is still busy; only this stream is made to wait for that.
  const Freed freed = found->second;
  memory().freed_bytes -= bytes;
  memory().freed.erase(found);
  std::erase(memory().freed_order, freed.allocation.start);
  add_live(freed.allocation.start, bytes, freed.allocation.device);
  pointer = freed.allocation.start;
  return submit(stream, {[source = freed.stream, ticket = freed.ticket] { source->wait(ticket); }, {}});
}

void free_now(Allocation& allocation) {
  check_fences(allocation);
  std::memset(bytes_at(allocation.start), POISON, allocation.bytes);
  move_to_freed(allocation, nullptr, 0);
}

void check_unused(const Allocation& allocation, Stream& stream, const char* how) {
  for (const auto& [number, use] : allocation.uses) {
    if (ordered_before_next(stream, *use.stream, use.ticket)) continue;
    misuse("%zu bytes are %s in the order of one stream while %s may still use them in another: an event is missing",
           allocation.bytes, how, use.what);
  }
}

CUresult free_in_stream(Allocation& allocation, Stream& stream) {
  check_unused(allocation, stream, "freed");
  check_fences(allocation);
  const auto start = allocation.start;
  const auto bytes = allocation.bytes;
  TRY(submit(stream, {[start, bytes] { std::memset(bytes_at(start), POISON, bytes); }, {}}));
  move_to_freed(allocation, stream.shared_from_this(), stream.clock[stream.number]);
  return CUDA_SUCCESS;
}

Allocation* find_allocation(uint64_t pointer, size_t bytes) {
  const auto found = containing(memory().live, pointer);
  if (found == memory().live.end()) return nullptr;
  Allocation& block = found->second;
  const uint64_t offset = pointer - block.start;
  return offset <= block.bytes && bytes <= block.bytes - offset ? &block : nullptr;
}

void note_use(Stream& stream, uint64_t ticket, uint64_t pointer, const char* what) {
  if (Allocation* block = find_allocation(pointer)) {
    const int device = stream.context->device;
    if (block->device != device && stream.context->peers.count(block->device) == 0) {
      misuse("%s runs on device %d and is given memory of device %d", what, device, block->device);
    }
    block->uses[stream.number] = {stream.shared_from_this(), ticket, what};
    return;
  }
  const auto found = containing(memory().freed, pointer);
  if (found != memory().freed.end() && pointer < found->first + found->second.allocation.bytes) {
    misuse("%s is given memory that has been freed", what);
  }
}

}  // namespace fake
