// Fills a block's shared memory with 0xFF before it runs, so that reading what no thread wrote gives NaN.
//
// Static __shared__ arrays are thread-local variables of this library or program, so the whole of its thread-local
// memory is filled, the shim's own pointer excepted. Other code of the same library or program must therefore keep no
// thread-local variables on threads that launch kernels.
#pragma once
#include <link.h>

#include <cstring>

#include "block.h"

namespace shim {

/// Where the thread-local memory of this library lies in relation to `runner`.
struct ThreadLocalMemory {
  ptrdiff_t before = 0;
  size_t bytes = 0;
};

inline ThreadLocalMemory find_thread_local_memory() {
  ThreadLocalMemory found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const char* start = static_cast<const char*>(info->dlpi_tls_data);
        const char* mine = reinterpret_cast<const char*>(&runner);
        for (unsigned i = 0; start != nullptr && i < info->dlpi_phnum; i++) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type != PT_TLS || mine < start || mine >= start + header.p_memsz) continue;
          *static_cast<ThreadLocalMemory*>(out) = {mine - start, header.p_memsz};
          return 1;
        }
        return 0;
      },
      &found);
  return found;
}

inline void poison_static_shared() {
  static const ThreadLocalMemory memory = find_thread_local_memory();
  BlockRunner* kept = runner;
  std::memset(reinterpret_cast<char*>(&runner) - memory.before, 0xFF, memory.bytes);
  runner = kept;
}

/// Dynamic shared memory of a block: 16-byte aligned and no better, followed by bytes that must stay as they are.
class DynamicShared {
 public:
  explicit DynamicShared(size_t bytes) : bytes_(bytes) {
    memory_ = static_cast<char*>(std::malloc(bytes + FENCE_BYTES + 2 * ALIGNMENT));
    if (memory_ == nullptr) fatal("no memory for %zu bytes of dynamic shared memory", bytes);
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    start_ = memory_ + (2 * ALIGNMENT - address % (2 * ALIGNMENT)) % (2 * ALIGNMENT);
    if (reinterpret_cast<uintptr_t>(start_) % (2 * ALIGNMENT) == 0) start_ += ALIGNMENT;
    std::memset(start_ + bytes_, FENCE, FENCE_BYTES - ALIGNMENT);
  }
  ~DynamicShared() { std::free(memory_); }
  DynamicShared(const DynamicShared&) = delete;

  char* start() const { return start_; }
  void poison() { std::memset(start_, 0xFF, bytes_); }
  bool overrun() const {
    for (size_t i = 0; i < FENCE_BYTES - ALIGNMENT; i++) {
      if (start_[bytes_ + i] != FENCE) return true;
    }
    return false;
  }

 private:
  static constexpr size_t ALIGNMENT = 16, FENCE_BYTES = 80;
  static constexpr char FENCE = 0x5C;
  size_t bytes_;
  char *memory_, *start_;
};

}  // namespace shim
