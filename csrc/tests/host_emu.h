// Host emulation: the kernels' own source runs on the CPU, one fiber per CUDA thread.
//
// A block runs alone, its threads one after the other; each goes on until it must wait for its warp or its block. That
// is harsher than a GPU in three ways that make tests sharp: asynchronous copies land at the wait that demands them and
// no earlier, shared memory starts as NaN, and one thread runs far ahead of the others. It does not find every race.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "bestow/grid.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace bestow::emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index thread_index, block_index, block_size;

// A barrier is passed when its round number moves on.
struct Barrier {
  int arrived = 0, round = 0;
};

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(128 << 10);
  bool done = false;
  const Barrier* waits_at = nullptr;
  int waits_for = 0;
  std::vector<Copy> open;                // copies not yet committed
  std::deque<std::vector<Copy>> groups;  // committed, not yet waited for
  int exchanges = 0;
  const uint64_t* mail = nullptr;  // bytes that must come before it goes on
  int cluster_round = 0;           // of the cluster's barrier, that this thread has arrived for
};

struct Exchange {
  float f[12];
  uint32_t u[4];
  const void* p;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps, pairs;
  Barrier whole;
  std::vector<Exchange> exchange[2];  // by turns, so that nobody overwrites what a slower lane still reads
  alignas(1024) unsigned char shared[163 << 10];
  int current = 0;
  Index index;
  int running = 0;  // threads that have begun and not ended
};
inline std::deque<Block> cluster;  // blocks that run together; one alone, as a rule
inline Block* here;                // the one whose thread runs
inline Barrier cluster_barrier;
inline ucontext_t scheduler;
inline std::function<void()> body;

inline void wait_for(Barrier& barrier, int round) {
  if (barrier.round >= round) return;
  Fiber& self = here->fibers[here->current];
  self.waits_at = &barrier;
  self.waits_for = round;
  swapcontext(&self.context, &scheduler);
}
// Which round the barrier must reach for those who arrive now.
inline int arrive_at(Barrier& barrier, int party) {
  const int next = barrier.round + 1;
  if (++barrier.arrived == party) barrier.arrived = 0, ++barrier.round;
  return next;
}
inline void wait_at(Barrier& barrier, int party) { wait_for(barrier, arrive_at(barrier, party)); }
inline void wait_for_warp() { wait_at(here->warps[here->current / 32], 32); }

inline void enter() {
  ++here->running;
  body();
  --here->running;
  Fiber& self = here->fibers[here->current];
  self.done = true;
  swapcontext(&self.context, &scheduler);
}

// What every lane of the warp put in, readable by all once all have arrived.
template <class Put>
const Exchange* exchange(const Put& put) {
  const int self = here->current, turn = here->fibers[self].exchanges++ & 1;
  put(here->exchange[turn][self]);
  wait_for_warp();
  return &here->exchange[turn][self / 32 * 32];
}
inline int lane() { return here->current % 32; }

inline void prepare(Block& block, Index index, int threads) {
  block.index = index, block.running = 0;
  block.fibers.resize(threads);
  block.warps.assign(threads / 32, {});
  block.pairs.assign(threads / 64, {});
  block.whole = {};
  for (auto& slots : block.exchange) slots.resize(threads);
  memset(block.shared, 0xff, sizeof block.shared);
  for (Fiber& fiber : block.fibers) {
    fiber.done = false, fiber.waits_at = nullptr, fiber.mail = nullptr, fiber.exchanges = 0, fiber.cluster_round = 0;
    fiber.open.clear(), fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
}

// Blocks from `first` on, side by side in x, that are a cluster.
inline void run_cluster(Index first, int size, int threads) {
  cluster.resize(size);
  for (int i = 0; i < size; ++i) prepare(cluster[i], {first.x + i, first.y, first.z}, threads);
  cluster_barrier = {};
  block_size.x = threads;
  for (int left = size * threads; left > 0;) {
    bool moved = false;
    for (Block& block : cluster)
      for (int i = 0; i < threads; ++i) {
        Fiber& fiber = block.fibers[i];
        if (fiber.done || (fiber.waits_at != nullptr && fiber.waits_at->round < fiber.waits_for)) continue;
        if (fiber.mail != nullptr && *fiber.mail != 0) continue;
        fiber.waits_at = nullptr, fiber.mail = nullptr;
        moved = true;
        here = &block;
        block.current = i;
        block_index = block.index;
        thread_index.x = i;
        swapcontext(&scheduler, &fiber.context);
        left -= fiber.done;
      }
    if (!moved) throw std::runtime_error("emulated block: " + std::to_string(left) + " threads wait for ever");
  }
  for (const Block& block : cluster)
    for (const Fiber& fiber : block.fibers)
      for (const auto& group : fiber.groups)
        if (!group.empty()) throw std::runtime_error("emulated block: ended with copies under way");
}

}  // namespace bestow::emulation

