#include "bestow/staircase_forward.cuh"
#include "launch.cuh"

using namespace bestow;

extern "C" int bestow_cuda_forward(const BestowAttention* attention, int dtype, void* stream) {
  const BestowAttention& a = *attention;
  if (const int status = check(a, dtype)) return status;
  return with_kernel(dtype, a.width, [&]<class T, int Width>() {
    using Shape = ForwardShape<T, Width>;
    const int64_t blocks = tiles_of(a.queries, Shape::kRows) * a.batch * a.heads;
    return launch<staircase_forward<T, Width>>(blocks, Shape::kThreads, Shape::kSharedBytes, stream, a);
  });
}
