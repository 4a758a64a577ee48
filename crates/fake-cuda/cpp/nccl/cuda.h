// The fake driver, found among the libraries already loaded.
#pragma once
#include "driver/exports.h"

namespace nccl {

/// What this library calls of the driver. Every member is set.
struct Cuda {
  int (*submit)(const void* stream, const FakeWork* work);
  int (*stream_position)(const void* stream, int* device, FakePosition* last);
  int (*ordered_after)(const void* stream, FakePosition position);
  void (*count_collective)();
  int (*current_device)(int* device);
  int (*current_context)(void** context);
  int (*set_context)(void* context);
  int (*is_capturing)(const void* stream, int* status);
};

/// Null if libcuda is not the fake one: there is no GPU memory to move then.
const Cuda* cuda();

}  // namespace nccl
