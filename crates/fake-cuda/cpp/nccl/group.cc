// Groups of the calling thread.
#include "group.h"

#include <utility>
#include <vector>

#include "collective.h"

namespace nccl {
namespace {

struct Group {
  int depth = 0;
  std::vector<std::pair<CommunicatorPtr, std::function<ncclResult_t()>>> collectives;
  std::vector<CommunicatorPtr> waits;
};

thread_local Group group;

/// The result of a whole group: the first error, else whether anything is still going on.
ncclResult_t combine(ncclResult_t a, ncclResult_t b) {
  if (a != ncclSuccess && a != ncclInProgress) return a;
  return b == ncclSuccess ? a : b;
}

}  // namespace

bool group_is_open() { return group.depth > 0; }

void group_keeps(CommunicatorPtr communicator, std::function<ncclResult_t()> enqueue) {
  group.collectives.emplace_back(std::move(communicator), std::move(enqueue));
}

void group_waits_for(CommunicatorPtr communicator) { group.waits.push_back(std::move(communicator)); }

}  // namespace nccl

using namespace nccl;

NCCL_API ncclGroupStart() {
  group.depth++;
  return ncclSuccess;
}

/// Waits for what a blocking communicator began in the group.
static ncclResult_t finish(Communicator& communicator) {
  if (!communicator.blocking) return communicator.state;
  const bool finished = communicator.spin([&] { return communicator.state != ncclInProgress; });
  return finished ? communicator.state.load() : ncclInternalError;
}

NCCL_API ncclGroupEnd() {
  if (group.depth == 0) return fail(ncclInvalidUsage, "ncclGroupEnd: not in a group call.");
  if (--group.depth > 0) return ncclSuccess;
  ncclResult_t result = ncclSuccess;
  const auto waits = std::exchange(group.waits, {});
  for (const CommunicatorPtr& communicator : waits) result = combine(result, finish(*communicator));
  const auto collectives = std::exchange(group.collectives, {});
  // All collectives of one communicator are enqueued together, so that its state changes once.
  for (size_t first = 0, last; first < collectives.size(); first = last) {
    const CommunicatorPtr& communicator = collectives[first].first;
    std::vector<std::function<ncclResult_t()>> together;
    for (last = first; last < collectives.size() && collectives[last].first == communicator; last++) {
      together.push_back(collectives[last].second);
    }
    result = combine(result, enqueue_all(communicator, std::move(together)));
  }
  return result;
}
