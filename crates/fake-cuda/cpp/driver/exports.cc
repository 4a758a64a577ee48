// The fake driver's side of exports.h.
#include "exports.h"

#include "memory.h"
#include "stream.h"

using namespace fake;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int fake_submit(const void* handle, const FakeWork* given) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  // One shared owner for all copies that queues and graphs make.
  auto work = std::shared_ptr<FakeWork>(new FakeWork(*given), [](FakeWork* last) {
    last->release(last->data);
    delete last;
  });
  const auto run = [work] { work->run(work->data); };
  const auto enqueued = [work](Stream& in, uint64_t ticket) {
    for (uint64_t pointer : work->pointers) note_use(in, ticket, pointer, work->what);
  };
  return submit(*stream, {run, enqueued});
}

EXPORT int fake_stream_position(const void* handle, int* device, FakePosition* last) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  *device = stream->context->device;
  *last = stream->capture != nullptr ? FakePosition{0, 0} : FakePosition{stream->number, stream->last_ticket()};
  return CUDA_SUCCESS;
}

EXPORT int fake_ordered_after(const void* handle, FakePosition position) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  if (find_stream(handle, stream) != CUDA_SUCCESS) return 0;
  const auto known = stream->clock.find(position.stream);
  return known != stream->clock.end() && known->second >= position.ticket;
}
