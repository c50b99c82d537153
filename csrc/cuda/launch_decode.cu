#include "bestow/staircase_decode.cuh"
#include "launch.cuh"

using namespace bestow;

static int64_t blocks_per_split(const BestowAttention& a) {
  return static_cast<int64_t>(a.batch) * a.kv_heads * tiles_of(a.heads / a.kv_heads * a.queries, 16);
}

extern "C" int bestow_decode_splits(const BestowAttention* attention, int processors) {
  const int64_t blocks = blocks_per_split(*attention), tiles = tiles_of(attention->keys, 16);
  if (blocks == 0 || tiles == 0) return 1;
  // Two blocks per multiprocessor hide each other's latency; a part below four tiles of keys is not worth its merge.
  const int64_t wanted = (2LL * processors + blocks - 1) / blocks, most = (tiles + 3) / 4;
  return static_cast<int>(wanted < 1 ? 1 : wanted > most ? most : wanted);
}

#ifndef BESTOW_EMULATE
extern "C" int bestow_cuda_processors(int device) {
  int count = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return status == cudaSuccess ? count : 0;
}
#endif

extern "C" int64_t bestow_decode_scratch(const BestowAttention* attention) {
  const BestowAttention& a = *attention;
  return static_cast<int64_t>(a.batch) * a.heads * a.queries * a.splits * (a.width + 2);
}

extern "C" int bestow_cuda_decode(const BestowAttention* attention, int dtype, void* stream) {
  const BestowAttention& a = *attention;
  if (const int status = check(a, dtype)) return status;
  if (a.queries < 0 || a.queries > 8 || a.splits < 1) return BESTOW_BAD_ROWS;
  return with_kernel(dtype, a.width, [&]<class T, int Width>() {
    using Shape = DecodeShape<T, Width>;
    const int status = launch<staircase_decode<T, Width>>(blocks_per_split(a) * a.splits, 32 * Shape::kWarps,
                                                          Shape::kSharedBytes, stream, a);
    if (status != BESTOW_OK) return status;
    const int64_t lines = static_cast<int64_t>(a.batch) * a.heads * a.queries;
    return launch<staircase_decode_merge<T>>((lines + 3) / 4, 128, 0, stream, a);
  });
}
