// The kernels of one library by name: what the fake driver launches, and what a test finds its kernel by.
#pragma once
#include <cstddef>
#include <cstring>

#include "shim/core.h"
#include "shim/launch.h"

/// One entry point. `run` returns when every block has run; `parameters` points to the one struct the kernel takes.
struct FakeKernel {
  const char* name;
  size_t parameter_bytes, parameter_alignment;
  void (*run)(dim3 grid, dim3 block, size_t shared_bytes, const void* parameters);
};

namespace shim {

struct RegistryEntry {
  FakeKernel kernel;
  const RegistryEntry* next;
};

/// The list every SHIM_REGISTER of the library adds to, before main or as the library is loaded.
inline const RegistryEntry* registry = nullptr;

inline const FakeKernel* find_kernel(const char* name) {
  for (const RegistryEntry* entry = registry; entry != nullptr; entry = entry->next) {
    if (std::strcmp(entry->kernel.name, name) == 0) return &entry->kernel;
  }
  return nullptr;
}

inline bool add_kernel(RegistryEntry& entry) {
  if (find_kernel(entry.kernel.name) != nullptr) fatal("two kernels are named %s", entry.kernel.name);
  entry.next = registry;
  registry = &entry;
  return true;
}

}  // namespace shim

/// The kernel of this name, or null.
extern "C" __attribute__((visibility("default"), used)) inline const FakeKernel* fake_find_kernel(const char* name) {
  return shim::find_kernel(name);
}

/// Order of the threads in a block and of the blocks: 0 up, 1 down, k >= 2 shuffled by seed k.
extern "C" __attribute__((visibility("default"), used)) inline void fake_set_order(unsigned order) {
  shim::order().store(order);
}

/// Registers `extern "C" __global__ void name(const Params)`.
#define SHIM_REGISTER(name, Params)                                                                               \
  static void shim_run_##name(dim3 grid, dim3 block, size_t shared_bytes, const void* parameters) {               \
    static_assert(std::is_trivially_copyable_v<Params>, "a kernel's parameters are copied as bytes");             \
    Params params;                                                                                                \
    std::memcpy(static_cast<void*>(&params), parameters, sizeof(Params));                                         \
    shim::launch(grid, block, shared_bytes, [&params] { name(params); }, #name);                                  \
  }                                                                                                               \
  static shim::RegistryEntry shim_entry_##name = {{#name, sizeof(Params), alignof(Params), shim_run_##name}, {}}; \
  [[maybe_unused]] static const bool shim_added_##name = shim::add_kernel(shim_entry_##name)
