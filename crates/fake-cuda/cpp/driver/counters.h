// What the driver was asked to do, counted for tests.
#pragma once
#include <cstdint>

/// Mirrored by `Counters` of the Rust crate: same order.
struct FakeCounters {
  uint64_t kernel_launches, collectives, host_waits;
  uint64_t copies_to_device, copies_to_host, copies_on_device, memsets;
  uint64_t event_records, event_waits;
  uint64_t allocations, frees, live_bytes;
  uint64_t graph_launches, host_functions;
};

namespace fake {

/// The counters, to be changed through `count`.
FakeCounters& counters();

inline void count(uint64_t FakeCounters::* which, int64_t by = 1) {
  __atomic_fetch_add(&(counters().*which), uint64_t(by), __ATOMIC_RELAXED);
}

/// Keeps the name of a kernel that was launched.
void record_launch(const char* kernel);

}  // namespace fake
