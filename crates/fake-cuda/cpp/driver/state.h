// What the driver knows: devices, contexts, handles, the state of each thread. One lock guards all of it; it is never
// held while work runs or the host waits.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "counters.h"
#include "result.h"
#include "settings.h"

namespace fake {

class Stream;
struct Capture;
struct Event;

/// A device's primary context, the only kind there is.
struct Context {
  int device;
  int references = 0;
  std::shared_ptr<Stream> default_stream;
  std::set<int> peers;  // devices whose memory its kernels may use
};

enum class CaptureMode : int { Global = 0, ThreadLocal = 1, Relaxed = 2 };

/// Not thread_local: launching kernels overwrites the library's thread-local memory (shim/poison.h).
struct ThreadState {
  Context* context = nullptr;
  CaptureMode interaction = CaptureMode::Global;
  std::map<Context*, std::shared_ptr<Stream>> default_streams;  // CU_STREAM_PER_THREAD
};

ThreadState& thread_state();

struct Driver {
  std::recursive_mutex mutex;
  std::atomic<bool> initialized{false};
  std::map<int, std::unique_ptr<Context>> contexts;
  std::map<const void*, std::shared_ptr<Stream>> streams;
  std::map<const void*, std::shared_ptr<Event>> events;
  std::set<Capture*> captures;  // those not ended
};

/// The one driver of the process, never destroyed: streams may still run while the process exits.
Driver& driver();
using Lock = std::unique_lock<std::recursive_mutex>;
inline Lock lock_driver() { return Lock(driver().mutex); }

int device_count();

/// The calling thread's context, or an error to return.
CUresult current_context(Context*& context);

/// Says on stderr what a program did wrong that a GPU would punish by wrong data or a hang, and ends the process.
[[noreturn]] __attribute__((format(printf, 1, 2))) void misuse(const char* format, ...);

}  // namespace fake

/// Returns from an entry point unless the expression is CUDA_SUCCESS.
#define TRY(expression)                                                                        \
  do {                                                                                         \
    if (const CUresult failed = (expression); failed != CUDA_SUCCESS) return failed;           \
  } while (false)
