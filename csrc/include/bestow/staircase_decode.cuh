// Decoding: 1 to 8 query rows per stream against long keys, which are split over blocks and, inside a block, over warps
// that never wait for each other. All heads that share keys are rows of the same 16-row product, so that the keys are
// read once per group. Lengths are read from device memory; parts beyond a stream's visible keys end at once.
//
// A step's attention is short, and all of it is waiting: for lengths, keys, other warps, other blocks. So as much as
// possible is asked for at once, numbers are made while nothing else can be done, and nobody waits for all.
#pragma once
#include "bestow/staircase_forward.cuh"

namespace bestow {

template <class T, int Width>
struct DecodeShape {
  static constexpr int kKeys = 16;
  static constexpr int kRowBytes = Width * static_cast<int>(sizeof(T));
  static constexpr int kWarpsFit = 65536 / (4 * kKeys * kRowBytes);
  static constexpr int kWarps = kWarpsFit > 4 ? 4 : kWarpsFit;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStages = kRowBytes <= 128 ? 3 : 2;  // tiles of a warp on their way at once
  static constexpr int kRingBytes = 2 * kStages * kKeys * kRowBytes;
  // When a warp's keys are done, its ring holds what it found: 16 rows of Width columns. Largest score and sum of each
  // row lie behind all rings and queries.
  static_assert(16 * Width * 4 <= kRingBytes, "a warp's results fit where its keys were");
  static constexpr int kSumsAt = kWarps * kRingBytes + 16 * kRowBytes;
  static constexpr int kPartBytes = kSumsAt + kWarps * 16 * 2 * 4;
  static constexpr int kChunks = Width / 32;  // of a row, a column for each lane
  // What the blocks of a cluster tell each other of a chunk, see staircase_decode_clustered, behind all that.
  static constexpr int kLetter = 32 + 2;
  static constexpr int mail_bytes(int letters) { return 16 + letters * kLetter * 4; }
};

// What one of the 16 rows of a product stands for: one of the up to 8 queries of a stream, for one head.
struct PackedRow {
  int head, query;
};

// What some of the keys say of one column of a row's output: their largest score, the sum of their weights relative to
// it, and the output before it is divided by that.
struct Found {
  float top = kNothing, sum = 0.f, total = 0.f;
};

// The same of all keys of `count` <= Most parts.
template <int Most, class Part>
__device__ __forceinline__ Found together(int count, const Part& part) {
  Found parts[Most], all;
#pragma unroll
  for (int i = 0; i < Most; ++i)
    if (i < count) parts[i] = part(i);
#pragma unroll
  for (int i = 0; i < Most; ++i) all.top = fmaxf(all.top, parts[i].top);
  const float base = all.top == kNothing ? 0.f : all.top;  // what saw nothing weighs nothing then
#pragma unroll
  for (int i = 0; i < Most; ++i) {
    const float weight = power_of_two(parts[i].top - base);
    all.sum += weight * parts[i].sum, all.total += weight * parts[i].total;
  }
  return all;
}

// What is known of a row's column when all keys are together. A sum that is no number is no sum of nothing.
template <class T>
__device__ __forceinline__ void write_found(const BestowAttention& a, int stream, PackedRow row, int column,
                                            const Found& all) {
  const Rows<T> out = rows_of<T>(a.out, stream, row.head);
  if (column < a.width)
    out.data[row.query * out.stride + column] = narrow<T>(all.sum == 0.f ? 0.f : all.total / all.sum);
  if (column == 0 && a.lse != nullptr)
    a.lse[(static_cast<int64_t>(stream) * a.heads + row.head) * a.queries + row.query] =
        all.sum == 0.f ? kNothing : (all.top + log2f(all.sum)) * kLn2;
}

// The part of a block: whose keys, which of them, and for which of the rows that share them, which are all queries of a
// head and then those of the next.
template <class T, int Width>
struct DecodePart {
  using Shape = DecodeShape<T, Width>;
  int stream, split, kv_head, rows;
  int first_head, first_query, inverse;  // of `queries`, in 2^-16: right for the few rows here, and no division

