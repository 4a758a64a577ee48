// Modules are PTX text. The text is not run: it must declare the kernels asked for, as the registry knows them.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "registry.h"
#include "result.h"

namespace fake {

/// A kernel of a loaded module.
struct Function {
  const FakeKernel* kernel;
  unsigned max_threads;              // of a block, from `.maxntid` if the text has one
  unsigned max_dynamic_shared = 48 << 10;
};

struct Module {
  std::string ptx;
  std::vector<std::unique_ptr<Function>> functions;
};

}  // namespace fake
