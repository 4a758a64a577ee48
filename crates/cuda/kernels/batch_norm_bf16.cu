// Batch norm of bfloat16, with arithmetic in float32.

#include "batch_norm_kernels.cuh"

BATCH_NORM_PLANES(bf16, __nv_bfloat16, 8)
BATCH_NORM_PLANES(bf16, __nv_bfloat16, 4)
BATCH_NORM_ROWS(bf16, __nv_bfloat16, 4, 3)
BATCH_NORM_SINGLE(bf16, __nv_bfloat16)
