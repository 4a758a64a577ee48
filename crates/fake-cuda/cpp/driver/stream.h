// Streams and events. A stream is a thread that works through a queue, so nothing has happened when a call returns and
// a missing wait reads poison. Small random delays mix the streams up further (FAKE_CUDA_JITTER=seed, 0 for none).
#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "shim/core.h"
#include "state.h"

namespace fake {

/// How far each stream (by its number) has come, at least, whenever something that holds this clock runs.
using Clock = std::map<uint64_t, uint64_t>;
void merge(Clock& into, const Clock& from);

/// One thing a stream does. A captured one is kept and enqueued at every launch of its graph.
struct Work {
  std::function<void()> run;
  /// Called under the driver's lock as the work is enqueued, with its place in the stream.
  std::function<void(Stream& stream, uint64_t ticket)> enqueued;
};

enum class StreamKind { Blocking, NonBlocking, Legacy };

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static std::shared_ptr<Stream> make(Context* context, StreamKind kind, unsigned flags, int priority);

  const uint64_t number;  // never used twice
  Context* const context;
  const StreamKind kind;
  const unsigned flags;
  const int priority;
  // Guarded by the driver's lock:
  Clock clock;                 // of what is enqueued next
  Capture* capture = nullptr;  // what its work is recorded into

  /// Appends work and returns its ticket: tickets count up from 1.
  uint64_t push(const Work& work);
  /// Blocks until the work of this ticket is done.
  void wait(uint64_t ticket);
  bool done(uint64_t ticket);
  uint64_t last_ticket();
  bool idle() { return done(last_ticket()); }
  /// Ends the thread once the queue is empty.
  void close();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  uint64_t submitted_ = 0, completed_ = 0;
  shim::Random random_;

  Stream(Context* context, StreamKind kind, unsigned flags, int priority, uint64_t number);
  void work_through();
  void delay();
};

/// What an event recorded last.
struct Event {
  unsigned flags = 0;
  bool recorded = false;
  std::shared_ptr<Stream> stream;
  uint64_t ticket = 0;
  Clock clock;
  std::shared_ptr<std::chrono::steady_clock::time_point> time;
  // Recorded in a capture, if not 0: its number, and the nodes the event stands for.
  uint64_t capture_number = 0;
  std::vector<unsigned> nodes;
};

/// Enqueues or, in a capture, records work. Call it under the driver's lock.
CUresult submit(Stream& stream, const Work& work);

/// The stream a handle names: one that exists, or one of the two default streams.
CUresult find_stream(const void* handle, std::shared_ptr<Stream>& stream);

/// Blocks the host, with the lock released, until all that is now in the stream is done.
void host_wait(Lock& lock, Stream& stream);

/// Whether all up to `ticket` of stream `other` comes before what is enqueued next in `stream`.
bool ordered_before_next(Stream& stream, Stream& other, uint64_t ticket);

}  // namespace fake
