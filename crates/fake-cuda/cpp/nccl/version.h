// Which NCCL this library says it is: FAKE_NCCL_VERSION, 2.30.3 by default.
#pragma once
#include <cstdlib>

namespace nccl {

/// Ranks may share a GPU from here on, with NCCL_MULTI_RANK_GPU_ENABLE=1.
inline constexpr int FIRST_WITH_SHARED_GPUS = 23003;

inline int version() {
  const char* text = std::getenv("FAKE_NCCL_VERSION");
  return text != nullptr ? std::atoi(text) : 23003;
}

}  // namespace nccl
