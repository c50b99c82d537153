#include "bestow/staircase_weights.cuh"
#include "launch.cuh"

using namespace bestow;

extern "C" int bestow_cuda_weights(const BestowAttention* attention, int dtype, void* stream) {
  const BestowAttention& a = *attention;
  if (const int status = check(a, dtype)) return status;
  return with_kernel(dtype, a.width, [&]<class T, int Width>() {
    const int64_t lines = static_cast<int64_t>(a.batch) * a.heads * a.queries;
    return launch<staircase_weights<T, Width>>(lines, 32 * kWeightWarps, 2 * kWeightWarps * sizeof(float), stream, a);
  });
}
