// Batch norm of float32, with arithmetic in float32.

#include "batch_norm_kernels.cuh"

BATCH_NORM_PLANES(f32, float, 4)
BATCH_NORM_ROWS(f32, float, 4, 4)
BATCH_NORM_SINGLE(f32, float)
