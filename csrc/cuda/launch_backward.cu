#include "bestow/staircase_backward.cuh"
#include "bestow/staircase_short_backward.cuh"
#include "launch.cuh"

using namespace bestow;

extern "C" int bestow_cuda_backward(const BestowAttention* attention, int dtype, void* stream) {
  const BestowAttention& a = *attention;
  if (const int status = check(a, dtype)) return status;
  return with_kernel(dtype, a.width, [&]<class T, int Width>() {
    if constexpr (sizeof(T) == 2 && Width <= 128) {
      using Shape = ShortGradientShape<T, Width>;
      if (a.queries > 0 && a.queries <= Shape::kRows && a.heads == a.kv_heads && Shape::kSharedBytes <= shared_limit())
        return launch<staircase_short_gradient<T, Width>>(static_cast<int64_t>(a.batch) * a.heads, Shape::kThreads,
                                                          Shape::kSharedBytes, stream, a);
    }
    const int64_t lines = static_cast<int64_t>(a.batch) * a.heads * a.queries;
    if (const int status = launch<staircase_delta<T>>((lines + 3) / 4, 128, 0, stream, a)) return status;
    using RowShape = RowGradientShape<T, Width>;
    int64_t blocks = tiles_of(a.queries, RowShape::kRows) * a.batch * a.heads;
    if (const int status =
            launch<staircase_row_gradient<T, Width>>(blocks, RowShape::kThreads, RowShape::kSharedBytes, stream, a))
      return status;
    using KeyShape = KeyGradientShape<T, Width>;
    blocks = tiles_of(a.keys, KeyShape::kKeys) * a.batch * a.kv_heads;
    return launch<staircase_key_gradient<T, Width>>(blocks, KeyShape::kThreads, KeyShape::kSharedBytes, stream, a);
  });
}