  __device__ __forceinline__ explicit DecodePart(const BestowAttention& a) {
    const unsigned group = static_cast<unsigned>(a.heads) / a.kv_heads, queries = a.queries;
    const unsigned first_row = blockIdx.z * 16, group_rows = group * queries;
    stream = blockIdx.x / static_cast<unsigned>(a.splits), split = blockIdx.x - stream * a.splits;
    kv_head = blockIdx.y;
    rows = group_rows - first_row < 16 ? group_rows - first_row : 16;
    first_head = kv_head * group + first_row / queries, first_query = first_row % queries;
    inverse = 65535 / queries + 1;
  }
  __device__ __forceinline__ PackedRow row(const BestowAttention& a, int r) const {
    const int place = first_query + r, down = place * inverse >> 16;
    return {first_head + down, place - down * a.queries};
  }

  // Room for what a warp finds: columns of its 16 rows; largest score and sum of each.
  static __device__ __forceinline__ float* totals(int warp) {
    return reinterpret_cast<float*>(shared_memory() + warp * Shape::kRingBytes);
  }
  static __device__ __forceinline__ float* sums(int warp) {
    return reinterpret_cast<float*>(shared_memory() + Shape::kSumsAt) + warp * 32;
  }
  // What all warps found of row r.
  __device__ __forceinline__ Found found(int r, int column) const {
    return together<Shape::kWarps>(Shape::kWarps, [&](int warp) -> Found {
      return {sums(warp)[2 * r], sums(warp)[2 * r + 1], totals(warp)[r * Width + column]};
    });
  }
};

// Leaves what the block's warps found in shared memory. `meanwhile` is called while the first keys are on their way.
template <class T, int Width, class Meanwhile>
__device__ __forceinline__ void decode_part(const BestowAttention& a, const DecodePart<T, Width>& part,
                                            const Meanwhile& meanwhile) {
  using Shape = DecodeShape<T, Width>;
  using Product = ProductOf<T>;
  constexpr int kKeys = Shape::kKeys, kWarps = Shape::kWarps, kStages = Shape::kStages;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  unsigned char* memory = shared_memory();
  unsigned char* ring = memory + warp * Shape::kRingBytes;
  constexpr int kTileBytes = kKeys * Shape::kRowBytes;
  const auto key_tile = [&](int i) { return Tile<T, Width>{ring + i % kStages * 2 * kTileBytes}; };
  const auto value_tile = [&](int i) { return Tile<T, Width>{ring + (i % kStages * 2 + 1) * kTileBytes}; };
  const Rows<T> keys = rows_of<T>(a.k, part.stream, part.kv_head), values = rows_of<T>(a.v, part.stream, part.kv_head);
  // Tiles go round all warps of all splits: each has its share of what the stream sees, not of what the cache could
  // hold. It asks for its first tile before it knows how much that is.
  const auto first_key = [&](int i) { return ((i * a.splits + part.split) * kWarps + warp) * kKeys; };
  const auto bring_tile = [&](int i, int limit) {
    if (first_key(i) < limit) {
      bring<kKeys, 32>(key_tile(i), keys, first_key(i), limit, a.width, lane);
      bring<kKeys, 32>(value_tile(i), values, first_key(i), limit, a.width, lane);
    }
  };
  bring_tile(0, a.keys);

  int visible[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = lane / 4 + 8 * half, sees = seen(a, part.stream, part.row(a, r).query);
    visible[half] = r < part.rows ? sees : 0;
  }
  const Tile<T, Width> q_tile{memory + kWarps * Shape::kRingBytes};
  constexpr int kTurns = 16 * Tile<T, Width>::kChunks / Shape::kThreads;
#pragma unroll 2
  for (int turn = 0; turn < kTurns; ++turn) {
    const int i = turn * Shape::kThreads + threadIdx.x;
    const int r = i / Tile<T, Width>::kChunks, c = i % Tile<T, Width>::kChunks;
    const PackedRow row = part.row(a, r);
    const bool valid = r < part.rows && c * Tile<T, Width>::kPerChunk < a.width;
    const T* q = rows_of<T>(a.q, part.stream, row.head).data + row.query * a.q.row + c * Tile<T, Width>::kPerChunk;
    copy_async(q_tile.chunk(r, c), valid ? q : a.q.data, valid);
  }
  copies_commit();

  const int bound = warp_max(visible[0] > visible[1] ? visible[0] : visible[1]);
#pragma unroll
  for (int i = 1; i < kStages; ++i) {
    bring_tile(i, bound);
    copies_commit();
  }
  meanwhile();
  copies_wait<kStages - 1>();
  block_sync();  // all warps brought queries
  // Keys of the first tile that turn out not to be seen do no harm, values would: they weigh nothing but may be NaN.
  if (first_key(0) < bound)
#pragma unroll 1
    for (int r = bound - first_key(0); r < kKeys; ++r)
#pragma unroll 1
      for (int c = lane; c < Tile<T, Width>::kChunks; c += 32) clear_chunk(value_tile(0).chunk(r, c));

  RunningSoftmax softmax;
  float out[Width / 8][4] = {};
  for (int i = 0; first_key(i) < bound; ++i) {
    copies_wait<kStages - 1>();
    warp_sync();  // the tile is here
    float s[kKeys / 8][4] = {};
    multiply_rows<Product, Width, kKeys>(s, q_tile, 0, key_tile(i), 0, a.width, lane);
    float factor[2];
    softmax.take<kKeys>(s, visible, first_key(i), a.scale * kLog2E, factor, lane);
    scale_rows<Width>(out, factor);
    multiply_columns<Product, Width, kKeys, Width>(out, s, value_tile(i), 0, 0, a.width, lane);
    warp_sync();  // it has been read, another may take its place
    bring_tile(i + kStages, bound);
    copies_commit();
  }
  copies_wait<0>();
  warp_sync();

  float* totals = part.totals(warp);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = lane / 4 + 8 * half;
    const float sum = quad_sum(softmax.sum[half]);
    if (r >= part.rows) continue;
#pragma unroll
    for (int n = 0; n < Width / 8; ++n) {
      float* pair = totals + r * Width + 8 * n + 2 * (lane % 4);
      pair[0] = out[n][2 * half], pair[1] = out[n][2 * half + 1];
    }
    if (lane % 4 == 0) part.sums(warp)[2 * r] = softmax.largest[half], part.sums(warp)[2 * r + 1] = sum;
  }
  block_sync();  // all may read it
}

