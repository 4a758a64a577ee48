// Batch norm of float16, with arithmetic in float32.

#include "batch_norm_kernels.cuh"

BATCH_NORM_PLANES(f16, __half, 8)
BATCH_NORM_PLANES(f16, __half, 4)
BATCH_NORM_ROWS(f16, __half, 4, 3)
BATCH_NORM_SINGLE(f16, __half)
