// One thread block on one operating system thread: runs every CUDA thread to its next barrier in the order asked for,
// then releases the barriers that are complete. What would hang or be undefined on a GPU ends the process.
//
// A thread that meets no barrier costs no switch: the fiber that ran it goes on with the next thread. Not under
// ThreadSanitizer, which would take the second thread's use of the stack for a race with the first's: there every thread
// has a fiber of its own.
#pragma once
#include <bit>
#include <cstring>

#include "core.h"
#include "fiber.h"
#include "sanitize.h"

namespace shim {

enum class State : uint8_t { Fresh, Ready, AtBlockBarrier, AtWarpBarrier, Done };

/// What the lanes of a warp do together. All lanes of one barrier must do the same.
enum class WarpOp : uint8_t { Barrier, Shuffle, Ballot };

/// A lane's part in a warp barrier: what it brings, whose value it wants, and, once released, what it got.
struct WarpRequest {
  WarpOp op;
  unsigned mask;
  int source;  // lane within the warp; its own for none
  uint64_t value, result;
};

/// One CUDA thread of the block.
struct Lane {
  uint3 thread_index;
  unsigned linear;
  State state;
  WarpRequest request;
  Fiber* fiber;  // null before it runs, unless it is its own
  void* trace;   // what ThreadSanitizer knows it as
};

/// What kernel code runs: a closure without its type.
struct Body {
  void (*call)(const void* closure);
  const void* closure;
};

struct BlockRunner;
/// The runner of this operating system thread while it runs a block. The shim's only thread-local variable: see
/// poison.h.
inline thread_local BlockRunner* runner = nullptr;

/// Runs the blocks of a launch that fall to one operating system thread. Kept between launches for its stacks.
struct BlockRunner {
  dim3 grid, block;
  uint3 block_index{};
  Body body{};
  const char* kernel = "";
  char* dynamic_shared = nullptr;
  Lane* current = nullptr;
  BlockRunner* next_free = nullptr;

  void prepare(dim3 grid_size, dim3 block_size, Body what, const char* name, unsigned order_number);
  void run(uint64_t index);

  /// Called on the fiber of the current lane.
  void block_barrier();
  uint64_t warp_barrier(WarpOp op, unsigned mask, int source, uint64_t value);

  [[noreturn]] void die(const Lane& lane, const char* what, unsigned detail) const {
    fatal("kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s (%#x)", kernel, block_index.x, block_index.y,
          block_index.z, lane.thread_index.x, lane.thread_index.y, lane.thread_index.z, what, detail);
  }

 private:
  Lane* lanes = nullptr;
  unsigned* sequence = nullptr;  // the order threads run in
  unsigned capacity = 0, count = 0, cursor = 0, done = 0;
  unsigned order_number = 0;
  Random random{0};
  unsigned generation = 0;  // of block barriers
  // What orders lanes, for ThreadSanitizer: two generations of the block barrier and of each warp's.
  char start_order, end_order, block_order[2], warp_order[MAX_BLOCK_THREADS / WARP][2];
  unsigned warp_generation[MAX_BLOCK_THREADS / WARP] = {};
  Fiber scheduler;
  Fiber* free_fibers = nullptr;

