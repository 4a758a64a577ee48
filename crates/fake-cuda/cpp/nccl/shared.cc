// The shared memory's file and the id that names it.
#include "shared.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

namespace nccl {
namespace {

/// What the bytes of a unique id hold.
struct IdContent {
  char magic[16];
  int pid, file;
  uint64_t secret;  // tells a process that was given the same number later
};
static_assert(sizeof(IdContent) <= sizeof(ncclUniqueId));
constexpr char MAGIC[16] = "fake nccl id";

Shared* map(int file) {
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<Shared*>(memory);
}

}  // namespace

ncclResult_t make_unique_id(ncclUniqueId& id) {
  IdContent content{};
  std::memcpy(content.magic, MAGIC, sizeof MAGIC);
  content.pid = getpid();
  content.file = memfd_create("fake_nccl", MFD_CLOEXEC);
  if (content.file < 0 || ftruncate(content.file, sizeof(Shared)) != 0) return ncclSystemError;
  if (getrandom(&content.secret, sizeof content.secret, 0) != sizeof content.secret) return ncclSystemError;
  Shared* shared = map(content.file);
  if (shared == nullptr) return ncclSystemError;
  shared->secret = content.secret;
  munmap(shared, sizeof(Shared));
  std::memset(&id, 0, sizeof id);
  std::memcpy(&id, &content, sizeof content);
  return ncclSuccess;
}

std::shared_ptr<Shared> open_shared(const ncclUniqueId& id) {
  IdContent content;
  std::memcpy(&content, &id, sizeof content);
  if (std::memcmp(content.magic, MAGIC, sizeof MAGIC) != 0) return nullptr;
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", content.pid, content.file);
  const int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return nullptr;
  std::shared_ptr<Shared> shared(map(file), [](Shared* mapped) {
    if (mapped != nullptr) munmap(mapped, sizeof(Shared));
  });
  close(file);
  if (shared && shared->secret != content.secret) return nullptr;
  return shared;
}

void close_shared_file(const ncclUniqueId& id, Shared& shared) {
  IdContent content;
  std::memcpy(&content, &id, sizeof content);
  if (content.pid == getpid() && !shared.file_closed.exchange(true)) close(content.file);
}

bool has_ended(int pid) {
  const int file = int(syscall(SYS_pidfd_open, pid, 0));
  if (file < 0) return true;
  pollfd poll_for{file, POLLIN, 0};
  const bool ended = poll(&poll_for, 1, 0) > 0;
  close(file);
  return ended;
}

}  // namespace nccl
