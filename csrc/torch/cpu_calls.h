// What every CPU op needs of its thread and its CPU.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <new>
#include <string>

#include "bestow/cpu.h"

namespace bestow {

// Why there are no kernels to call.
inline std::string no_kernels() {
  const char* wanted = std::getenv("BESTOW_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0')
    return "the kernels were compiled for another machine (BESTOW_BUILD=here): make setup compiles them for all";
  return std::string("BESTOW_CPU_ISA=") + wanted + " does not run on this CPU, or was not compiled (make setup)";
}

inline const Kernels& chosen() {
  const Kernels* found = kernels();
  STD_TORCH_CHECK(found != nullptr, no_kernels());
  return *found;
}

// Memory that grows and is kept, of any content: fresh pages cost more than some kernels.
class Room {
 public:
  Room() = default;
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { std::free(data_); }

  template <class T = float>
  T* of(size_t n) {
    if (bytes_ < n * sizeof(T)) {
      std::free(data_);
      bytes_ = (n * sizeof(T) + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(64, bytes_);
      if (data_ == nullptr) {
        bytes_ = 0;
        throw std::bad_alloc();
      }
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Scratch memory of one thread.
inline void* workspace(size_t bytes) {
  static thread_local Room room;
  return room.of<char>(bytes);
}

// Fewer products are not worth a thread.
constexpr int64_t kProductsPerThread = 1 << 16;
inline int64_t outputs_per_thread(int64_t inputs, int64_t rows) { return 1 + kProductsPerThread / (inputs * rows + 1); }

}  // namespace bestow
