// Counters and the names of launched kernels, as exported to the Rust crate.
#include "counters.h"

#include <cstring>
#include <deque>
#include <mutex>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fake {
namespace {

/// Names are kept of this many launches.
constexpr size_t LAUNCHES_KEPT = 1 << 16;

struct Launches {
  std::mutex mutex;
  std::deque<const char*> names;  // of registered kernels, which live for ever
};

Launches& launches() {
  static auto* list = new Launches;
  return *list;
}

}  // namespace

FakeCounters& counters() {
  static FakeCounters all;
  return all;
}

void record_launch(const char* kernel) {
  count(&FakeCounters::kernel_launches);
  std::lock_guard lock(launches().mutex);
  if (launches().names.size() == LAUNCHES_KEPT) launches().names.pop_front();
  launches().names.push_back(kernel);
}

}  // namespace fake

EXPORT void fake_counters(FakeCounters* out) {
  auto* from = reinterpret_cast<const uint64_t*>(&fake::counters());
  auto* to = reinterpret_cast<uint64_t*>(out);
  for (size_t i = 0; i < sizeof(FakeCounters) / sizeof(uint64_t); i++) {
    to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
  }
}

/// Sets every counter but `live_bytes` to 0 and forgets the launched kernels.
EXPORT void fake_reset_counters() {
  auto* all = reinterpret_cast<uint64_t*>(&fake::counters());
  for (size_t i = 0; i < sizeof(FakeCounters) / sizeof(uint64_t); i++) {
    if (all + i != &fake::counters().live_bytes) __atomic_store_n(all + i, 0, __ATOMIC_RELAXED);
  }
  std::lock_guard lock(fake::launches().mutex);
  fake::launches().names.clear();
}

EXPORT void fake_count_collective() { fake::count(&FakeCounters::collectives); }

/// Writes the launched kernels' names, each ended by a newline, and returns how many bytes they need. With too small a
/// buffer nothing is written.
EXPORT size_t fake_launched_kernels(char* buffer, size_t bytes) {
  std::lock_guard lock(fake::launches().mutex);
  std::string all;
  for (const char* name : fake::launches().names) all.append(name).push_back('\n');
  if (all.size() <= bytes) std::memcpy(buffer, all.data(), all.size());
  return all.size();
}
