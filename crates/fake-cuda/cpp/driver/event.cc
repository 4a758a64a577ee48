// Events: marks in a stream that other streams and the host wait for.
#include "graph.h"

using namespace fake;

static CUresult find_event(const void* handle, std::shared_ptr<Event>& event) {
  Context* context;
  TRY(current_context(context));
  const auto found = driver().events.find(handle);
  if (found == driver().events.end()) return CUDA_ERROR_INVALID_HANDLE;
  event = found->second;
  return CUDA_SUCCESS;
}

API cuEventCreate(const void** handle, unsigned flags) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  auto event = std::make_shared<Event>();
  event->flags = flags;
  *handle = event.get();
  driver().events[event.get()] = event;
  return CUDA_SUCCESS;
}

API cuEventDestroy_v2(const void* handle) {
  auto lock = lock_driver();
  return driver().events.erase(handle) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult record_in_capture(Event& event, Stream& stream) {
  Capture& capture = *stream.capture;
  if (capture.invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  const auto& end = capture.ends[&stream];
  event.recorded = true;
  event.capture_number = capture.number;
  event.nodes = {end.begin(), end.end()};
  return CUDA_SUCCESS;
}

API cuEventRecord(const void* event_handle, const void* stream_handle) {
  auto lock = lock_driver();
  std::shared_ptr<Event> event;
  std::shared_ptr<Stream> stream;
  TRY(find_event(event_handle, event));
  TRY(find_stream(stream_handle, stream));
  count(&FakeCounters::event_records);
  if (stream->capture != nullptr) return record_in_capture(*event, *stream);
  auto time = std::make_shared<std::chrono::steady_clock::time_point>();
  TRY(submit(*stream, {[time] { *time = std::chrono::steady_clock::now(); }, {}}));
  event->recorded = true;
  event->capture_number = 0;
  event->stream = stream;
  event->ticket = stream->clock[stream->number];
  event->clock = stream->clock;
  event->time = time;
  return CUDA_SUCCESS;
}

API cuEventRecordWithFlags(const void* event, const void* stream, unsigned) { return cuEventRecord(event, stream); }

/// A wait that a capture records: the event must be of the same capture, or take the stream into it.
static CUresult wait_in_capture(Stream& stream, const Event& event) {
  Capture* of_event = event.capture_number != 0 ? find_capture(event.capture_number) : nullptr;
  if (stream.capture == nullptr) {
    if (of_event == nullptr) return CUDA_ERROR_CAPTURED_EVENT;
    if (stream.kind != StreamKind::Legacy) return of_event->join(stream, event.nodes);
    of_event->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  if (of_event == stream.capture) return of_event->join(stream, event.nodes);
  if (stream.capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  stream.capture->invalidated = true;
  if (of_event == nullptr) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  of_event->invalidated = true;
  return CUDA_ERROR_STREAM_CAPTURE_MERGE;
}

API cuStreamWaitEvent(const void* stream_handle, const void* event_handle, unsigned) {
  auto lock = lock_driver();
  std::shared_ptr<Event> event;
  std::shared_ptr<Stream> stream;
  TRY(find_event(event_handle, event));
  TRY(find_stream(stream_handle, stream));
  count(&FakeCounters::event_waits);
  if (stream->capture != nullptr || event->capture_number != 0) return wait_in_capture(*stream, *event);
  if (!event->recorded) return CUDA_SUCCESS;
  merge(stream->clock, event->clock);
  return submit(*stream, {[source = event->stream, ticket = event->ticket] { source->wait(ticket); }, {}});
}

API cuEventSynchronize(const void* handle) {
  auto lock = lock_driver();
  std::shared_ptr<Event> event;
  TRY(find_event(handle, event));
  if (event->capture_number != 0) return CUDA_ERROR_CAPTURED_EVENT;
  TRY(unsafe_call());
  count(&FakeCounters::host_waits);
  const auto source = event->stream;
  const uint64_t ticket = event->ticket;
  lock.unlock();
  if (source) source->wait(ticket);
  return CUDA_SUCCESS;
}

API cuEventQuery(const void* handle) {
  auto lock = lock_driver();
  std::shared_ptr<Event> event;
  TRY(find_event(handle, event));
  if (event->capture_number != 0) return CUDA_ERROR_CAPTURED_EVENT;
  TRY(unsafe_call());
  return !event->recorded || event->stream->done(event->ticket) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

API cuEventElapsedTime(float* milliseconds, const void* start_handle, const void* end_handle) {
  auto lock = lock_driver();
  std::shared_ptr<Event> start, end;
  TRY(find_event(start_handle, start));
  TRY(find_event(end_handle, end));
  constexpr unsigned DISABLE_TIMING = 2;
  if (!start->recorded || !end->recorded || (start->flags | end->flags) & DISABLE_TIMING) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  if (start->capture_number != 0 || end->capture_number != 0) return CUDA_ERROR_CAPTURED_EVENT;
  if (!start->stream->done(start->ticket) || !end->stream->done(end->ticket)) return CUDA_ERROR_NOT_READY;
  *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
  return CUDA_SUCCESS;
}

API cuEventElapsedTime_v2(float* milliseconds, const void* start, const void* end) {
  return cuEventElapsedTime(milliseconds, start, end);
}