  static void fiber_main();
  void run_threads();
  Fiber* take_fiber();
  Lane* next_runnable();
  void make_sequence();
  void shuffle_sequence();
  void leave(Fiber& from, Lane* next);
  void release();
  bool release_block_barrier();
  bool release_warp(unsigned warp);
  bool warp_is_complete(const Lane& lane, unsigned first, unsigned last) const;
  void deliver(const Lane& lane, unsigned first, unsigned last);
};

inline void BlockRunner::prepare(dim3 grid_size, dim3 block_size, Body what, const char* name, unsigned order) {
  grid = grid_size, block = block_size, body = what, kernel = name, order_number = order;
  count = block.x * block.y * block.z;
  if (count > capacity) {
    lanes = static_cast<Lane*>(std::realloc(static_cast<void*>(lanes), count * sizeof(Lane)));
    sequence = static_cast<unsigned*>(std::realloc(sequence, count * sizeof(unsigned)));
    for (unsigned i = capacity; i < count; i++) {
      lanes[i].trace = trace_new();
      lanes[i].fiber = OWN_STACKS ? new_fiber(fiber_main) : nullptr;
    }
    capacity = count;
  }
  for (unsigned i = 0; i < count; i++) lanes[i].thread_index = position(i, block), lanes[i].linear = i;
}

inline void BlockRunner::make_sequence() {
  for (unsigned i = 0; i < count; i++) sequence[i] = order_number == 1 ? count - 1 - i : i;
}

/// A new order for every pass, the same for the same seed and block.
SHIM_SCHEDULER inline void BlockRunner::shuffle_sequence() {
  for (unsigned i = count - 1; i > 0; i--) {
    const unsigned j = unsigned(random.next() % (i + 1)), kept = sequence[i];
    sequence[i] = sequence[j], sequence[j] = kept;
  }
}

inline void BlockRunner::run(uint64_t index) {
  block_index = position(index, grid);
  random = Random(order_number + index * 0x2545F4914F6CDD1Du);
  make_sequence();
  void* worker_trace = trace_current();
  for (unsigned i = 0; i < count; i++) {
    lanes[i].state = State::Fresh;
    if (!OWN_STACKS) lanes[i].fiber = nullptr;
  }
  done = 0;
  happens_before(&start_order);
  run_threads();
  trace_switch(worker_trace);
  happens_after(&end_order);
}

SHIM_SCHEDULER inline void BlockRunner::run_threads() {
  for (;;) {
    if (order_number > 1) shuffle_sequence();
    cursor = 0;
    leave(scheduler, next_runnable());
    if (done == count) return;
    release();
  }
}

/// The next thread in order that can run, from the cursor on.
SHIM_SCHEDULER inline Lane* BlockRunner::next_runnable() {
  while (cursor < count) {
    Lane& lane = lanes[sequence[cursor++]];
    if (lane.state == State::Fresh || lane.state == State::Ready) return &lane;
  }
  return nullptr;
}

SHIM_SCHEDULER inline Fiber* BlockRunner::take_fiber() {
  Fiber* fiber = free_fibers;
  if (fiber == nullptr) return new_fiber(fiber_main);
  free_fibers = fiber->next_free;
  return fiber;
}

/// Suspends `from` and goes on with `next`, or with the scheduler when no thread can run.
SHIM_SCHEDULER inline void BlockRunner::leave(Fiber& from, Lane* next) {
  if (next == nullptr) return switch_fiber(from, scheduler);
  if (next->fiber == nullptr) next->fiber = take_fiber();
  current = next;
  trace_switch(next->trace);
  switch_fiber(from, *next->fiber);
}

/// Runs its own lane, block after block; or any lanes from their beginning, one after the other, as long as the next one
/// to run is at its beginning.
SHIM_SCHEDULER inline void BlockRunner::fiber_main() {
  BlockRunner& self = *runner;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  for (;;) {
    Lane* lane = self.current;
    Fiber* fiber = lane->fiber;
    happens_after(&self.start_order);
    self.body.call(self.body.closure);
    happens_before(&self.end_order);
    lane->state = State::Done;
    self.done++;
    Lane* next = self.next_runnable();
    if (OWN_STACKS) {
      self.leave(*fiber, next);
      continue;
    }
    if (next != nullptr && next->state == State::Fresh) {
      next->fiber = fiber;
      self.current = next;
      continue;
    }
    fiber->next_free = self.free_fibers;
    self.free_fibers = fiber;
    self.leave(*fiber, next);
  }
}

SHIM_SCHEDULER inline void BlockRunner::block_barrier() {
  Lane& lane = *current;
  const unsigned parity = generation & 1;
  happens_before(&block_order[parity]);
  lane.state = State::AtBlockBarrier;
  leave(*lane.fiber, next_runnable());
  happens_after(&block_order[parity]);
}

SHIM_SCHEDULER inline uint64_t BlockRunner::warp_barrier(WarpOp op, unsigned mask, int source, uint64_t value) {
  Lane& lane = *current;
  const unsigned warp = lane.linear / WARP;
  char* order = &warp_order[warp][warp_generation[warp] & 1];
  happens_before(order);
  lane.request = {op, mask, source, value, value};
  lane.state = State::AtWarpBarrier;
  leave(*lane.fiber, next_runnable());
  happens_after(order);
  return lane.request.result;
}

/// Frees whoever waits at a complete barrier. Nobody freed is a deadlock.
SHIM_SCHEDULER inline void BlockRunner::release() {
  bool progress = false;
  for (unsigned warp = 0; warp * WARP < count; warp++) progress |= release_warp(warp);
  if (progress) return;
  if (release_block_barrier()) return;
  for (unsigned i = 0; i < count; i++) {
    if (lanes[i].state == State::AtWarpBarrier) {
      die(lanes[i], "deadlock: waits at a *_sync of this mask for lanes that wait elsewhere", lanes[i].request.mask);
    }
  }
}

SHIM_SCHEDULER inline bool BlockRunner::release_block_barrier() {
  unsigned waiting = 0;
  const Lane* first = nullptr;
  for (unsigned i = 0; i < count; i++) {
    if (lanes[i].state != State::AtBlockBarrier) continue;
    if (first == nullptr) first = &lanes[i];
    waiting++;
  }
  if (waiting + done < count) return false;
  if (done != 0) die(*first, "__syncthreads() reached by only part of the block; threads that had exited", done);
  for (unsigned i = 0; i < count; i++) lanes[i].state = State::Ready;
  generation++;
  return true;
}

SHIM_SCHEDULER inline bool BlockRunner::release_warp(unsigned warp) {
  const unsigned first = warp * WARP, last = first + WARP < count ? first + WARP : count;
  bool progress = false;
  for (unsigned i = first; i < last; i++) {
    if (lanes[i].state != State::AtWarpBarrier || !warp_is_complete(lanes[i], first, last)) continue;
    deliver(lanes[i], first, last);
    progress = true;
  }
  if (progress) warp_generation[warp]++;
  return progress;
}

/// Whether every lane in this lane's mask waits with the same mask.
SHIM_SCHEDULER inline bool BlockRunner::warp_is_complete(const Lane& lane, unsigned first, unsigned last) const {
  const unsigned mask = lane.request.mask, present = last - first;
  if (!(mask >> (lane.linear - first) & 1)) die(lane, "lane is not in its own *_sync mask", mask);
  if (present < WARP && mask >> present != 0) die(lane, "*_sync mask names lanes the block does not have", mask);
  bool complete = true;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const Lane& other = lanes[first + unsigned(__builtin_ctz(rest))];
    if (other.state == State::Done) die(lane, "*_sync mask names a lane that has exited", mask);
    if (other.state != State::AtWarpBarrier || other.request.mask != mask) {
      complete = false;
    } else if (other.request.op != lane.request.op) {
      die(lane, "lanes of one mask are at different *_sync functions", mask);
    }
  }
  return complete;
}

/// Gives every lane of a complete barrier its result and frees it.
SHIM_SCHEDULER inline void BlockRunner::deliver(const Lane& lane, unsigned first, unsigned) {
  const unsigned mask = lane.request.mask;
  unsigned ballot = 0;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const unsigned index = unsigned(__builtin_ctz(rest));
    ballot |= unsigned(lanes[first + index].request.value != 0) << index;
  }
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    Lane& to = lanes[first + unsigned(__builtin_ctz(rest))];
    if (to.request.op == WarpOp::Ballot) to.request.result = ballot;
    if (to.request.op == WarpOp::Shuffle) {
      // A lane outside the mask has nothing to give: its value is undefined, here NaN.
      const bool present = mask >> to.request.source & 1;
      to.request.result = present ? lanes[first + unsigned(to.request.source)].request.value : ~uint64_t{0};
    }
    to.state = State::Ready;
  }
}

}  // namespace shim
