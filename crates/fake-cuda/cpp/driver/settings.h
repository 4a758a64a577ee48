// The environment variables of the fake driver, read where they are used.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace fake {

/// The number in an environment variable, or `usual` when it is not set.
inline uint64_t setting(const char* name, uint64_t usual) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != 0 ? std::strtoull(text, nullptr, 10) : usual;
}

}  // namespace fake
