// Initialisation and what a program may ask about a device: an imaginary H100-like part.
#include <cstdio>
#include <cstring>

#include "memory.h"
#include "shim/core.h"
#include "state.h"

using namespace fake;

API cuInit(unsigned flags) {
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (device_count() == 0) return CUDA_ERROR_NO_DEVICE;
  auto lock = lock_driver();
  if (!driver().initialized) std::fputs("FAKE CUDA DRIVER: kernels run on the CPU; not a GPU result\n", stderr);
  driver().initialized = true;
  return CUDA_SUCCESS;
}

API cuDriverGetVersion(int* version) {
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *version = int(setting("FAKE_CUDA_DRIVER_VERSION", 13000));
  return CUDA_SUCCESS;
}

static CUresult check_device(int device) {
  if (!driver().initialized) return CUDA_ERROR_NOT_INITIALIZED;
  return device >= 0 && device < device_count() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

API cuDeviceGetCount(int* count) {
  if (!driver().initialized) return CUDA_ERROR_NOT_INITIALIZED;
  *count = device_count();
  return CUDA_SUCCESS;
}

API cuDeviceGet(int* device, int ordinal) {
  TRY(check_device(ordinal));
  *device = ordinal;
  return CUDA_SUCCESS;
}

API cuDeviceGetName(char* name, int bytes, int device) {
  TRY(check_device(device));
  std::snprintf(name, size_t(bytes), "Fake CUDA device (CPU)");
  return CUDA_SUCCESS;
}

API cuDeviceGetUuid_v2(char* uuid, int device) {
  TRY(check_device(device));
  std::memcpy(uuid, "FAKE-CUDA-DEVICE", 16);
  uuid[15] = char(device);
  return CUDA_SUCCESS;
}

API cuDeviceGetUuid(char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

API cuDeviceTotalMem_v2(size_t* bytes, int device) {
  TRY(check_device(device));
  *bytes = memory_limit();
  return CUDA_SUCCESS;
}

API cuDeviceCanAccessPeer(int* can, int device, int peer) {
  TRY(check_device(device));
  TRY(check_device(peer));
  *can = device != peer;
  return CUDA_SUCCESS;
}

/// By the driver's number of the attribute. What this device does not have is 0, as for a real driver.
static int attribute_value(int attribute) {
  switch (attribute) {
    case 1: return int(shim::MAX_BLOCK_THREADS);                     // MAX_THREADS_PER_BLOCK
    case 2: return int(shim::MAX_BLOCK_THREADS);                     // MAX_BLOCK_DIM_X
    case 3: return int(shim::MAX_BLOCK_THREADS);                     // MAX_BLOCK_DIM_Y
    case 4: return int(shim::MAX_BLOCK_Z);                           // MAX_BLOCK_DIM_Z
    case 5: return int(shim::MAX_GRID_X);                            // MAX_GRID_DIM_X
    case 6: return int(shim::MAX_GRID_YZ);                           // MAX_GRID_DIM_Y
    case 7: return int(shim::MAX_GRID_YZ);                           // MAX_GRID_DIM_Z
    case 8: return 48 << 10;                                         // MAX_SHARED_MEMORY_PER_BLOCK
    case 9: return 64 << 10;                                         // TOTAL_CONSTANT_MEMORY
    case 10: return int(shim::WARP);                                 // WARP_SIZE
    case 12: return 64 << 10;                                        // MAX_REGISTERS_PER_BLOCK
    case 13: return 1'000'000;                                       // CLOCK_RATE, kHz
    case 16: return int(setting("FAKE_CUDA_MULTIPROCESSORS", 132));  // MULTIPROCESSOR_COUNT
    case 31: return 1;                                               // CONCURRENT_KERNELS
    case 38: return 50 << 20;                                        // L2_CACHE_SIZE
    case 39: return 2048;                                            // MAX_THREADS_PER_MULTIPROCESSOR
    case 41: return 1;                                               // UNIFIED_ADDRESSING
    case 75: return 9;                                               // COMPUTE_CAPABILITY_MAJOR
    case 76: return 0;                                               // COMPUTE_CAPABILITY_MINOR
    case 78: return 1;                                               // STREAM_PRIORITIES_SUPPORTED
    case 81: return 228 << 10;                                       // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    case 82: return 64 << 10;                                        // MAX_REGISTERS_PER_MULTIPROCESSOR
    case 97: return int(shim::MAX_SHARED_BYTES);                     // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 106: return 32;                                             // MAX_BLOCKS_PER_MULTIPROCESSOR
    case 115: return 1;                                              // MEMORY_POOLS_SUPPORTED
    default: return 0;
  }
}

API cuDeviceGetAttribute(int* value, int attribute, int device) {
  TRY(check_device(device));
  *value = attribute_value(attribute);
  return CUDA_SUCCESS;
}

API cuDeviceComputeCapability(int* major, int* minor, int device) {
  TRY(cuDeviceGetAttribute(major, 75, device));
  return cuDeviceGetAttribute(minor, 76, device);
}
