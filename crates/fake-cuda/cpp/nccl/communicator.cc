// Joining, waiting, and the rules about who may call when.
#include "communicator.h"

#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string_view>
#include <thread>
#include <utility>

#include "group.h"
#include "version.h"

namespace nccl {
namespace {

struct Table {
  std::mutex mutex;
  std::map<const void*, CommunicatorPtr> communicators;
  std::string last_error;
};

Table& table() {
  static auto* one = new Table;
  return *one;
}

/// True until its thread ends.
struct ThreadLife {
  std::shared_ptr<std::atomic<bool>> alive = std::make_shared<std::atomic<bool>>(true);
  ~ThreadLife() { *alive = false; }
};

std::shared_ptr<const std::atomic<bool>> this_thread() {
  static thread_local ThreadLife life;
  return life.alive;
}

/// What NCCL tells hosts apart by.
uint64_t host_hash() {
  char name[256] = {};
  if (const char* chosen = std::getenv("NCCL_HOSTID")) {
    std::snprintf(name, sizeof name, "%s", chosen);
  } else {
    gethostname(name, sizeof name - 1);
  }
  return std::hash<std::string_view>{}(name);
}

ncclResult_t check_duplicates(const Communicator& communicator) {
  if (enabled("NCCL_MULTI_RANK_GPU_ENABLE") && version() >= FIRST_WITH_SHARED_GPUS) return ncclSuccess;
  const RankSlot* ranks = communicator.shared->ranks;
  for (int a = 0; a < communicator.size; a++) {
    for (int b = a + 1; b < communicator.size; b++) {
      if (ranks[a].host != ranks[b].host || ranks[a].device != ranks[b].device) continue;
      return fail(ncclInvalidUsage, "Duplicate GPU detected : rank %d and rank %d both on CUDA device %d", a, b,
                  ranks[a].device);
    }
  }
  return ncclSuccess;
}

}  // namespace

bool enabled(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr && std::strcmp(text, "1") == 0;
}

unsigned random_below(unsigned bound) {
  static std::mutex mutex;
  static std::minstd_rand generator{unsigned(getpid())};
  std::lock_guard lock(mutex);
  return unsigned(generator() % bound);
}

void random_delay(std::chrono::microseconds longest) {
  constexpr unsigned ONE_IN = 4;
  if (random_below(ONE_IN) == 0) std::this_thread::sleep_for(longest * random_below(100) / 100);
}

ncclResult_t fail(ncclResult_t code, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "FAKE NCCL: %s\n", text);
  std::lock_guard lock(table().mutex);
  table().last_error = text;
  return code;
}

std::string last_error() {
  std::lock_guard lock(table().mutex);
  return table().last_error;
}

CommunicatorPtr find_communicator(const void* handle) {
  std::lock_guard lock(table().mutex);
  const auto found = table().communicators.find(handle);
  return found == table().communicators.end() ? nullptr : found->second;
}

void add_communicator(const CommunicatorPtr& communicator) {
  std::lock_guard lock(table().mutex);
  table().communicators[communicator.get()] = communicator;
}

void remove_communicator(const void* handle) {
  std::lock_guard lock(table().mutex);
  table().communicators.erase(handle);
}

ncclResult_t Communicator::join() {
  random_delay(std::chrono::milliseconds(3));
  const char* fails = std::getenv("FAKE_NCCL_FAIL_AFTER");
  if (fails != nullptr && std::strcmp(fails, "0") == 0) return fail(ncclSystemError, "told to fail");
  shared = open_shared(id);
  if (!shared) return fail(ncclSystemError, "the unique id names no process that waits for ranks");
  mine().device = device;
  mine().host = host_hash();
  int nobody = 0;
  if (!mine().pid.compare_exchange_strong(nobody, getpid())) {
    return fail(ncclInvalidUsage, "rank %d has joined already", rank);
  }
  const auto all_joined = [this] {
    for (int i = 0; i < size; i++) {
      if (shared->ranks[i].pid == 0) return false;
    }
    return true;
  };
  if (!spin(all_joined)) return ncclInternalError;
  close_shared_file(id, *shared);
  return check_duplicates(*this);
}

bool Communicator::spin(const std::function<bool()>& ready) {
  constexpr unsigned BUSY_ROUNDS = 200, ROUNDS_PER_DEATH_CHECK = 512;
  for (unsigned round = 1; !aborted; round++) {
    if (ready()) return true;
    if (round > BUSY_ROUNDS) std::this_thread::sleep_for(std::chrono::microseconds(20));
    else std::this_thread::yield();
    if (round % ROUNDS_PER_DEATH_CHECK == 0) report_death();
  }
  return false;
}

void Communicator::report_death() {
  static const bool wanted = enabled("FAKE_NCCL_REPORT_DEATH");
  for (int i = 0; wanted && i < size; i++) {
    const int pid = shared->ranks[i].pid;
    if (pid != 0 && has_ended(pid)) state = ncclRemoteError;
  }
}

bool Communicator::drain() {
  return spin([this] { return pending == 0 && recorded == 0; });
}

bool Communicator::drain_together() {
  if (!drain()) return false;
  mine().finalized = true;
  return spin([this] {
    return std::all_of(shared->ranks, shared->ranks + size, [](const RankSlot& rank) { return rank.finalized.load(); });
  });
}

ncclResult_t Communicator::put_away() {
  const auto began_it = std::exchange(starter, nullptr);
  if (!began_it || *began_it) return ncclSuccess;
  return fail(ncclInternalError, "a call is put away after the thread that made it has ended: its memory is gone");
}

ncclResult_t run_or_defer(const CommunicatorPtr& communicator, std::function<ncclResult_t()> rest) {
  const bool grouped = group_is_open();
  if (communicator->blocking && !grouped) {
    const ncclResult_t result = rest();
    communicator->state = result;
    return result;
  }
  communicator->state = ncclInProgress;
  if (!communicator->blocking) communicator->starter = this_thread();
  void* context = nullptr;
  if (cuda() != nullptr) cuda()->current_context(&context);
  std::thread([communicator, context, rest = std::move(rest)] {
    if (cuda() != nullptr) cuda()->set_context(context);
    random_delay(std::chrono::milliseconds(2));
    communicator->state = rest();
  }).detach();
  if (grouped) group_waits_for(communicator);
  return communicator->blocking ? ncclSuccess : ncclInProgress;
}

CallGuard::CallGuard(const void* handle) : communicator(find_communicator(handle)) {
  if (!communicator) {
    result = fail(ncclInvalidArgument, "the communicator does not exist (any more)");
    return;
  }
  if (communicator->in_call.exchange(true)) {
    result = fail(ncclInvalidUsage, "two threads are inside calls of one communicator");
    return;
  }
  entered_ = true;
  random_delay(std::chrono::microseconds(30));
  result = communicator->state;
  if (result == ncclInProgress) {
    result = fail(ncclInvalidArgument,
                  "Attempt to use communicator before the previous operation returned ncclSuccess");
  } else if (const auto gone = communicator->put_away()) {
    result = gone;
  }
}

CallGuard::~CallGuard() {
  if (entered_) communicator->in_call = false;
}

}  // namespace nccl
