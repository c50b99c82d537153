#include <algorithm>

#include "bestow/staircase_decode.cuh"
#include "launch.cuh"

using namespace bestow;

static int64_t row_tiles(const BestowAttention& a) { return tiles_of(a.heads / a.kv_heads * a.queries, 16); }

extern "C" int bestow_decode_splits(const BestowAttention* attention, int processors, int clusters) {
  const int64_t blocks = row_tiles(*attention) * attention->batch * attention->kv_heads;
  const int64_t tiles = tiles_of(attention->keys, 16);
  if (blocks == 0 || tiles == 0) return 1;
  // Two blocks per multiprocessor hide each other's latency, and what does not fit in beside them would run alone in
  // the end; a part below four tiles of keys, one per warp, is not worth its merge.
  const int64_t wanted = 2LL * processors / blocks, most = (tiles + 3) / 4;
  const int64_t splits = wanted < 1 ? 1 : wanted > most ? most : wanted;
  if (!clusters) return static_cast<int>(splits);
  return splits >= 8 ? 8 : splits >= 4 ? 4 : splits >= 2 ? 2 : 1;
}

#ifndef BESTOW_EMULATE
extern "C" int bestow_cuda_processors(int device) {
  int count = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return status == cudaSuccess ? count : 0;
}
#endif

#ifndef BESTOW_EMULATE
extern "C" int bestow_cuda_clusters(int device) {
  int major = 0;
  cudaFuncAttributes code{};
  const bool known = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                     cudaFuncGetAttributes(&code, staircase_decode_clustered<bfloat16, 128>) == cudaSuccess;
  return known && major >= 9 && code.ptxVersion >= 90;
}
#endif

extern "C" int64_t bestow_decode_scratch(const BestowAttention* attention) {
  const BestowAttention& a = *attention;
  return static_cast<int64_t>(a.batch) * a.heads * a.queries * a.splits * (a.width + 2);
}

extern "C" int bestow_cuda_decode(const BestowAttention* attention, int dtype, void* stream) {
  const BestowAttention& a = *attention;
  if (const int status = check(a, dtype)) return status;
  const bool fits_clusters = a.splits <= kMostSplits && (a.splits & (a.splits - 1)) == 0;
  if (a.queries < 0 || a.queries > 8 || a.splits < 1 || (a.partial == nullptr && !fits_clusters))
    return BESTOW_BAD_ROWS;
  return with_kernel(dtype, a.width, [&]<class T, int Width>() {
    using Shape = DecodeShape<T, Width>;
    const Grid grid{static_cast<int64_t>(a.batch) * a.splits, a.kv_heads, row_tiles(a)};
    if (a.partial == nullptr) {
      const int rows = std::min(a.heads / a.kv_heads * a.queries, 16);
      const int letters = static_cast<int>(tiles_of(rows * Shape::kChunks, a.splits)) * a.splits;
      return launch<staircase_decode_clustered<T, Width>>(
          grid, Shape::kThreads, Shape::kPartBytes + Shape::mail_bytes(letters), stream, a, a.splits);
    }
    const int status = launch<staircase_decode<T, Width>>(grid, Shape::kThreads, Shape::kPartBytes, stream, a);
    if (status != BESTOW_OK) return status;
    const int64_t warps = static_cast<int64_t>(a.batch) * a.heads * a.queries * ((a.width + 31) / 32);
    return launch<staircase_decode_merge<T>>((warps + 3) / 4, 128, 0, stream, a);
  });
}
