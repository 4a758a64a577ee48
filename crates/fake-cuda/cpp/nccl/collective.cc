// Checking and enqueuing collectives.
#include "collective.h"

#include <algorithm>
#include <cstdlib>
#include <list>

#include "group.h"

namespace nccl {
namespace {

/// Collectives enqueued on a device and not yet run.
struct PendingCollective {
  const Communicator* communicator;
  FakePosition position;
};

struct PendingTable {
  std::mutex mutex;
  std::list<PendingCollective> entries;
};

PendingTable& pending() {
  static auto* one = new PendingTable;
  return *one;
}

void forget(const Communicator* communicator) {
  std::lock_guard lock(pending().mutex);
  auto& entries = pending().entries;
  for (auto entry = entries.begin(); entry != entries.end(); ++entry) {
    if (entry->communicator != communicator) continue;
    entries.erase(entry);  // collectives of one communicator run in order: this is the one that has run
    return;
  }
}

/// Two collectives that run on one device at a time can each wait for the other's peers: they must be in order. The
/// ranks of one communicator that share a device are meant to run together.
ncclResult_t check_order(const Collective& collective, int device) {
  std::lock_guard lock(pending().mutex);
  for (const PendingCollective& other : pending().entries) {
    const Communicator &mine = *collective.communicator, &theirs = *other.communicator;
    const bool peers = mine.shared->secret == theirs.shared->secret && mine.rank != theirs.rank;
    if (theirs.device != device || peers || theirs.aborted) continue;
    if (cuda()->ordered_after(collective.stream, other.position)) continue;
    return fail(ncclInvalidUsage, "two collectives of device %d are not ordered: a wait for the stream of the first is "
                "missing before the second", device);
  }
  return ncclSuccess;
}

struct WorkData {
  Collective collective;
  bool captured;
};

void run_work(void* data) {
  const auto& work = *static_cast<WorkData*>(data);
  run(work.collective);
  if (work.captured) return;
  forget(work.collective.communicator.get());
  work.collective.communicator->pending--;
}

void release_work(void* data) {
  const auto* work = static_cast<WorkData*>(data);
  if (work->captured) work->collective.communicator->recorded--;
  delete work;
}

/// What the environment asks of this rank's communicators: FAKE_NCCL_BLOCK_FIRST=1, the first collective stays inside
/// the call until every rank makes it, as where connections are made by the first that needs them.
/// FAKE_NCCL_FAIL_AFTER=n, the communicator fails in the background after the n-th.
ncclResult_t misbehave(Communicator& communicator) {
  const char* fails = std::getenv("FAKE_NCCL_FAIL_AFTER");
  if (fails != nullptr && ++communicator.calls == std::atoi(fails)) communicator.state = ncclSystemError;
  if (!enabled("FAKE_NCCL_BLOCK_FIRST")) return ncclSuccess;
  communicator.mine().connected = true;
  const RankSlot* ranks = communicator.shared->ranks;
  const bool connected = communicator.spin([&] {
    return std::all_of(ranks, ranks + communicator.size, [](const RankSlot& rank) { return rank.connected.load(); });
  });
  return connected ? ncclSuccess : ncclInternalError;
}

ncclResult_t enqueue(const Collective& collective) {
  Communicator& communicator = *collective.communicator;
  if (communicator.aborted) return ncclInternalError;
  if (const auto failed = misbehave(communicator)) return failed;
  int device = -1, capturing = 0;
  FakePosition last;
  if (cuda()->stream_position(collective.stream, &device, &last) != 0) return ncclUnhandledCudaError;
  if (device != communicator.device) return fail(ncclInvalidUsage, "the stream is of another device");
  cuda()->is_capturing(collective.stream, &capturing);
  const bool captured = capturing != 0;
  if (!captured) {
    if (const auto failed = check_order(collective, device)) return failed;
    std::lock_guard lock(pending().mutex);
    pending().entries.push_back({&communicator, {last.stream, last.ticket + 1}});
    communicator.pending++;
  }
  if (captured) communicator.recorded++;
  const FakeWork work = {run_work, release_work, new WorkData{collective, captured}, "a collective",
                         {uint64_t(collective.send), uint64_t(collective.receive), 0}};
  if (cuda()->submit(collective.stream, &work) != 0) return ncclUnhandledCudaError;
  cuda()->count_collective();
  return ncclSuccess;
}

bool needs_send(const Collective& collective) {
  const Call& call = collective.call;
  return Kind(call.kind) != Kind::Broadcast || call.root == collective.communicator->rank;
}

bool needs_receive(const Collective& collective) {
  const Call& call = collective.call;
  return Kind(call.kind) != Kind::Reduce || call.root == collective.communicator->rank;
}

ncclResult_t check(const Collective& collective) {
  const Call& call = collective.call;
  if (type_bytes(call.type) == 0) return fail(ncclInvalidArgument, "invalid type %d", call.type);
  if (call.operation < ncclSum || call.operation > ncclAvg) {
    return fail(ncclInvalidArgument, "invalid reduction operation %d", call.operation);
  }
  if (call.root < 0 || call.root >= collective.communicator->size) {
    return fail(ncclInvalidArgument, "invalid root %d", call.root);
  }
  if (call.count == 0) return ncclSuccess;
  if (needs_send(collective) && collective.send == nullptr) return fail(ncclInvalidArgument, "sendbuff is null");
  if (needs_receive(collective) && collective.receive == nullptr) return fail(ncclInvalidArgument, "recvbuff is null");
  return ncclSuccess;
}

}  // namespace

size_t type_bytes(int type) {
  constexpr size_t BYTES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return type >= 0 && type <= ncclBfloat16 ? BYTES[type] : 0;
}

ncclResult_t enqueue_all(const CommunicatorPtr& communicator, std::vector<std::function<ncclResult_t()>> collectives) {
  const auto all = [collectives = std::move(collectives)] {
    for (const auto& collective : collectives) {
      if (const auto failed = collective()) return failed;
    }
    return ncclSuccess;
  };
  constexpr unsigned ONE_IN = 3;
  const bool misbehaves = enabled("FAKE_NCCL_BLOCK_FIRST") || std::getenv("FAKE_NCCL_FAIL_AFTER") != nullptr;
  if (communicator->blocking || misbehaves || random_below(ONE_IN) != 0) return all();
  return run_or_defer(communicator, all);
}

ncclResult_t start(const void* handle, Kind kind, const void* send, void* receive, size_t count, int type,
                   int operation, int root, const void* stream) {
  CallGuard guard(handle);
  if (guard.result != ncclSuccess) return guard.result;
  if (cuda() == nullptr) return fail(ncclSystemError, "libcuda is not the fake one");
  if (guard.communicator->finalized) return fail(ncclInvalidUsage, "the communicator has been finalized");
  const Collective collective = {guard.communicator, {int(kind), type, operation, root, count},
                                 static_cast<const char*>(send), static_cast<char*>(receive), stream};
  if (const auto failed = check(collective)) return failed;
  if (count == 0) return ncclSuccess;
  const auto enqueue_it = [collective] { return enqueue(collective); };
  if (group_is_open()) {
    group_keeps(guard.communicator, enqueue_it);
    return ncclSuccess;
  }
  // A capture records the calls of this moment: nothing can be put off.
  int capturing = 0;
  cuda()->is_capturing(stream, &capturing);
  return capturing != 0 ? enqueue_it() : enqueue_all(guard.communicator, {enqueue_it});
}

}  // namespace nccl

using namespace nccl;

NCCL_API ncclAllGather(const void* send, void* receive, size_t count, int type, const void* handle,
                       const void* stream) {
  return start(handle, Kind::AllGather, send, receive, count, type, ncclSum, 0, stream);
}
NCCL_API ncclAllReduce(const void* send, void* receive, size_t count, int type, int operation, const void* handle,
                       const void* stream) {
  return start(handle, Kind::AllReduce, send, receive, count, type, operation, 0, stream);
}
NCCL_API ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, const void* handle,
                       const void* stream) {
  return start(handle, Kind::Broadcast, send, receive, count, type, ncclSum, root, stream);
}
NCCL_API ncclReduce(const void* send, void* receive, size_t count, int type, int operation, int root,
                    const void* handle, const void* stream) {
  return start(handle, Kind::Reduce, send, receive, count, type, operation, root, stream);
}
