// Running a collective: every rank shows its bytes chunk by chunk, reads all others', and goes on when all have read.
#include <algorithm>
#include <cstring>

#include "collective.h"
#include "reduce.h"

namespace nccl {
namespace {

/// Every rank's bytes of one chunk.
struct Chunk {
  size_t offset, bytes;
  const char* of_rank[MAX_RANKS];
};

void show(Communicator& communicator, const Collective& collective, size_t offset, size_t bytes) {
  RankSlot& slot = communicator.mine();
  slot.call = collective.call;
  const bool has_data = Kind(collective.call.kind) != Kind::Broadcast || collective.call.root == communicator.rank;
  if (has_data) std::memcpy(communicator.shared->chunks[communicator.rank], collective.send + offset, bytes);
  slot.shown = communicator.chunk;
}

bool all_agree(const Communicator& communicator) {
  const RankSlot* ranks = communicator.shared->ranks;
  const auto agrees = [&](const RankSlot& rank) { return rank.call == ranks[0].call; };
  return std::all_of(ranks, ranks + communicator.size, agrees);
}

void use(const Communicator& communicator, const Collective& collective, const Chunk& chunk) {
  const Call& call = collective.call;
  char* to = collective.receive;
  switch (Kind(call.kind)) {
    case Kind::AllGather:
      for (int i = 0; i < communicator.size; i++) {
        std::memcpy(to + size_t(i) * call.count * type_bytes(call.type) + chunk.offset, chunk.of_rank[i], chunk.bytes);
      }
      return;
    case Kind::Broadcast: std::memcpy(to + chunk.offset, chunk.of_rank[call.root], chunk.bytes); return;
    case Kind::Reduce:
      if (call.root != communicator.rank) return;
      [[fallthrough]];
    case Kind::AllReduce: {
      // Another rank first for every chunk, as in a ring: the order of a sum is no promise.
      const int first = int(chunk.offset / CHUNK_BYTES + 1) % communicator.size;
      reduce(call, chunk.of_rank, communicator.size, first, chunk.bytes, to + chunk.offset);
    }
  }
}

/// One chunk's exchange; false if aborted. Ranks that call different things wait for ever, as with NCCL.
bool exchange_chunk(Communicator& communicator, const Collective& collective, size_t offset, size_t bytes) {
  RankSlot* ranks = communicator.shared->ranks;
  const uint64_t number = ++communicator.chunk;
  const auto everyone = [&](std::atomic<uint64_t> RankSlot::* reached, uint64_t at_least) {
    return communicator.spin([&, reached, at_least] {
      return std::all_of(ranks, ranks + communicator.size, [&](RankSlot& r) { return r.*reached >= at_least; });
    });
  };
  if (!everyone(&RankSlot::read, number - 1)) return false;
  show(communicator, collective, offset, bytes);
  if (!everyone(&RankSlot::shown, number)) return false;
  if (!all_agree(communicator)) return communicator.spin([] { return false; });
  Chunk chunk{offset, bytes, {}};
  for (int i = 0; i < communicator.size; i++) chunk.of_rank[i] = communicator.shared->chunks[i];
  use(communicator, collective, chunk);
  communicator.mine().read = number;
  return true;
}

}  // namespace

void run(const Collective& collective) {
  Communicator& communicator = *collective.communicator;
  std::lock_guard one_at_a_time(communicator.running);
  random_delay(std::chrono::microseconds(200));
  const size_t total = collective.call.count * type_bytes(collective.call.type);
  for (size_t offset = 0; offset < total; offset += CHUNK_BYTES) {
    if (!exchange_chunk(communicator, collective, offset, std::min(CHUNK_BYTES, total - offset))) return;
  }
}

}  // namespace nccl
