// Streams: the queue, the thread behind it, and the order between streams.
#include "stream.h"

#include <atomic>
#include <thread>

#include "graph.h"

namespace fake {

void merge(Clock& into, const Clock& from) {
  for (const auto& [stream, ticket] : from) {
    uint64_t& known = into[stream];
    known = std::max(known, ticket);
  }
}

Stream::Stream(Context* context_, StreamKind kind_, unsigned flags_, int priority_, uint64_t number_)
    : number(number_), context(context_), kind(kind_), flags(flags_), priority(priority_),
      random_(setting("FAKE_CUDA_JITTER", 1) + number_) {}

std::shared_ptr<Stream> Stream::make(Context* context, StreamKind kind, unsigned flags, int priority) {
  static std::atomic<uint64_t> next_number{1};
  std::shared_ptr<Stream> stream(new Stream(context, kind, flags, priority, next_number++));
  std::thread([stream] { stream->work_through(); }).detach();
  return stream;
}

void Stream::work_through() {
  for (;;) {
    std::function<void()> work;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !queue_.empty(); });
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    if (!work) return;
    delay();
    work();
    work = nullptr;  // what it holds is freed before the host can know that it is done
    std::lock_guard lock(mutex_);
    completed_++;
    changed_.notify_all();
  }
}

/// Sleeps up to 60 microseconds before one piece of work in sixteen.
void Stream::delay() {
  static const bool wanted = setting("FAKE_CUDA_JITTER", 1) != 0;
  constexpr uint64_t ONE_IN = 16, LONGEST_US = 60;
  if (!wanted || random_.next() % ONE_IN != 0) return;
  std::this_thread::sleep_for(std::chrono::microseconds(random_.next() % LONGEST_US));
}

uint64_t Stream::push(const Work& work) {
  uint64_t ticket;
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(work.run);
    ticket = ++submitted_;
    changed_.notify_all();
  }
  clock[number] = ticket;
  if (work.enqueued) work.enqueued(*this, ticket);
  return ticket;
}

void Stream::wait(uint64_t ticket) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return completed_ >= ticket; });
}

bool Stream::done(uint64_t ticket) {
  std::lock_guard lock(mutex_);
  return completed_ >= ticket;
}

uint64_t Stream::last_ticket() {
  std::lock_guard lock(mutex_);
  return submitted_;
}

void Stream::close() {
  std::lock_guard lock(mutex_);
  queue_.push_back(nullptr);
  changed_.notify_all();
}

/// Makes what `stream` does next wait for all that is in `other`.
static void wait_for_all(Stream& stream, Stream& other) {
  const uint64_t ticket = other.last_ticket();
  merge(stream.clock, other.clock);
  if (!other.done(ticket)) stream.push({[held = other.shared_from_this(), ticket] { held->wait(ticket); }, {}});
}

/// The legacy default stream and the blocking streams of its context wait for each other.
static CUresult wait_implicitly(Stream& stream) {
  if (stream.kind == StreamKind::NonBlocking) return CUDA_SUCCESS;
  if (stream.kind == StreamKind::Blocking) {
    if (stream.context->default_stream) wait_for_all(stream, *stream.context->default_stream);
    return CUDA_SUCCESS;
  }
  for (auto& [handle, other] : driver().streams) {
    if (other->kind != StreamKind::Blocking || other->context != stream.context) continue;
    if (other->capture != nullptr) {
      other->capture->invalidated = true;
      return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    wait_for_all(stream, *other);
  }
  return CUDA_SUCCESS;
}

CUresult submit(Stream& stream, const Work& work) {
  if (stream.capture != nullptr) return stream.capture->add(stream, work);
  TRY(wait_implicitly(stream));
  stream.push(work);
  return CUDA_SUCCESS;
}

CUresult find_stream(const void* handle, std::shared_ptr<Stream>& stream) {
  Context* context;
  TRY(current_context(context));
  const auto legacy = reinterpret_cast<const void*>(1), per_thread = reinterpret_cast<const void*>(2);
  if (handle == nullptr || handle == legacy) {
    if (!context->default_stream) context->default_stream = Stream::make(context, StreamKind::Legacy, 0, 0);
    stream = context->default_stream;
  } else if (handle == per_thread) {
    auto& mine = thread_state().default_streams[context];
    if (!mine) mine = Stream::make(context, StreamKind::Blocking, 0, 0);
    driver().streams[mine.get()] = mine;
    stream = mine;
  } else {
    const auto found = driver().streams.find(handle);
    if (found == driver().streams.end()) return CUDA_ERROR_INVALID_HANDLE;
    stream = found->second;
  }
  return CUDA_SUCCESS;
}

void host_wait(Lock& lock, Stream& stream) {
  count(&FakeCounters::host_waits);
  const auto held = stream.shared_from_this();
  const uint64_t ticket = stream.last_ticket();
  lock.unlock();
  held->wait(ticket);
  lock.lock();
}

bool ordered_before_next(Stream& stream, Stream& other, uint64_t ticket) {
  if (&stream == &other || other.done(ticket)) return true;
  const auto known = stream.clock.find(other.number);
  return known != stream.clock.end() && known->second >= ticket;
}

}  // namespace fake

using namespace fake;

static CUresult create_stream(const void** handle, unsigned flags, int priority) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  constexpr unsigned NON_BLOCKING = 1;
  if (handle == nullptr || flags > NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  const auto kind = flags == NON_BLOCKING ? StreamKind::NonBlocking : StreamKind::Blocking;
  auto stream = Stream::make(context, kind, flags, priority);
  *handle = stream.get();
  driver().streams[stream.get()] = stream;
  return CUDA_SUCCESS;
}

API cuStreamCreate(const void** handle, unsigned flags) { return create_stream(handle, flags, 0); }

API cuStreamCreateWithPriority(const void** handle, unsigned flags, int priority) {
  return create_stream(handle, flags, priority);
}

API cuStreamDestroy_v2(const void* handle) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  const auto found = driver().streams.find(handle);
  if (found == driver().streams.end()) return CUDA_ERROR_INVALID_HANDLE;
  if (found->second->capture != nullptr) found->second->capture->invalidated = true;
  found->second->close();
  driver().streams.erase(found);
  return CUDA_SUCCESS;
}

API cuStreamSynchronize(const void* handle) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  TRY(refuse_in_capture(*stream));
  TRY(unsafe_call());
  TRY(wait_implicitly(*stream));
  host_wait(lock, *stream);
  return CUDA_SUCCESS;
}

API cuStreamQuery(const void* handle) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  TRY(refuse_in_capture(*stream));
  return stream->idle() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

API cuStreamGetFlags(const void* handle, unsigned* flags) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  *flags = stream->flags;
  return CUDA_SUCCESS;
}

API cuStreamGetPriority(const void* handle, int* priority) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  *priority = stream->priority;
  return CUDA_SUCCESS;
}

API cuStreamGetCtx(const void* handle, Context** context) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  *context = stream->context;
  return CUDA_SUCCESS;
}

API cuLaunchHostFunc(const void* handle, void (*function)(void*), void* data) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  TRY(submit(*stream, {[function, data] { function(data); }, {}}));
  count(&FakeCounters::host_functions);
  return CUDA_SUCCESS;
}
