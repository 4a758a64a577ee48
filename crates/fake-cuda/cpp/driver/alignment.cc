// The end of a misaligned load or store: kernels are compiled with -fsanitize=alignment, which calls this function, so
// no sanitizer library is needed. On a GPU it is CUDA_ERROR_MISALIGNED_ADDRESS.
#include <cstdint>

#include "shim/core.h"

namespace {

/// What the compiler passes: see TypeMismatchData of the sanitizer's interface.
struct MismatchSite {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};

}  // namespace

#if !defined(__SANITIZE_ADDRESS__)
extern "C" [[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(const MismatchSite* site, uintptr_t address) {
  shim::fatal("%s:%u: address %#zx is not aligned to the %u bytes of this access", site->file, site->line,
              size_t(address), 1u << site->log_alignment);
}
#endif
