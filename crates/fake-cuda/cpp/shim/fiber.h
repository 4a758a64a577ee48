// A stack of its own and the switch to it: 15 instructions on x86-64, ucontext elsewhere.
#pragma once
#include <sys/mman.h>

#include "core.h"
#include "sanitize.h"

#if !defined(__x86_64__) || defined(SHIM_UCONTEXT)
#include <ucontext.h>
#define SHIM_USES_UCONTEXT 1
#endif

namespace shim {

/// A suspended flow of control. One without a stack stands for the operating system thread itself.
struct Fiber {
#if defined(SHIM_USES_UCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  char* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  Fiber* next_free = nullptr;
};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr size_t STACK_BYTES = 512 << 10;
#else
inline constexpr size_t STACK_BYTES = 128 << 10;
#endif
inline constexpr size_t GUARD_BYTES = 4 << 10;

#if defined(SHIM_USES_UCONTEXT)
SHIM_SCHEDULER inline void switch_stacks(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#else
/// Saves the callee-saved registers on this stack, its pointer in `*save`, and goes on where `to` was saved.
__attribute__((naked, noinline, no_sanitize("thread", "address", "undefined"))) inline void swap_stack_pointers(
    [[maybe_unused]] void** save, [[maybe_unused]] void* to) {
  asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}
SHIM_SCHEDULER inline void switch_stacks(Fiber& from, Fiber& to) {
  swap_stack_pointers(&from.stack_pointer, to.stack_pointer);
}
#endif

/// Suspends the code that calls this into `from` and resumes `to`.
SHIM_SCHEDULER inline void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
  switch_stacks(from, to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

/// A fiber that starts in `entry` when first switched to. Its stack ends in a page that faults: a kernel with too many
/// local bytes crashes instead of writing over its neighbour.
SHIM_SCHEDULER inline Fiber* new_fiber(void (*entry)()) {
  const size_t bytes = GUARD_BYTES + STACK_BYTES;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fatal("no memory for the stack of a CUDA thread");
  mprotect(memory, GUARD_BYTES, PROT_NONE);
  auto* fiber = new Fiber;
  fiber->stack = static_cast<char*>(memory) + GUARD_BYTES;
  fiber->stack_bytes = STACK_BYTES;
#if defined(SHIM_USES_UCONTEXT)
  getcontext(&fiber->context);
  fiber->context.uc_stack = {.ss_sp = fiber->stack, .ss_flags = 0, .ss_size = STACK_BYTES};
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, entry, 0);
#else
  // As if `entry` had been called and its caller's registers were saved: six registers, where to return to, and a
  // return address for `entry` itself, which never returns.
  constexpr unsigned SAVED_REGISTERS = 6;
  auto* top = reinterpret_cast<uintptr_t*>(fiber->stack + STACK_BYTES);
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (unsigned i = 0; i < SAVED_REGISTERS; i++) *--top = 0;
  fiber->stack_pointer = top;
#endif
  return fiber;
}

}  // namespace shim
