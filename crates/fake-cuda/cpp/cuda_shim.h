// CUDA C++ on the CPU, for tests: lets one .cu file compile with g++ and run with every CUDA thread a fiber of its own.
// Not a GPU: it checks what a kernel computes and how its threads meet at barriers, never how fast it is.
//
//   g++ -std=c++20 -O2 -I crates/fake-cuda/cpp -x c++ relu.cu relu_test.cc -pthread
//
// shim/core.h      types of the launch, fatal errors
// shim/vector.h    float4 and its family, with CUDA's alignments
// shim/half.h      __half, __nv_bfloat16 and their conversions
// shim/arithmetic.h device functions the C library does not have
// shim/fiber.h     stacks and the switch between them
// shim/sanitize.h  what AddressSanitizer and ThreadSanitizer must be told about fibers
// shim/block.h     one thread block: runs its threads to their barriers, checks and releases these
// shim/launch.h    a grid: blocks over operating system threads
// shim/device.h    threadIdx, __syncthreads, shuffles, atomics: what a kernel writes
#pragma once
#define CUDA_SHIM 1

#include "shim/core.h"
#include "shim/vector.h"
#include "shim/half.h"
#include "shim/arithmetic.h"
#include "shim/launch.h"
#include "shim/device.h"
#include "registry.h"
