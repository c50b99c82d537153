// A few thousand additions, which as tensor operations, a handful for every frame, cost a small model a twentieth of
// its training step.

#include "bestow/best_path.h"

#include <algorithm>
#include <vector>

namespace bestow {

void best_path(const Transcript& said, int64_t* token) {
  constexpr float kNever = -1e30f;
  std::fill(token, token + said.frames, -1);
  if (said.frames == 0) return;
  const int64_t states = 2 * said.count + 1;
  std::vector<int64_t> label(states, said.classes - 1);  // blank, token 0, blank, token 1, ..., blank
  for (int64_t n = 0; n < said.count; ++n) label[2 * n + 1] = said.tokens[n];
  // Two states before the first, which no path comes from.
  std::vector<float> score(states + 2, kNever), next(states + 2, kNever);
  std::vector<uint8_t> back(said.frames * states);  // how many states before: 2, 1 or 0
  for (int64_t s = 0; s < std::min<int64_t>(2, states); ++s) score[s + 2] = said.logp[label[s]];
  for (int64_t frame = 1; frame < said.frames; ++frame) {
    const float* emit = said.logp + frame * said.classes;
    for (int64_t s = 0; s < states; ++s) {
      // A path may leave out the blank between two different tokens.
      const bool skip = s % 2 == 1 && s > 1 && label[s] != label[s - 2];
      float best = skip ? score[s] : score[s] + kNever;
      uint8_t from = 2;
      if (score[s + 1] > best) best = score[s + 1], from = 1;
      if (score[s + 2] > best) best = score[s + 2], from = 0;
      next[s + 2] = best + emit[label[s]];
      back[frame * states + s] = from;
    }
    score.swap(next);
  }
  int64_t state = states - 1;
  if (state > 0 && score[state + 1] > score[state + 2]) --state;
  // Of a score that is no number nobody can tell which states it came from, and the way back might leave the array.
  if (!(score[state + 2] > kNever / 2)) return;
  for (int64_t frame = said.frames - 1; frame >= 0; --frame) {
    if (state % 2 == 1) token[frame] = state / 2;
    state -= back[frame * states + state];  // 0 in the first frame
  }
}

}  // namespace bestow
