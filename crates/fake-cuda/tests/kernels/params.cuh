// The parameters of all test kernels.
#pragma once

struct FakeTestParams {
  const float* x;
  float* y;
  float value;
  unsigned count;
};