constexpr int kMostSplits = 8;  // blocks of a cluster

// The splits of a (stream, head of keys) are a cluster, whose blocks write into each other's shared memory: no scratch
// and no second kernel. Each block is the judge of every splits-th chunk of the rows' columns, and gets a letter about
// it from each block: 32 columns, largest score, sum. Needs sm_90, and a launch as clusters even where they are single
// blocks.
template <class T, int Width>
__global__ void __launch_bounds__(DecodeShape<T, Width>::kThreads) staircase_decode_clustered(const BestowAttention a) {
#ifdef BESTOW_CLUSTERS
  using Shape = DecodeShape<T, Width>;
  constexpr int kChunks = Shape::kChunks;
  const DecodePart<T, Width> part(a);
  const int items = part.rows * kChunks, doubled = lowest_bit(a.splits);
  Mailbox* box = reinterpret_cast<Mailbox*>(shared_memory() + Shape::kPartBytes);
  const auto letter = [&](int place, int from) {
    return reinterpret_cast<float*>(box + 2) + ((place << doubled) + from) * Shape::kLetter;
  };
  if (threadIdx.x == 0) {
    const int mine = (items - part.split + a.splits - 1) >> doubled;
    expect_mail(box, 4 * Shape::kLetter * mine << doubled);
  }
  cluster_arrive();
  previous_kernel_is_done();
  decode_part(a, part, [] { cluster_wait(); });
  next_kernel_may_start();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto found = [&](int i) { return part.found(i / kChunks, i % kChunks * 32 + lane); };
  const auto write = [&](int i, const Found& all) {
    write_found<T>(a, part.stream, part.row(a, i / kChunks), i % kChunks * 32 + lane, all);
  };
  if (a.splits == 1) {  // a cluster of one has no mail
#pragma unroll 1
    for (int i = warp; i < items; i += Shape::kWarps) write(i, found(i));
    return;
  }
#pragma unroll 1
  for (int i = warp; i < items; i += Shape::kWarps) {
    const Found mine = found(i);
    const int judge = i & (a.splits - 1);
    float* to = letter(i >> doubled, part.split);
    send(to + lane, mine.total, box, judge);
    if (lane < 2) send(to + 32 + lane, lane == 0 ? mine.top : mine.sum, box, judge);
  }
#pragma unroll 1
  for (int place = warp, i; (i = (place << doubled) + part.split) < items; place += Shape::kWarps) {
    await_mail(box);  // all of it: the first time only
    write(i, together<kMostSplits>(a.splits, [&](int from) -> Found {
            const float* read = letter(place, from);
            return {read[32], read[33], read[lane]};
          }));
  }
#endif
}

