// Times one attention kernel of one instruction set, without torch: the median milliseconds of some rounds. For
// benchmarks/bench_builds.py, which compiles it with the kernels of two commits.
//
//     time_cpu forward|backward ROWS float|bfloat16 BATCH WIDTH THREADS ROUNDS

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bestow/cpu.h"

namespace bestow::BESTOW_ISA {
extern const Kernels kKernels;
}

namespace {

constexpr int64_t kHeads = 16, kFrames = 750;

using Memory = std::unique_ptr<char, decltype(&std::free)>;
Memory memory(size_t bytes) { return {static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), &std::free}; }

// A dense (B, H, N, D) array of random numbers.
struct Array {
  Memory data;
  bestow::Rows rows;
  Array(int64_t batch, int64_t n, int64_t width, size_t size) : data(memory(batch * kHeads * n * width * size)) {
    static std::mt19937 bits(0);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < batch * kHeads * n * width; ++i) {
      const float x = normal(bits);
      char four[4];
      std::memcpy(four, &x, 4);
      std::memcpy(data.get() + i * size, four + 4 - size, size);  // the high half is bfloat16
    }
    rows = {data.get(), kHeads * n * width, n * width, width};
  }
};

// As in bench_staircase.py: a quarter of the rows sees nothing, the others a seventh to all; few rows see all.
std::vector<int32_t> staircase(int64_t batch, int64_t rows) {
  std::vector<int32_t> visible;
  for (int64_t i = 0; i < batch * rows; ++i) {
    const int64_t u = i % rows - rows / 4, last = rows - rows / 4 - 1;
    const double share = rows <= bestow::kFewRows ? 1 : u < 0 ? 0 : 1.0 / 7 + (1 - 1.0 / 7) * u / last;
    visible.push_back(static_cast<int32_t>(std::lround(kFrames * share)));
  }
  return visible;
}

}  // namespace

int main(int count, char** words) {
  if (count != 8) return std::fprintf(stderr, "time_cpu WHAT ROWS DTYPE BATCH WIDTH THREADS ROUNDS\n"), 2;
  const bool backward = std::string(words[1]) == "backward", narrow = std::string(words[3]) == "bfloat16";
  const int64_t rows = std::atoi(words[2]), batch = std::atoi(words[4]), width = std::atoi(words[5]),
                threads = std::atoi(words[6]), rounds = std::atoi(words[7]);
  const size_t size = narrow ? 2 : 4;
  const bestow::Kernels& isa = bestow::BESTOW_ISA::kKernels;
  Array q(batch, rows, width, size), grad(batch, rows, width, size), out(batch, rows, width, size),
      dq(batch, rows, width, size), dk(batch, kFrames, width, size), dv(batch, kFrames, width, size);
  // Few rows take what memory takes: their keys and values must not be in the caches.
  std::vector<Array> keys, values;
  for (int i = 0; i < (rows <= bestow::kFewRows ? 4 : 1); ++i)
    keys.emplace_back(batch, kFrames, width, size), values.emplace_back(batch, kFrames, width, size);
  const std::vector<int32_t> visible = staircase(batch, rows);
  std::vector<float> lse(batch * kHeads * rows);
  std::vector<Memory> spaces;
  std::vector<double> spent;
  for (int64_t round = 0; round <= rounds; ++round) {
    bestow::Staircase p;
    p.scalar = narrow ? bestow::Scalar::kBFloat16 : bestow::Scalar::kFloat;
    p.batch = batch, p.heads = p.kv_heads = kHeads, p.positions = rows, p.frames = kFrames, p.width = width;
    p.scale = 1 / std::sqrt(static_cast<float>(width));
    p.q = q.rows, p.k = keys[round % keys.size()].rows, p.v = values[round % values.size()].rows;
    p.visible = visible.data(), p.visible_batch = rows, p.visible_row = 1;
    bestow::Forward ahead{p};
    ahead.out = out.rows, ahead.lse = lse.data();
    bestow::Backward back{p};
    back.grad = grad.rows, back.lse = lse.data(), back.dq = dq.rows, back.dk = dk.rows, back.dv = dv.rows;
    while (spaces.size() < static_cast<size_t>(threads))
      spaces.push_back(memory(std::max(isa.forward_bytes(ahead), isa.backward_bytes(back))));
    if (backward && round == 0) isa.forward(ahead, 0, ahead.units(), spaces[0].get());
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> workers;
    for (int64_t t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        const int64_t units = ahead.units(), begin = units * t / threads, end = units * (t + 1) / threads;
        backward ? isa.backward(back, begin, end, spaces[t].get()) : isa.forward(ahead, begin, end, spaces[t].get());
      });
    }
    for (std::thread& worker : workers) worker.join();
    if (round > 0)  // the first is for warming up
      spent.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(spent.begin(), spent.end());
  std::printf("%.4f\n", spent[spent.size() / 2]);
  return 0;
}
