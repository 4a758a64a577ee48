// One rank's communicator: its state, its peers, its part in collectives.
#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "cuda.h"
#include "shared.h"

namespace nccl {

struct Communicator : std::enable_shared_from_this<Communicator> {
  ncclUniqueId id{};
  int size = 0, rank = 0, device = 0;
  bool blocking = true;
  std::shared_ptr<Shared> shared;  // null until initialisation has opened it

  std::atomic<bool> aborted{false}, finalized{false}, in_call{false};
  /// ncclInProgress while something asynchronous is going on, then its result.
  std::atomic<ncclResult_t> state{ncclSuccess};
  /// Collectives enqueued and not yet run; in captures none.
  std::atomic<int> pending{0};
  /// Recorded collectives that a capture, a graph or a launch of one still holds. Like NCCL, a communicator does not end
  /// before them, not even by an abort.
  std::atomic<int> recorded{0};

  /// Whether the thread still runs whose memory holds what was last put off, until that is put away. See put_away.
  std::shared_ptr<const std::atomic<bool>> starter;
  int calls = 0;  // collectives enqueued in all

  std::mutex running;  // held by the collective that runs
  uint64_t chunk = 0;  // chunks exchanged so far
  uint64_t splits = 0;

  RankSlot& mine() { return shared->ranks[rank]; }

  /// Joins the others and waits until all are there.
  ncclResult_t join();
  /// Waits until `ready`. False once the communicator is aborted: until then there is no other way out, even if a peer
  /// has died. With FAKE_NCCL_REPORT_DEATH=1 a death at least shows as ncclRemoteError.
  bool spin(const std::function<bool()>& ready);
  void report_death();
  /// Waits for the collectives enqueued so far; false if aborted.
  bool drain();
  /// As drain, and for all ranks to do so: since 2.26 or so the ranks of a machine finalize together.
  bool drain_together();
  /// NCCL up to 2.22 keeps a call that goes on in the background in memory of the thread that made it, and puts it away
  /// in the next call, on whichever thread. An error if the first thread has ended by then: its memory is gone.
  ncclResult_t put_away();
};

using CommunicatorPtr = std::shared_ptr<Communicator>;

/// The communicator behind a handle, or null.
CommunicatorPtr find_communicator(const void* handle);
/// Makes the handle valid.
void add_communicator(const CommunicatorPtr& communicator);
void remove_communicator(const void* handle);

/// Keeps what went wrong for ncclGetLastError, says it on stderr and returns the code.
__attribute__((format(printf, 2, 3))) ncclResult_t fail(ncclResult_t code, const char* format, ...);
std::string last_error();

/// Whether a variable of the environment is 1.
bool enabled(const char* name);

/// A random number below a bound.
unsigned random_below(unsigned bound);
/// Sleeps up to this long, sometimes.
void random_delay(std::chrono::microseconds longest);

/// Runs the rest of a call: now for a blocking communicator, in the background for another, whose state says
/// ncclInProgress until it is done. Inside a group even the blocking one runs in the background, until ncclGroupEnd.
ncclResult_t run_or_defer(const CommunicatorPtr& communicator, std::function<ncclResult_t()> rest);

/// Marks that a thread is inside a call. `result` is an error if another thread is, or the communicator is not ready.
class CallGuard {
 public:
  explicit CallGuard(const void* handle);
  ~CallGuard();
  CallGuard(const CallGuard&) = delete;
  CommunicatorPtr communicator;
  ncclResult_t result = ncclSuccess;

 private:
  bool entered_ = false;
};

}  // namespace nccl
