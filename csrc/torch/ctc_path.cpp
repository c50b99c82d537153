// The best path of CTC through each transcript of a batch.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "bestow/best_path.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor ctc_best_path(Tensor logp, Tensor lengths, Tensor target, Tensor target_lengths) {
  STD_TORCH_CHECK(logp.is_cpu() && logp.dim() == 3 && logp.scalar_type() == ScalarType::Float && logp.size(2) > 0,
                  "ctc_best_path: logp must be float32 (B, F, C) with a class for blank");
  const int64_t batch = logp.size(0), frames = logp.size(1), classes = logp.size(2);
  for (const Tensor* each : {&lengths, &target, &target_lengths}) {
    STD_TORCH_CHECK(each->is_cpu() && each->scalar_type() == ScalarType::Long && each->dim() >= 1 &&
                        each->size(0) == batch && each->dim() == (each == &target ? 2 : 1),
                    "ctc_best_path: lengths, target and target_lengths must be int64 (B), (B, N) and (B)");
  }
  logp = torch::stable::contiguous(logp), target = torch::stable::contiguous(target);
  lengths = torch::stable::contiguous(lengths), target_lengths = torch::stable::contiguous(target_lengths);
  const int64_t width = target.size(1);
  const auto* ids = static_cast<const int64_t*>(target.data_ptr());
  const auto* heard = static_cast<const int64_t*>(lengths.data_ptr());
  const auto* said = static_cast<const int64_t*>(target_lengths.data_ptr());
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(0 <= heard[b] && heard[b] <= frames && 0 <= said[b] && said[b] <= width, "ctc_best_path: row ", b,
                    " has ", heard[b], " of ", frames, " frames and ", said[b], " of ", width, " tokens");
    for (int64_t n = 0; n < said[b]; ++n) {
      const int64_t id = ids[b * width + n];
      STD_TORCH_CHECK(0 <= id && id < classes - 1, "ctc_best_path: row ", b, " has token ", id, " of ", classes - 1);
    }
  }
  Tensor path = torch::stable::new_empty(target, {batch, frames});
  auto* out = static_cast<int64_t*>(path.data_ptr());
  const auto* scores = static_cast<const float*>(logp.data_ptr());
  torch::stable::parallel_for(0, batch, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      bestow::best_path({scores + b * frames * classes, heard[b], classes, ids + b * width, said[b]}, out + b * frames);
      std::fill(out + b * frames + heard[b], out + (b + 1) * frames, -1);
    }
  });
  return path;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // logp (B, F, C) float32, the last class blank; lengths (B), target (B, N) and target_lengths (B) int64 -> (B, F)
  m.def("ctc_best_path(Tensor logp, Tensor lengths, Tensor target, Tensor target_lengths) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) { m.impl("ctc_best_path", TORCH_BOX(&ctc_best_path)); }
