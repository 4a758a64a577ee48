// Finds the fake driver by its name.
#include "cuda.h"

#include <dlfcn.h>

namespace nccl {

template <class F>
static bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

const Cuda* cuda() {
  static Cuda found;
  static const bool complete = [] {
    void* library = dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) library = dlopen("libcuda.so.1", RTLD_NOW);
    return library != nullptr && find(library, "fake_submit", found.submit) &&
           find(library, "fake_stream_position", found.stream_position) &&
           find(library, "fake_ordered_after", found.ordered_after) &&
           find(library, "fake_count_collective", found.count_collective) &&
           find(library, "cuCtxGetDevice", found.current_device) &&
           find(library, "cuCtxGetCurrent", found.current_context) &&
           find(library, "cuCtxSetCurrent", found.set_context) &&
           find(library, "cuStreamIsCapturing", found.is_capturing);
  }();
  return complete ? &found : nullptr;
}

}  // namespace nccl
