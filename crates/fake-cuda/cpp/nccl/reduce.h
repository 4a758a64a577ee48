// The arithmetic of reductions, in the type of the elements, one rounding per rank as NCCL does it.
#pragma once
#include "shared.h"

namespace nccl {

/// Reduces one chunk of `ranks` ranks, beginning with rank `first`, into `to`.
void reduce(const Call& call, const char* const* of_rank, int ranks, int first, size_t bytes, char* to);

}  // namespace nccl
