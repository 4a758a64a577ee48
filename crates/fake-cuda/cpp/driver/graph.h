// Stream capture and graphs: what is recorded instead of run, and run again at every launch.
#pragma once
#include <map>
#include <set>
#include <vector>

#include "stream.h"

namespace fake {

struct Node {
  Work work;  // of a fork: nothing
  std::vector<unsigned> dependencies;
};

struct Graph {
  std::vector<Node> nodes;  // each after those it depends on
};

/// A capture that has begun and not ended.
struct Capture {
  uint64_t number;  // never used twice
  CaptureMode mode;
  Stream* origin;
  ThreadState* owner;
  bool invalidated = false;
  Graph graph{};
  std::map<Stream*, std::set<unsigned>> ends{};  // per stream, the nodes its next node depends on

  CUresult add(Stream& stream, const Work& work);
  /// Takes a stream in, or makes one already in wait, after the nodes of an event.
  CUresult join(Stream& stream, const std::vector<unsigned>& nodes);
  bool all_joined() const;
  /// Returns every stream to running its work.
  void release_streams();
};

/// The capture of this number, if it has not ended.
Capture* find_capture(uint64_t number);

/// For calls that look at a stream from the host: error and end of the capture if the stream is in one.
CUresult refuse_in_capture(Stream& stream);

/// For calls that may synchronise or allocate: what the driver's documentation of cuThreadExchangeStreamCaptureMode
/// calls potentially unsafe.
CUresult unsafe_call();

}  // namespace fake
