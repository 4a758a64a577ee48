// The driver's own state.
#include "state.h"

#include <pthread.h>

#include <cstdarg>
#include <cstdio>

namespace fake {

Driver& driver() {
  static auto* one = new Driver;
  return *one;
}

ThreadState& thread_state() {
  static const pthread_key_t key = [] {
    pthread_key_t made;
    pthread_key_create(&made, [](void* state) { delete static_cast<ThreadState*>(state); });
    return made;
  }();
  auto* state = static_cast<ThreadState*>(pthread_getspecific(key));
  if (state == nullptr) {
    state = new ThreadState;
    pthread_setspecific(key, state);
  }
  return *state;
}

int device_count() { return int(setting("FAKE_CUDA_DEVICES", 1)); }

CUresult current_context(Context*& context) {
  if (!driver().initialized) return CUDA_ERROR_NOT_INITIALIZED;
  context = thread_state().context;
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  return context->references > 0 ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

void misuse(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fputs("FAKE CUDA DRIVER: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::abort();
}

}  // namespace fake
