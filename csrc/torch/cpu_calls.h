// What every CPU op needs of its thread and its CPU.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <new>

#include "bestow/cpu.h"

namespace bestow {

inline const Kernels& chosen() {
  const Kernels* found = kernels();
  STD_TORCH_CHECK(found != nullptr, "BESTOW_CPU_ISA=", std::getenv("BESTOW_CPU_ISA"), " does not run on this CPU");
  return *found;
}

// Scratch memory of one thread. It is kept between calls: fresh pages cost more than some kernels.
inline void* workspace(size_t bytes) {
  struct Scratch {
    void* data = nullptr;
    size_t bytes = 0;
    ~Scratch() { std::free(data); }
  };
  thread_local Scratch scratch;
  if (scratch.bytes < bytes) {
    std::free(scratch.data);
    scratch.bytes = (bytes + 4095) / 4096 * 4096;
    scratch.data = std::aligned_alloc(64, scratch.bytes);
    if (scratch.data == nullptr) {
      scratch.bytes = 0;
      throw std::bad_alloc();
    }
  }
  return scratch.data;
}

// Fewer products are not worth a thread.
constexpr int64_t kProductsPerThread = 1 << 16;
inline int64_t outputs_per_thread(int64_t inputs, int64_t rows) { return 1 + kProductsPerThread / (inputs * rows + 1); }

}  // namespace bestow
