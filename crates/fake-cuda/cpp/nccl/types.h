// The types of nccl.h that cross the library's border, with NCCL's numbers.
#pragma once
#include <cstddef>
#include <cstdint>

enum ncclResult_t : int {
  ncclSuccess = 0,
  ncclUnhandledCudaError = 1,
  ncclSystemError = 2,
  ncclInternalError = 3,
  ncclInvalidArgument = 4,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7,
};

enum ncclDataType_t : int {
  ncclInt8,
  ncclUint8,
  ncclInt32,
  ncclUint32,
  ncclInt64,
  ncclUint64,
  ncclFloat16,
  ncclFloat32,
  ncclFloat64,
  ncclBfloat16,
};

enum ncclRedOp_t : int { ncclSum, ncclProd, ncclMax, ncclMin, ncclAvg };

struct ncclUniqueId {
  char internal[128];
};

/// The head of ncclConfig_t; what later versions append is ignored.
struct ncclConfig_t {
  size_t size;
  unsigned magic, version;
  int blocking;
};

/// An entry point of the library.
#define NCCL_API extern "C" __attribute__((visibility("default"))) ncclResult_t
