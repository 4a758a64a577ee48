// Primary contexts: one per device, counted, current per thread.
#include <vector>

#include "graph.h"

using namespace fake;

static CUresult primary_context(int device, Context*& context) {
  if (!driver().initialized) return CUDA_ERROR_NOT_INITIALIZED;
  if (device < 0 || device >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
  auto& slot = driver().contexts[device];
  if (!slot) slot = std::make_unique<Context>(Context{device, 0, nullptr, {}});
  context = slot.get();
  return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRetain(Context** context, int device) {
  auto lock = lock_driver();
  TRY(primary_context(device, *context));
  (*context)->references++;
  return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(int device) {
  auto lock = lock_driver();
  Context* context;
  TRY(primary_context(device, context));
  if (context->references == 0) return CUDA_ERROR_INVALID_CONTEXT;
  context->references--;
  return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  auto lock = lock_driver();
  Context* context;
  TRY(primary_context(device, context));
  *flags = 0;
  *active = context->references > 0;
  return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxSetFlags_v2(int device, unsigned) {
  auto lock = lock_driver();
  Context* context;
  return primary_context(device, context);
}

API cuCtxGetCurrent(Context** context) {
  if (!driver().initialized) return CUDA_ERROR_NOT_INITIALIZED;
  *context = thread_state().context;
  return CUDA_SUCCESS;
}

API cuCtxSetCurrent(Context* context) {
  if (!driver().initialized) return CUDA_ERROR_NOT_INITIALIZED;
  thread_state().context = context;
  return CUDA_SUCCESS;
}

API cuCtxGetDevice(int* device) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  *device = context->device;
  return CUDA_SUCCESS;
}

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return CUDA_SUCCESS;
}

/// Refuses while a stream of the context is in a capture, and ends that capture.
static CUresult refuse_while_capturing(const Context& context) {
  CUresult result = CUDA_SUCCESS;
  for (Capture* capture : driver().captures) {
    if (capture->origin->context != &context) continue;
    capture->invalidated = true;
    result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return result;
}

API cuCtxSynchronize() {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  TRY(refuse_while_capturing(*context));
  std::vector<std::pair<std::shared_ptr<Stream>, uint64_t>> waits;
  const auto add = [&](const std::shared_ptr<Stream>& stream) { waits.emplace_back(stream, stream->last_ticket()); };
  if (context->default_stream) add(context->default_stream);
  for (auto& [handle, stream] : driver().streams) {
    if (stream->context == context) add(stream);
  }
  count(&FakeCounters::host_waits);
  lock.unlock();
  for (auto& [stream, ticket] : waits) stream->wait(ticket);
  return CUDA_SUCCESS;
}

API cuCtxEnablePeerAccess(Context* peer, unsigned flags) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  if (peer == nullptr || flags != 0 || peer == context) return CUDA_ERROR_INVALID_VALUE;
  const bool added = context->peers.insert(peer->device).second;
  return added ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}
