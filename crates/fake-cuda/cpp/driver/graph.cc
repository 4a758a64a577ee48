// Graphs: instantiated once, then launched with the work and parameters that were captured.
#include "graph.h"

#include <algorithm>

namespace fake {
namespace {

/// An instantiated graph. Launches alternate between the order of the capture and one that runs the newest node
/// possible: a dependency that was not captured gives wrong results.
struct GraphExec {
  Graph graph;
  std::vector<unsigned> newest_first;
  uint64_t launches = 0;
};

std::vector<unsigned> order_newest_first(const Graph& graph) {
  std::vector<unsigned> order;
  std::vector<bool> done(graph.nodes.size());
  const auto ready = [&](unsigned i) {
    const auto& before = graph.nodes[i].dependencies;
    return !done[i] && std::all_of(before.begin(), before.end(), [&](unsigned j) { return done[j]; });
  };
  while (order.size() < graph.nodes.size()) {
    unsigned i = unsigned(graph.nodes.size()) - 1;
    while (!ready(i)) i--;
    done[i] = true;
    order.push_back(i);
  }
  return order;
}

std::set<const void*>& live_graphs() {
  static auto* handles = new std::set<const void*>;
  return *handles;
}

}  // namespace
}  // namespace fake

using namespace fake;

API cuGraphInstantiateWithFlags(GraphExec** exec, const Graph* graph, unsigned long long) {
  auto lock = lock_driver();
  if (exec == nullptr || graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *exec = new GraphExec{*graph, order_newest_first(*graph)};
  live_graphs().insert(*exec);
  return CUDA_SUCCESS;
}

API cuGraphLaunch(GraphExec* exec, const void* handle) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  if (live_graphs().count(exec) == 0) return CUDA_ERROR_INVALID_HANDLE;
  TRY(refuse_in_capture(*stream));
  const bool reorder = exec->launches++ % 2 != 0;
  for (unsigned i = 0; i < exec->graph.nodes.size(); i++) {
    const Work& work = exec->graph.nodes[reorder ? exec->newest_first[i] : i].work;
    if (work.run) TRY(submit(*stream, work));
  }
  count(&FakeCounters::graph_launches);
  return CUDA_SUCCESS;
}

API cuGraphUpload(GraphExec* exec, const void* handle) {
  auto lock = lock_driver();
  std::shared_ptr<Stream> stream;
  TRY(find_stream(handle, stream));
  return live_graphs().count(exec) != 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

API cuGraphGetNodes(const Graph* graph, const void** nodes, size_t* count) {
  if (graph == nullptr || count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const size_t total = graph->nodes.size();
  for (size_t i = 0; nodes != nullptr && i < std::min(*count, total); i++) nodes[i] = &graph->nodes[i];
  *count = total;
  return CUDA_SUCCESS;
}

API cuGraphDestroy(Graph* graph) {
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  delete graph;
  return CUDA_SUCCESS;
}

API cuGraphExecDestroy(GraphExec* exec) {
  auto lock = lock_driver();
  if (live_graphs().erase(exec) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete exec;
  return CUDA_SUCCESS;
}
