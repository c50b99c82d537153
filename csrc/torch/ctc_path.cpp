// The best path of CTC through a transcript: a few thousand additions, which as tensor operations, a handful for every
// frame, cost a small model a twentieth of its training step.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kNever = -1e30f;

// One utterance: which token each of `frames` frames belongs to, -1 at blanks, and everywhere if there is no path.
class Path {
 public:
  Path(const int64_t* target, int64_t tokens, int64_t classes) : states_(2 * tokens + 1), classes_(classes) {
    label_.assign(states_, classes - 1);  // blank, token 0, blank, token 1, ..., blank
    for (int64_t n = 0; n < tokens; ++n) label_[2 * n + 1] = target[n];
  }

  void find(const float* logp, int64_t frames, int64_t* token) {
    std::fill(token, token + frames, -1);
    if (frames == 0) return;
    // Two states before the first, which no path comes from.
    std::vector<float> score(states_ + 2, kNever), next(states_ + 2, kNever);
    std::vector<uint8_t> back(frames * states_);  // how many states before: 2, 1 or 0
    for (int64_t s = 0; s < std::min<int64_t>(2, states_); ++s) score[s + 2] = logp[label_[s]];
    for (int64_t frame = 1; frame < frames; ++frame) {
      const float* emit = logp + frame * classes_;
      for (int64_t s = 0; s < states_; ++s) {
        // A path may leave out the blank between two different tokens.
        const bool skip = s % 2 == 1 && s > 1 && label_[s] != label_[s - 2];
        float best = skip ? score[s] : score[s] + kNever;
        uint8_t from = 2;
        if (score[s + 1] > best) best = score[s + 1], from = 1;
        if (score[s + 2] > best) best = score[s + 2], from = 0;
        next[s + 2] = best + emit[label_[s]];
        back[frame * states_ + s] = from;
      }
      score.swap(next);
    }
    int64_t state = states_ - 1;
    if (state > 0 && score[state + 1] > score[state + 2]) --state;
    if (score[state + 2] <= kNever / 2) return;
    for (int64_t frame = frames - 1; frame >= 0; --frame) {
      if (state % 2 == 1) token[frame] = state / 2;
      state -= back[frame * states_ + state];  // 0 in the first frame
    }
  }

 private:
  int64_t states_, classes_;
  std::vector<int64_t> label_;
};

Tensor ctc_best_path(Tensor logp, Tensor lengths, Tensor target, Tensor target_lengths) {
  STD_TORCH_CHECK(logp.is_cpu() && logp.dim() == 3 && logp.scalar_type() == ScalarType::Float,
                  "ctc_best_path: logp must be float32 (B, F, C)");
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
      Path(ids + b * width, said[b], classes).find(scores + b * frames * classes, heard[b], out + b * frames);
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
