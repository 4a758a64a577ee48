// Making and ending communicators, and what they say of themselves.
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "communicator.h"
#include "group.h"
#include "version.h"

using namespace nccl;

NCCL_API ncclGetVersion(int* number) {
  if (number == nullptr) return ncclInvalidArgument;
  *number = version();
  return ncclSuccess;
}

NCCL_API ncclGetUniqueId(ncclUniqueId* id) {
  if (id == nullptr) return ncclInvalidArgument;
  return make_unique_id(*id);
}

static CommunicatorPtr make_communicator(const ncclUniqueId& id, int size, int rank, int device, bool blocking) {
  auto made = std::make_shared<Communicator>();
  made->id = id, made->size = size, made->rank = rank, made->device = device, made->blocking = blocking;
  return made;
}

/// The handle is valid at once; a blocking communicator that fails to join has none.
static ncclResult_t start_joining(void** handle, const CommunicatorPtr& communicator) {
  add_communicator(communicator);
  *handle = communicator.get();
  const ncclResult_t result = run_or_defer(communicator, [communicator] { return communicator->join(); });
  if (result != ncclSuccess && result != ncclInProgress) {
    remove_communicator(communicator.get());
    *handle = nullptr;
  }
  return result;
}

static ncclResult_t init(void** handle, int size, const ncclUniqueId& id, int rank, bool blocking) {
  if (handle == nullptr) return fail(ncclInvalidArgument, "comm is null");
  *handle = nullptr;
  if (size < 1 || size > MAX_RANKS || rank < 0 || rank >= size) {
    return fail(ncclInvalidArgument, "invalid rank requested : %d/%d (at most %d ranks here)", rank, size, MAX_RANKS);
  }
  int device;
  if (cuda() == nullptr) return fail(ncclSystemError, "libcuda is not the fake one");
  if (cuda()->current_device(&device) != 0) return fail(ncclUnhandledCudaError, "no CUDA context is current");
  return start_joining(handle, make_communicator(id, size, rank, device, blocking));
}

NCCL_API ncclCommInitRank(void** handle, int size, ncclUniqueId id, int rank) {
  return init(handle, size, id, rank, true);
}

/// Whether a configuration asks for a blocking communicator: yes unless it says 0.
static ncclResult_t read_config(const ncclConfig_t* config, bool& blocking) {
  constexpr unsigned MAGIC = 0xcafebeef;
  if (config == nullptr) return ncclSuccess;
  if (config->magic != MAGIC || config->size < sizeof(ncclConfig_t)) {
    return fail(ncclInvalidArgument, "ncclConfig_t is not initialised");
  }
  blocking = config->blocking != 0;
  return ncclSuccess;
}

NCCL_API ncclCommInitRankConfig(void** handle, int size, ncclUniqueId id, int rank, const ncclConfig_t* config) {
  bool blocking = true;
  if (const auto failed = read_config(config, blocking)) return failed;
  return init(handle, size, id, rank, blocking);
}

NCCL_API ncclCommGetAsyncError(const void* handle, int* result) {
  const auto communicator = find_communicator(handle);
  if (!communicator || result == nullptr) return fail(ncclInvalidArgument, "ncclCommGetAsyncError: invalid argument");
  *result = communicator->state;
  return ncclSuccess;
}

/// Ends whatever runs or waits on this rank. The handle is gone when this returns, and so are the collectives: like NCCL
/// it waits until the device has let go of them, behind whatever the stream has before them, and until no graph holds any.
/// With FAKE_NCCL_STUCK_ABORT=1 it never returns.
NCCL_API ncclCommAbort(const void* handle) {
  if (handle == nullptr) return ncclSuccess;
  const auto communicator = find_communicator(handle);
  if (!communicator) return fail(ncclInvalidArgument, "ncclCommAbort: the communicator does not exist (any more)");
  const ncclResult_t result = communicator->put_away();
  while (enabled("FAKE_NCCL_STUCK_ABORT")) pause();
  communicator->aborted = true;
  remove_communicator(handle);
  while (communicator->pending != 0 || communicator->recorded != 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return result;
}

NCCL_API ncclCommFinalize(const void* handle) {
  CallGuard guard(handle);
  if (guard.result != ncclSuccess) return guard.result;
  const CommunicatorPtr communicator = guard.communicator;
  if (communicator->finalized.exchange(true)) return fail(ncclInvalidArgument, "comm has already been finalized");
  return run_or_defer(communicator, [communicator] { return communicator->drain_together() ? ncclSuccess : ncclInternalError; });
}

/// Blocks until the communicator's collectives have run, unless it has been finalized.
NCCL_API ncclCommDestroy(const void* handle) {
  if (handle == nullptr) return ncclSuccess;
  CallGuard guard(handle);
  if (!guard.communicator || guard.result == ncclInvalidUsage) return guard.result;
  if (guard.result == ncclSuccess) guard.communicator->drain();
  remove_communicator(handle);
  return ncclSuccess;
}

/// Reads one fact of a communicator that is ready.
static ncclResult_t read_fact(const void* handle, int Communicator::* fact, int* value) {
  if (value == nullptr) return ncclInvalidArgument;
  CallGuard guard(handle);
  if (guard.result != ncclSuccess) return guard.result;
  *value = (*guard.communicator).*fact;
  return ncclSuccess;
}

NCCL_API ncclCommCount(const void* handle, int* count) { return read_fact(handle, &Communicator::size, count); }
NCCL_API ncclCommCuDevice(const void* handle, int* device) { return read_fact(handle, &Communicator::device, device); }
NCCL_API ncclCommUserRank(const void* handle, int* rank) { return read_fact(handle, &Communicator::rank, rank); }

extern "C" __attribute__((visibility("default"))) const char* ncclGetErrorString(int result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError: return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
    default: return "unknown result code";
  }
}

extern "C" __attribute__((visibility("default"))) const char* ncclGetLastError(const void*) {
  static thread_local std::string kept;
  kept = last_error();
  return kept.c_str();
}
