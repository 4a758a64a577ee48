// The memory the ranks of one communicator share, be they threads or processes of one host.
//
// It is an anonymous file of the process that made the unique id, opened by the others through /proc: nothing is left
// behind however the processes end. As with NCCL, that process must live until all ranks have joined.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "types.h"

namespace nccl {

inline constexpr int MAX_RANKS = 16;
/// Bytes a rank shows the others at a time.
inline constexpr size_t CHUNK_BYTES = 1 << 20;

/// What a rank says of the collective it is in: all ranks must say the same.
struct Call {
  int kind, type, operation, root;
  uint64_t count;
  bool operator==(const Call&) const = default;
};

struct RankSlot {
  std::atomic<int> pid;  // 0 until the rank has joined
  int device;
  uint64_t host;
  std::atomic<bool> finalized, connected;
  // The data exchange: chunks shown and chunks read from everyone, both counted from 1.
  std::atomic<uint64_t> shown, read;
  Call call;
  // ncclCommSplit: calls arrived at, what was asked, and the id the first rank of a colour made.
  std::atomic<uint64_t> split_arrived, split_made, split_read;
  int color, key;
  ncclUniqueId split_id;
};

/// Starts all zero.
struct Shared {
  std::atomic<uint64_t> secret;
  std::atomic<bool> file_closed;
  RankSlot ranks[MAX_RANKS];
  alignas(4096) char chunks[MAX_RANKS][CHUNK_BYTES];
};

ncclResult_t make_unique_id(ncclUniqueId& id);
/// Maps the memory an id names; null if its maker is gone or the bytes are no id.
std::shared_ptr<Shared> open_shared(const ncclUniqueId& id);
/// Closes the maker's file if this is its process: for when all ranks have opened it.
void close_shared_file(const ncclUniqueId& id, Shared& shared);
/// Whether a process has ended, zombies included.
bool has_ended(int pid);

}  // namespace nccl
