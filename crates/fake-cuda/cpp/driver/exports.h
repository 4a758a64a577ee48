// What the other fake libraries ask of the fake driver. They find it by name among the symbols already loaded.
#pragma once
#include <cstdint>

/// Work of another library on a stream, kept for as long as the stream or a graph may run it.
struct FakeWork {
  void (*run)(void* data);     // on the stream's thread, once for every launch
  void (*release)(void* data); // when nothing will run it again
  void* data;
  const char* what;            // for messages; lives for ever
  uint64_t pointers[3];        // device memory it uses, or 0
};

/// A point in the order of a stream.
struct FakePosition {
  uint64_t stream, ticket;
};

extern "C" {
/// Enqueues work, or records it in a capture. Returns a CUresult.
int fake_submit(const void* stream, const FakeWork* work);
/// The device and the position of the last work of a stream. Position 0, 0 in a capture. Returns a CUresult.
int fake_stream_position(const void* stream, int* device, FakePosition* last);
/// Whether what is enqueued next in a stream comes after this position: 1, 0, or 0 for a stream that is gone.
int fake_ordered_after(const void* stream, FakePosition position);
void fake_count_collective();
}
