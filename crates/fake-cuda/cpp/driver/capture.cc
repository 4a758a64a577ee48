// Stream capture: which work is recorded, and which calls a capture forbids.
#include <algorithm>

#include "graph.h"

namespace fake {

CUresult Capture::add(Stream& stream, const Work& work) {
  if (invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  auto& end = ends[&stream];
  graph.nodes.push_back({work, {end.begin(), end.end()}});
  end = {unsigned(graph.nodes.size() - 1)};
  return CUDA_SUCCESS;
}

CUresult Capture::join(Stream& stream, const std::vector<unsigned>& nodes) {
  if (invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  const bool forks = stream.capture == nullptr;
  stream.capture = this;
  ends[&stream].insert(nodes.begin(), nodes.end());
  // An empty node stands for the fork itself, so that it must be joined even if nothing follows.
  return forks ? add(stream, {}) : CUDA_SUCCESS;
}

bool Capture::all_joined() const {
  std::vector<bool> reached(graph.nodes.size());
  for (unsigned node : ends.at(origin)) reached[node] = true;
  for (size_t i = graph.nodes.size(); i-- > 0;) {
    if (!reached[i]) return false;
    for (unsigned before : graph.nodes[i].dependencies) reached[before] = true;
  }
  return true;
}

void Capture::release_streams() {
  for (auto& [stream, end] : ends) {
    // A destroyed stream has left the driver's list, and nobody can use it.
    if (driver().streams.count(stream) != 0) stream->capture = nullptr;
  }
}

Capture* find_capture(uint64_t number) {
  for (Capture* capture : driver().captures) {
    if (capture->number == number) return capture;
  }
  return nullptr;
}

CUresult refuse_in_capture(Stream& stream) {
  if (stream.capture == nullptr) return CUDA_SUCCESS;
  stream.capture->invalidated = true;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

/// Whether this thread may not make unsafe calls because of this capture.
static bool forbids(const Capture& capture) {
  const CaptureMode interaction = thread_state().interaction;
  if (interaction == CaptureMode::Relaxed) return false;
  if (capture.owner == &thread_state()) return capture.mode != CaptureMode::Relaxed;
  return interaction == CaptureMode::Global && capture.mode == CaptureMode::Global;
}

CUresult unsafe_call() {
  CUresult result = CUDA_SUCCESS;
  for (Capture* capture : driver().captures) {
    if (!forbids(*capture)) continue;
    capture->invalidated = true;
    result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return result;
}

}  // namespace fake

using namespace fake;

API cuThreadExchangeStreamCaptureMode(int* mode) {
  if (mode == nullptr || *mode < 0 || *mode > 2) return CUDA_ERROR_INVALID_VALUE;
  const CaptureMode before = thread_state().interaction;
  thread_state().interaction = CaptureMode(*mode);
  *mode = int(before);
  return CUDA_SUCCESS;
}

API cuStreamBeginCapture_v2(const void* handle, int mode) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  if (mode < 0 || mode > 2) return CUDA_ERROR_INVALID_VALUE;
  if (stream->kind == StreamKind::Legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  static uint64_t next_number = 1;
  auto* capture = new Capture{next_number++, CaptureMode(mode), stream.get(), &thread_state()};
  capture->ends[stream.get()] = {};
  stream->capture = capture;
  driver().captures.insert(capture);
  return CUDA_SUCCESS;
}

/// What is wrong with ending this capture, if anything.
static CUresult capture_result(const Capture& capture, const Stream& stream) {
  if (capture.origin != &stream) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  if (capture.invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  return capture.all_joined() ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
}

API cuStreamEndCapture(const void* handle, Graph** graph) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  Capture* capture = stream->capture;
  *graph = nullptr;
  if (capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  if (capture->mode != CaptureMode::Relaxed && capture->owner != &thread_state()) {
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  }
  const CUresult result = capture_result(*capture, *stream);
  if (result == CUDA_SUCCESS) *graph = new Graph(std::move(capture->graph));
  capture->release_streams();
  driver().captures.erase(capture);
  delete capture;
  return result;
}

/// 0: not capturing, 1: capturing, 2: invalidated.
static int capture_status(const Stream& stream) {
  if (stream.capture == nullptr) return 0;
  return stream.capture->invalidated ? 2 : 1;
}

API cuStreamIsCapturing(const void* handle, int* status) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  *status = capture_status(*stream);
  return CUDA_SUCCESS;
}

API cuStreamGetCaptureInfo_v2(const void* handle, int* status, uint64_t* number, Graph** graph, const void*** nodes,
                              size_t* node_count) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  *status = capture_status(*stream);
  if (*status != 1) return CUDA_SUCCESS;
  if (number != nullptr) *number = stream->capture->number;
  // Adding nodes by hand is not supported: the graph under construction and its nodes stay hidden.
  if (graph != nullptr) *graph = nullptr;
  if (nodes != nullptr) *nodes = nullptr;
  if (node_count != nullptr) *node_count = 0;
  return CUDA_SUCCESS;
}
