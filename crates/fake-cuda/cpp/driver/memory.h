// Device memory is host memory, poisoned when allocated and when freed. The driver remembers who used it last, so that
// freeing what another stream may still use is found in every schedule.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "stream.h"

namespace fake {

/// The last work of one stream that was given this memory.
struct Use {
  std::shared_ptr<Stream> stream;
  uint64_t ticket;
  const char* what;
};

struct Allocation {
  uint64_t start;
  size_t bytes;
  int device;
  std::map<uint64_t, Use> uses;  // by stream number
};

/// Bytes of a device: FAKE_CUDA_MEMORY, 4 GiB by default.
size_t memory_limit();
size_t memory_used(int device);

CUresult allocate(Context& context, size_t bytes, uint64_t& pointer);
CUresult allocate_in_stream(Stream& stream, size_t bytes, uint64_t& pointer);
/// Poisons and takes back memory nobody uses any more.
void free_now(Allocation& allocation);
/// Poisons the memory in the order of the stream; at once no later call may name it.
CUresult free_in_stream(Allocation& allocation, Stream& stream);

/// Ends the process if another stream may still use the memory when this one does what it is given next.
void check_unused(const Allocation& allocation, Stream& stream, const char* how);

/// The allocation that holds all of these bytes.
Allocation* find_allocation(uint64_t pointer, size_t bytes = 1);

/// Notes that work of this stream uses the memory a pointer names, if any. Ends the process if it is freed, or another
/// device's that this one cannot reach.
void note_use(Stream& stream, uint64_t ticket, uint64_t pointer, const char* what);

bool is_pinned(uint64_t pointer);

}  // namespace fake
