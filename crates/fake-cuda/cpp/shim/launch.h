// A grid: its blocks are dealt to operating system threads, the launching one included, in the order asked for.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <thread>

#include "block.h"
#include "poison.h"

namespace shim {

inline std::atomic<unsigned>& order() {
  static std::atomic<unsigned> number = [] {
    const char* text = std::getenv("FAKE_CUDA_ORDER");
    return text ? unsigned(std::atoi(text)) : 0u;
  }();
  return number;
}

/// One launch, shared by the threads that run its blocks.
struct Grid {
  dim3 grid, block;
  size_t shared_bytes;
  Body body;
  const char* kernel;
  unsigned order_number;
  uint64_t blocks, step, offset;  // block i of the order is block (i * step + offset) % blocks
  std::atomic<uint64_t> next{0};
  unsigned helpers = 0;  // guarded by the pool's mutex
  Grid* queued = nullptr;

  uint64_t block_at(uint64_t i) const {
    if (order_number == 0) return i;
    if (order_number == 1) return blocks - 1 - i;
    return uint64_t(((unsigned __int128)i * step + offset) % blocks);
  }
};

/// Threads that help with the blocks of launches. Made at the first launch of more than one block; never destroyed,
/// because streams may still launch while the process exits.
class Pool {
 public:
  static Pool& get() {
    static Pool* pool = new Pool;
    return *pool;
  }

  void run(Grid& grid) {
    const bool shared = grid.blocks > 1 && helper_count_ > 0;
    if (shared) offer(grid);
    run_blocks(grid);
    if (shared) withdraw(grid);
  }

 private:
  std::mutex mutex_;
  std::condition_variable work_, finished_;
  Grid* queue_ = nullptr;
  BlockRunner* free_runners_ = nullptr;
  unsigned helper_count_;
  bool started_ = false;

  Pool() {
    const char* text = std::getenv("FAKE_CUDA_WORKERS");
#if defined(__SANITIZE_THREAD__)
    const unsigned usual = 4;  // blocks of one thread are ordered, so a race between blocks needs several threads
#else
    const unsigned usual = std::thread::hardware_concurrency();
#endif
    const unsigned workers = text ? unsigned(std::atoi(text)) : usual;
    helper_count_ = workers > 1 ? workers - 1 : 0;
  }

  void offer(Grid& grid) {
    std::lock_guard lock(mutex_);
    if (!started_) {
      started_ = true;
      for (unsigned i = 0; i < helper_count_; i++) std::thread([this] { help(); }).detach();
    }
    grid.queued = queue_;
    queue_ = &grid;
    work_.notify_all();
  }

  void withdraw(Grid& grid) {
    std::unique_lock lock(mutex_);
    for (Grid** link = &queue_; *link != nullptr; link = &(*link)->queued) {
      if (*link == &grid) {
        *link = grid.queued;
        break;
      }
    }
    finished_.wait(lock, [&] { return grid.helpers == 0; });
  }

  /// A queued grid that still has blocks to give.
  Grid* find_work() {
    for (Grid* grid = queue_; grid != nullptr; grid = grid->queued) {
      if (grid->next.load(std::memory_order_relaxed) < grid->blocks) return grid;
    }
    return nullptr;
  }

  void help() {
    for (;;) {
      std::unique_lock lock(mutex_);
      Grid* grid = nullptr;
      work_.wait(lock, [&] { return (grid = find_work()) != nullptr; });
      grid->helpers++;
      lock.unlock();
      run_blocks(*grid);
      lock.lock();
      if (--grid->helpers == 0) finished_.notify_all();
    }
  }

  BlockRunner* take_runner() {
    std::lock_guard lock(mutex_);
    BlockRunner* taken = free_runners_;
    if (taken == nullptr) return new BlockRunner;
    free_runners_ = taken->next_free;
    return taken;
  }

  void give_back(BlockRunner* taken) {
    std::lock_guard lock(mutex_);
    taken->next_free = free_runners_;
    free_runners_ = taken;
  }

  void run_blocks(Grid& grid) {
    uint64_t i = grid.next.fetch_add(1, std::memory_order_relaxed);
    if (i >= grid.blocks) return;
    BlockRunner* mine = take_runner();
    DynamicShared dynamic(grid.shared_bytes);
    mine->dynamic_shared = dynamic.start();
    mine->prepare(grid.grid, grid.block, grid.body, grid.kernel, grid.order_number);
    runner = mine;
    for (; i < grid.blocks; i = grid.next.fetch_add(1, std::memory_order_relaxed)) {
      poison_static_shared();
      dynamic.poison();
      mine->run(grid.block_at(i));
      if (dynamic.overrun()) {
        fatal("kernel %s wrote beyond its %zu dynamic shared bytes", grid.kernel, grid.shared_bytes);
      }
    }
    runner = nullptr;
    give_back(mine);
  }
};

inline void check_limits(dim3 grid, dim3 block, size_t shared_bytes, const char* kernel) {
  const auto threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > MAX_BLOCK_THREADS || block.z > MAX_BLOCK_Z) {
    fatal("kernel %s: a block is 1 to %u threads with z <= %u, got (%u, %u, %u)", kernel, MAX_BLOCK_THREADS,
          MAX_BLOCK_Z, block.x, block.y, block.z);
  }
  const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0;
  if (empty || grid.x > MAX_GRID_X || grid.y > MAX_GRID_YZ || grid.z > MAX_GRID_YZ) {
    fatal("kernel %s: a grid is 1 to 2^31-1 blocks in x and 1 to %u in y and z, got (%u, %u, %u)", kernel, MAX_GRID_YZ,
          grid.x, grid.y, grid.z);
  }
  if (shared_bytes > MAX_SHARED_BYTES) {
    fatal("kernel %s: %zu bytes of shared memory, more than %zu", kernel, shared_bytes, MAX_SHARED_BYTES);
  }
}

/// The multiplier and offset of an order of the blocks: any multiplier without common divisor visits each block once.
inline void shuffle_blocks(Grid& grid) {
  Random random(grid.order_number);
  grid.offset = random.next() % grid.blocks;
  do grid.step = random.next() % grid.blocks; while (std::gcd(grid.step, grid.blocks) != 1);
}

/// Runs `body` as every CUDA thread of the grid and returns when all have exited.
template <class Closure>
void launch(dim3 grid, dim3 block, size_t shared_bytes, const Closure& body, const char* kernel = "(unnamed)") {
  check_limits(grid, block, shared_bytes, kernel);
  const Body erased = {[](const void* closure) { (*static_cast<const Closure*>(closure))(); }, &body};
  Grid work{grid, block, shared_bytes, erased, kernel, order().load(), uint64_t(grid.x) * grid.y * grid.z, 1, 0};
  if (work.order_number > 1) shuffle_blocks(work);
  Pool::get().run(work);
}

}  // namespace shim