#define threadIdx ::bestow::emulation::thread_index
#define blockIdx ::bestow::emulation::block_index
#define blockDim ::bestow::emulation::block_size

namespace bestow {

struct bfloat16 {
  uint16_t bits;
};
using float16 = _Float16;

template <class T>
T narrow(float value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else {
    return static_cast<T>(value);
  }
}
template <class T>
float widen(T value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
  } else {
    return static_cast<float>(value);
  }
}

template <class T>
uint32_t pack(float low, float high) {
  const T pair[2] = {narrow<T>(low), narrow<T>(high)};
  uint32_t bits;
  memcpy(&bits, pair, 4);
  return bits;
}

inline float power_of_two(float x) { return exp2f(x); }

inline unsigned char* shared_memory() { return emulation::here->shared; }
using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* pointer) { return reinterpret_cast<SharedAddress>(pointer); }

inline void copy_async(void* to, const void* from, bool valid) {
  emulation::here->fibers[emulation::here->current].open.push_back({to, from, valid});
}
inline void copy_chunk(void* to, const void* from) { memcpy(to, from, 16); }
inline void clear_chunk(void* to) { memset(to, 0, 16); }
inline void copies_commit() {
  auto& self = emulation::here->fibers[emulation::here->current];
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}
template <int Pending>
void copies_wait() {
  auto& groups = emulation::here->fibers[emulation::here->current].groups;
  for (; groups.size() > Pending; groups.pop_front())
    for (const auto& copy : groups.front()) {
      if (copy.valid)
        memcpy(copy.to, copy.from, 16);
      else
        memset(copy.to, 0, 16);
    }
}

inline int block_number() { return static_cast<int>(blockIdx.x); }
inline int thread_number() { return static_cast<int>(threadIdx.x); }
inline void block_sync() { emulation::wait_at(emulation::here->whole, static_cast<int>(blockDim.x)); }
inline void pair_sync(int number) { emulation::wait_at(emulation::here->pairs.at(number), 64); }
inline void warp_sync() { emulation::wait_for_warp(); }

#define BESTOW_CLUSTERS
inline void cluster_arrive() {
  emulation::here->fibers[emulation::here->current].cluster_round =
      emulation::arrive_at(emulation::cluster_barrier, static_cast<int>(emulation::cluster.size() * blockDim.x));
}
inline void cluster_wait() {
  emulation::wait_for(emulation::cluster_barrier, emulation::here->fibers[emulation::here->current].cluster_round);
}
using Mailbox = uint64_t;
inline void expect_mail(Mailbox* box, int bytes) { *box = bytes; }
inline void send(float* to, float value, Mailbox* box, int rank) {
  emulation::Block& there = emulation::cluster.at(rank);
  if (emulation::cluster.size() < 2 || there.running == 0)
    throw std::runtime_error("emulated cluster: mail to oneself alone, or to a block that is not there");
  const auto theirs = [&](void* mine) {
    return there.shared + (static_cast<unsigned char*>(mine) - emulation::here->shared);
  };
  memcpy(theirs(to), &value, sizeof value);
  *reinterpret_cast<Mailbox*>(theirs(box)) -= sizeof value;
}
inline void await_mail(Mailbox* box) {
  emulation::here->fibers[emulation::here->current].mail = box;
  swapcontext(&emulation::here->fibers[emulation::here->current].context, &emulation::scheduler);
}
inline void next_kernel_may_start() {}  // kernels run one after the other
inline void previous_kernel_is_done() {}