// Without clusters each block writes what it found to scratch, and a second kernel puts it together. Scratch, per
// (stream, head, query, split): `width` floats of the output before it is divided, then largest score and sum.
template <class T, int Width>
__global__ void __launch_bounds__(DecodeShape<T, Width>::kThreads) staircase_decode(const BestowAttention a) {
  const DecodePart<T, Width> part(a);
  decode_part(a, part, [] {});
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int r = warp; r < part.rows; r += DecodeShape<T, Width>::kWarps) {
    const PackedRow row = part.row(a, r);
    const int64_t line = (static_cast<int64_t>(part.stream) * a.heads + row.head) * a.queries + row.query;
    float* to = a.partial + (line * a.splits + part.split) * (a.width + 2);
    for (int d = lane; d < a.width; d += 32) {
      const Found mine = part.found(r, d);
      to[d] = mine.total;
      if (d == 0) to[a.width] = mine.top, to[a.width + 1] = mine.sum;
    }
  }
}

// One warp per (stream, head, query) and 32 columns; any number of parts, 32 of them weighed at once.
template <class T>
__global__ void __launch_bounds__(128) staircase_decode_merge(const BestowAttention a) {
  const int lane = threadIdx.x % 32, chunks = (a.width + 31) / 32;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32, line = item / chunks;
  if (line >= static_cast<int64_t>(a.batch) * a.heads * a.queries) return;
  const float* parts = a.partial + line * a.splits * (a.width + 2);
  const auto part = [&](int i, int d) { return parts[i * (a.width + 2) + d]; };
  Found all;
  for (int i = lane; i < a.splits; i += 32) all.top = fmaxf(all.top, part(i, a.width));
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) all.top = fmaxf(all.top, shuffle_xor(all.top, mask));
  const float base = all.top == kNothing ? 0.f : all.top;  // what saw nothing weighs nothing then
  const int column = item % chunks * 32 + lane, d = column < a.width ? column : a.width - 1;
  for (int first = 0; first < a.splits; first += 32) {
    const int mine = first + lane;
    const float weight = mine < a.splits ? power_of_two(part(mine, a.width) - base) : 0.f;
    all.sum += mine < a.splits ? weight * part(mine, a.width + 1) : 0.f;
#pragma unroll 8
    for (int i = 0; i < 32 && first + i < a.splits; ++i) all.total += shuffle(weight, i) * part(first + i, d);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) all.sum += shuffle_xor(all.sum, mask);
  const int pair = line / a.queries;
  write_found<T>(a, pair / a.heads, {pair % a.heads, static_cast<int>(line % a.queries)}, column, all);
}

}  // namespace bestow
