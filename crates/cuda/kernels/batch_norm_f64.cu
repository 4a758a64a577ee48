// Batch norm of float64, with arithmetic in float64.

#include "batch_norm_kernels.cuh"

BATCH_NORM_PLANES(f64, double, 2)
BATCH_NORM_ROWS(f64, double, 2, 3)
BATCH_NORM_SINGLE(f64, double)
