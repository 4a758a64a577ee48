// ncclCommSplit: the ranks of one colour become a communicator, in the order of their keys.
#include <algorithm>
#include <utility>
#include <vector>

#include "communicator.h"

namespace nccl {
namespace {

constexpr int NO_COLOR = -1;

/// Ranks of the parent that share this rank's colour, in their new order.
std::vector<int> members(const Communicator& parent, int color) {
  std::vector<std::pair<int, int>> by_key;
  for (int i = 0; i < parent.size; i++) {
    if (parent.shared->ranks[i].color == color) by_key.emplace_back(parent.shared->ranks[i].key, i);
  }
  std::sort(by_key.begin(), by_key.end());
  std::vector<int> ranks;
  for (const auto& [key, rank] : by_key) ranks.push_back(rank);
  return ranks;
}

bool wait_for_all(Communicator& parent, std::atomic<uint64_t> RankSlot::* reached, uint64_t number) {
  RankSlot* ranks = parent.shared->ranks;
  return parent.spin([=, size = parent.size] {
    return std::all_of(ranks, ranks + size, [&](RankSlot& rank) { return rank.*reached >= number; });
  });
}

/// Tells every rank of the parent colour and key, and gives the members the id their first one made.
ncclResult_t agree(Communicator& parent, Communicator* child, int color, int key) {
  const uint64_t number = ++parent.splits;
  if (!wait_for_all(parent, &RankSlot::split_read, number - 1)) return ncclInternalError;
  parent.mine().color = color;
  parent.mine().key = key;
  parent.mine().split_arrived = number;
  if (!wait_for_all(parent, &RankSlot::split_arrived, number)) return ncclInternalError;
  if (child != nullptr) {
    const auto ranks = members(parent, color);
    child->size = int(ranks.size());
    child->rank = int(std::find(ranks.begin(), ranks.end(), parent.rank) - ranks.begin());
    RankSlot& first = parent.shared->ranks[ranks[0]];
    if (child->rank == 0) {
      if (const auto failed = make_unique_id(first.split_id)) return failed;
      first.split_made = number;
    }
    if (!parent.spin([&] { return first.split_made >= number; })) return ncclInternalError;
    child->id = first.split_id;
  }
  parent.mine().split_read = number;
  return ncclSuccess;
}

}  // namespace
}  // namespace nccl

using namespace nccl;

NCCL_API ncclCommSplit(const void* handle, int color, int key, void** made, const ncclConfig_t* config) {
  CallGuard guard(handle);
  if (guard.result != ncclSuccess) return guard.result;
  if (made == nullptr || color < NO_COLOR) return fail(ncclInvalidArgument, "ncclCommSplit: invalid colour %d", color);
  *made = nullptr;
  const CommunicatorPtr parent = guard.communicator;
  CommunicatorPtr child;
  if (color != NO_COLOR) {
    child = std::make_shared<Communicator>();
    child->device = parent->device;
    // Like everything else not said, blocking comes from the parent.
    child->blocking = config != nullptr ? config->blocking != 0 : parent->blocking;
    child->state = ncclInProgress;
    add_communicator(child);
    *made = child.get();
  }
  return run_or_defer(parent, [parent, child, color, key] {
    ncclResult_t result = agree(*parent, child.get(), color, key);
    if (child && result == ncclSuccess) result = child->join();
    if (child) child->state = result;
    return result;
  });
}
