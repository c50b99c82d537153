// The best path of CTC through a transcript: plain pointers, no torch.
#pragma once

#include <cstdint>

namespace bestow {

// One utterance and what is said in it.
struct Transcript {
  const float* logp;  // (F, C), the last class is blank
  int64_t frames, classes;
  const int64_t* tokens;  // (N), each below C - 1
  int64_t count;          // N
};

// Which token each frame belongs to, (F): -1 at blanks, and everywhere if there is no path.
void best_path(const Transcript& said, int64_t* token);

}  // namespace bestow
