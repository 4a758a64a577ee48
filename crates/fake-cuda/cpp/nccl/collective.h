// Collectives: enqueued on a stream, run there when every rank has arrived.
#pragma once
#include <vector>

#include "communicator.h"

namespace nccl {

enum class Kind : int { AllGather, AllReduce, Broadcast, Reduce };

/// One rank's call.
struct Collective {
  CommunicatorPtr communicator;
  Call call;
  const char* send;
  char* receive;
  const void* stream;
};

/// Checks a call and enqueues it, or keeps it for the end of the group.
ncclResult_t start(const void* handle, Kind kind, const void* send, void* receive, size_t count, int type,
                   int operation, int root, const void* stream);

/// Enqueues the collectives of one communicator. One that is not blocking may do so later, in the background.
ncclResult_t enqueue_all(const CommunicatorPtr& communicator, std::vector<std::function<ncclResult_t()>> collectives);

/// Runs a collective on the stream's thread. Returns early, with the result incomplete, once it is aborted.
void run(const Collective& collective);

size_t type_bytes(int type);

}  // namespace nccl
