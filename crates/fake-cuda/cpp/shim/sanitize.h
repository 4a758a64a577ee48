// What the sanitizers must be told about fibers.
//
// ThreadSanitizer sees each CUDA thread as a thread of its own, and only what orders CUDA threads as order: barriers
// and fences, not the schedule. So a missing __syncthreads() or __threadfence() is a reported race in every schedule.
// The scheduler itself is not instrumented: its own data is ordered by the switches, which are not reported.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#define SHIM_SCHEDULER __attribute__((no_sanitize("thread"), noinline))
#else
#define SHIM_SCHEDULER
#endif

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}
#endif

namespace shim {

#if defined(__SANITIZE_THREAD__)
/// A CUDA thread's stack is never another's: ThreadSanitizer remembers who used it.
inline constexpr bool OWN_STACKS = true;
/// All before a `happens_before` of an address comes before what follows a later `happens_after` of it.
inline void happens_before(void* address) { __tsan_release(address); }
inline void happens_after(void* address) { __tsan_acquire(address); }
inline void* trace_current() { return __tsan_get_current_fiber(); }
inline void* trace_new() { return __tsan_create_fiber(0); }
/// From here on the code runs as `trace`, without being ordered after what ran until now.
SHIM_SCHEDULER inline void trace_switch(void* trace) {
  constexpr unsigned NO_ORDER = 1;
  __tsan_switch_to_fiber(trace, NO_ORDER);
}
#else
inline constexpr bool OWN_STACKS = false;
inline void happens_before(void*) {}
inline void happens_after(void*) {}
inline void* trace_current() { return nullptr; }
inline void* trace_new() { return nullptr; }
inline void trace_switch(void*) {}
#endif

}  // namespace shim