inline float shuffle(float value, int lane) {
  const auto* warp = emulation::exchange([&](auto& mine) { mine.f[0] = value; });
  return warp[lane].f[0];
}
inline float shuffle_xor(float value, int mask) {
  const auto* warp = emulation::exchange([&](auto& mine) { mine.f[0] = value; });
  return warp[emulation::lane() ^ mask].f[0];
}
inline int warp_max(int value) {
  const auto* warp = emulation::exchange([&](auto& mine) { mine.u[0] = static_cast<uint32_t>(value); });
  for (int i = 0; i < 32; ++i) value = std::max(value, static_cast<int>(warp[i].u[0]));
  return value;
}
inline unsigned which_lanes(bool value) {
  const auto* warp = emulation::exchange([&](auto& mine) { mine.u[0] = value; });
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= warp[i].u[0] << i;
  return bits;
}
inline int lowest_bit(unsigned bits) { return __builtin_ctz(bits); }
inline bool any_lane(bool value) { return warp_max(value) != 0; }

// PTX ISA, ldmatrix: lane l receives elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each matrix.
inline void load_matrices(uint32_t (&m)[4], SharedAddress row) {
  const auto* warp = emulation::exchange([&](auto& mine) { mine.p = reinterpret_cast<const void*>(row); });
  const int lane = emulation::lane();
  for (int i = 0; i < 4; ++i) memcpy(&m[i], static_cast<const uint16_t*>(warp[8 * i + lane / 4].p) + 2 * (lane % 4), 4);
  // The rows must still hold these values: nobody goes on before all have read.
  emulation::wait_for_warp();
}
inline void load_matrices_transposed(uint32_t (&m)[4], SharedAddress row) {
  const auto* warp = emulation::exchange([&](auto& mine) { mine.p = reinterpret_cast<const void*>(row); });
  const int lane = emulation::lane();
  for (int i = 0; i < 4; ++i) {
    const auto at = [&](int r) -> uint32_t { return static_cast<const uint16_t*>(warp[8 * i + r].p)[lane / 4]; };
    m[i] = at(2 * (lane % 4)) | at(2 * (lane % 4) + 1) << 16;
  }
  emulation::wait_for_warp();
}

// PTX ISA, mma.m16n8k16: A register r of lane l holds row l / 4 + 8 (r % 2), columns 2 (l % 4) + 8 (r / 2) and the
// next; B register r holds rows 2 (l % 4) + 8 r and the next of column l / 4.
template <class T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto element = [](uint32_t bits, int half) {
    const uint16_t part = static_cast<uint16_t>(bits >> 16 * half);
    T value;
    memcpy(&value, &part, 2);
    return widen(value);
  };
  const auto* warp = emulation::exchange([&](auto& mine) {
    for (int i = 0; i < 8; ++i) mine.f[i] = element(a[i / 2], i % 2);
    for (int i = 0; i < 4; ++i) mine.f[8 + i] = element(b[i / 2], i % 2);
  });
  const int lane = emulation::lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int part = k % 8 / 2;
      c[i] += warp[row % 8 * 4 + part].f[2 * (row / 8 + 2 * (k / 8)) + k % 2] *
              warp[column * 4 + part].f[8 + 2 * (k / 8) + k % 2];
    }
  }
}

// What tests say that a block may have, to launchers that ask.
inline int& shared_limit() {
  static int bytes = 0;
  return bytes;
}

// The launchers' launch: clusters one after the other, within that and what the smallest supported GPU allows.
template <auto Kernel>
int launch(Grid grid, int threads, int shared_bytes, void*, const BestowAttention& attention, int cluster = 0) {
  if (shared_bytes > std::max(99 << 10, shared_limit()) || threads > 256)
    throw std::runtime_error("emulated launch: " + std::to_string(shared_bytes) + " bytes, " + std::to_string(threads) +
                             " threads");
  emulation::body = [&] { Kernel(attention); };
  const unsigned together = std::max(1, cluster);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += together) emulation::run_cluster({x, y, z}, together, threads);
  return BESTOW_OK;
}

}  // namespace bestow
