// What every CPU op needs of its thread and its CPU.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
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

// work(begin, end) for pieces of 0 ... count - 1 that are multiples of `least`, but for the last. A thread that is done
// takes the next piece: where others use the same cores, threads are not equally fast, and all wait for the last one.
// A piece is an even share of half of what is left, so that there are few, and the last ones are small.
template <class F>
void in_pieces(int64_t count, int64_t least, int64_t grain, const F& work) {
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), (count + grain - 1) / grain);
  if (count == 0) return;
  if (threads < 2) return work(0, count);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin = next.load(); begin < count;) {
      const int64_t share = (count - begin) / (2 * threads) / least * least;
      const int64_t end = std::min(count, begin + std::max(share, least));
      if (next.compare_exchange_weak(begin, end)) work(begin, end), begin = next.load();
    }
  });
}

inline void multiply(const FewRows& p) {
  const Kernels& isa = chosen();
  const size_t bytes = isa.few_rows_bytes(p);
  const auto work = [&](int64_t begin, int64_t end) { isa.few_rows(p, begin, end, workspace(bytes)); };
  const int64_t grain = outputs_per_thread(p.inputs, p.rows);
  constexpr int64_t kLeast = 48;  // outputs: whole blocks of few_rows.cpp
  // What needs a workspace lays out all rows in it for every piece.
  bytes > 0 ? torch::stable::parallel_for(0, p.outputs, grain, work) : in_pieces(p.outputs, kLeast, grain, work);
}

}  // namespace bestow
