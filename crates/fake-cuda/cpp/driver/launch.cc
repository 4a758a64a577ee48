// Launching kernels, and what a program may ask about them.
#include <algorithm>
#include <cstring>
#include <vector>

#include "counters.h"
#include "memory.h"
#include "module.h"

using namespace fake;

static bool fits(const Function& function, dim3 grid, dim3 block, unsigned shared_bytes) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  const bool grid_fits = grid.x != 0 && grid.y != 0 && grid.z != 0 && grid.x <= shim::MAX_GRID_X &&
                         grid.y <= shim::MAX_GRID_YZ && grid.z <= shim::MAX_GRID_YZ;
  return grid_fits && threads != 0 && threads <= function.max_threads && block.z <= shim::MAX_BLOCK_Z &&
         shared_bytes <= function.max_dynamic_shared;
}

/// Every word of the parameters that names device memory is a use of it.
static void note_parameters(Stream& stream, uint64_t ticket, const std::vector<char>& parameters, const char* kernel) {
  for (size_t offset = 0; offset + sizeof(uint64_t) <= parameters.size(); offset += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, parameters.data() + offset, sizeof word);
    note_use(stream, ticket, word, kernel);
  }
}

API cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, const void* handle, void** parameters,
                   void** extra) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  const dim3 grid(grid_x, grid_y, grid_z), block(block_x, block_y, block_z);
  if (function == nullptr || parameters == nullptr || parameters[0] == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (extra != nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  if (!fits(*function, grid, block, shared_bytes)) return CUDA_ERROR_INVALID_VALUE;
  const FakeKernel* kernel = function->kernel;
  const auto* from = static_cast<const char*>(parameters[0]);
  // Copied now: the caller's memory is its own again when this returns.
  auto copied = std::make_shared<std::vector<char>>(from, from + kernel->parameter_bytes);
  const auto run = [=] { kernel->run(grid, block, shared_bytes, copied->data()); };
  const auto enqueued = [=](Stream& in, uint64_t ticket) {
    record_launch(kernel->name);
    note_parameters(in, ticket, *copied, kernel->name);
  };
  return submit(*stream, {run, enqueued});
}

API cuFuncGetAttribute(int* value, int attribute, const Function* function) {
  if (value == nullptr || function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case 0: *value = int(function->max_threads); return CUDA_SUCCESS;         // MAX_THREADS_PER_BLOCK
    case 4: *value = 32; return CUDA_SUCCESS;                                 // NUM_REGS
    case 5: *value = 75; return CUDA_SUCCESS;                                 // PTX_VERSION: compute_75
    case 6: *value = 90; return CUDA_SUCCESS;                                 // BINARY_VERSION
    case 8: *value = int(function->max_dynamic_shared); return CUDA_SUCCESS;  // MAX_DYNAMIC_SHARED_SIZE_BYTES
    default: *value = 0; return CUDA_SUCCESS;
  }
}

API cuFuncSetAttribute(Function* function, int attribute, int value) {
  constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
  if (function == nullptr || attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  if (value < 0 || size_t(value) > shim::MAX_SHARED_BYTES) return CUDA_ERROR_INVALID_VALUE;
  function->max_dynamic_shared = unsigned(value);
  return CUDA_SUCCESS;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const Function* function, int block_size,
                                                size_t dynamic_shared) {
  constexpr int MOST_BLOCKS = 32, MOST_THREADS = 2048;
  constexpr size_t SHARED_OF_MULTIPROCESSOR = 228 << 10, SHARED_OF_SYSTEM = 1 << 10;
  if (blocks == nullptr || function == nullptr || block_size <= 0) return CUDA_ERROR_INVALID_VALUE;
  const int by_shared = int(SHARED_OF_MULTIPROCESSOR / (dynamic_shared + SHARED_OF_SYSTEM));
  const bool launches = unsigned(block_size) <= function->max_threads;
  *blocks = launches ? std::min({MOST_BLOCKS, MOST_THREADS / block_size, by_shared}) : 0;
  return CUDA_SUCCESS;
}
