// Loading PTX: its version against the driver's, its entry points against the registry.
#include "module.h"

#include <cstdio>
#include <cstring>
#include <set>

#include "graph.h"

namespace fake {
namespace {

/// The newest PTX version (times ten) each driver version loads, from NVIDIA's PTX release notes.
struct PtxSupport {
  unsigned driver, ptx;
};
constexpr PtxSupport PTX_SUPPORT[] = {
    {10000, 63}, {10010, 64}, {10020, 65}, {11000, 70}, {11010, 71}, {11020, 72}, {11030, 73}, {11040, 74},
    {11050, 75}, {11060, 76}, {11070, 77}, {11080, 78}, {12000, 80}, {12010, 81}, {12020, 82}, {12030, 83},
    {12040, 84}, {12050, 85}, {12060, 85}, {12070, 86}, {12080, 87}, {12090, 88}, {13000, 90}, {13010, 91},
};

unsigned newest_ptx() {
  const uint64_t version = setting("FAKE_CUDA_DRIVER_VERSION", 13000);
  unsigned newest = 0;
  for (const auto& row : PTX_SUPPORT) {
    if (row.driver <= version) newest = row.ptx;
  }
  return newest;
}

std::set<const void*>& live_modules() {
  static auto* handles = new std::set<const void*>;
  return *handles;
}

/// The declaration of an entry point: from its name to the brace that opens its body.
std::string find_entry(const std::string& ptx, const std::string& name) {
  const size_t start = ptx.find(".entry " + name + "(");
  return start == std::string::npos ? "" : ptx.substr(start, ptx.find('{', start) - start);
}

/// The one parameter of an entry point must be the struct the kernel was compiled with here.
bool parameters_agree(const std::string& entry, const FakeKernel& kernel) {
  unsigned alignment = 0, bytes = 0;
  const size_t first = entry.find(".param");
  const bool alone = first != std::string::npos && entry.find(".param", first + 1) == std::string::npos;
  const std::string format = std::string(".param .align %u .b8 ") + kernel.name + "_param_0[%u]";
  const bool parsed = alone && std::sscanf(entry.c_str() + first, format.c_str(), &alignment, &bytes) == 2;
  if (parsed && alignment == kernel.parameter_alignment && bytes == kernel.parameter_bytes) return true;
  std::fprintf(stderr,
               "FAKE CUDA DRIVER: the PTX declares %s with other parameters than the %zu bytes, aligned to %zu, of its "
               "source: %s\n",
               kernel.name, kernel.parameter_bytes, kernel.parameter_alignment, entry.c_str());
  return false;
}

unsigned max_threads(const std::string& entry) {
  unsigned x = 0, y = 1, z = 1;
  const size_t start = entry.find(".maxntid");
  if (start == std::string::npos) return shim::MAX_BLOCK_THREADS;
  std::sscanf(entry.c_str() + start, ".maxntid %u, %u, %u", &x, &y, &z);
  return x * y * z;
}

}  // namespace
}  // namespace fake

using namespace fake;

API cuModuleLoadData(Module** module, const char* image) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  TRY(unsafe_call());
  if (module == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const char* line = std::strstr(image, ".version ");
  unsigned major = 0, minor = 0;
  if (line == nullptr || std::sscanf(line, ".version %u.%u", &major, &minor) != 2) return CUDA_ERROR_INVALID_IMAGE;
  if (major * 10 + minor > newest_ptx()) return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
  *module = new Module{image, {}};
  live_modules().insert(*module);
  return CUDA_SUCCESS;
}

API cuModuleLoadDataEx(Module** module, const char* image, unsigned, int*, void**) {
  return cuModuleLoadData(module, image);
}

API cuModuleUnload(Module* module) {
  auto lock = lock_driver();
  if (live_modules().erase(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete module;
  return CUDA_SUCCESS;
}

API cuModuleGetFunction(Function** function, Module* module, const char* name) {
  auto lock = lock_driver();
  Context* context;
  TRY(current_context(context));
  if (live_modules().count(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  const std::string entry = find_entry(module->ptx, name);
  const FakeKernel* kernel = fake_find_kernel(name);
  if (entry.empty()) return CUDA_ERROR_NOT_FOUND;
  if (kernel == nullptr) {
    std::fprintf(stderr, "FAKE CUDA DRIVER: no kernel %s was compiled into this library\n", name);
    return CUDA_ERROR_NOT_FOUND;
  }
  if (!parameters_agree(entry, *kernel)) return CUDA_ERROR_INVALID_PTX;
  module->functions.push_back(std::make_unique<Function>(Function{kernel, max_threads(entry)}));
  *function = module->functions.back().get();
  return CUDA_SUCCESS;
}
