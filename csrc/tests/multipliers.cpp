// What the multipliers do when nothing else is asked of them: the ceiling over every product. For
// benchmarks/machine.py, which compiles this for one instruction set (BESTOW_ISA) and hands it to torch's threads.

#include "bestow/forms.h"

namespace bestow::BESTOW_ISA {
namespace {

volatile float nobody_reads_it;

// At least so many multiplications and additions, into sums that wait for no memory and, there being many, not for each
// other.
template <class Form>
void work(int64_t operations) {
  constexpr int kSums = kTileRows * kTileVecs;
  constexpr int64_t kEach = 2 * kSums * kLanes * Form::kTogether;
  const int64_t steps = (operations + kEach - 1) / kEach;
  const Vec x = splat(1.0f), y = splat(0.5f);
  Vec sums[kSums];
  for (Vec& sum : sums) sum = zero();
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (int s = 0; s < kSums; ++s) sums[s] = Form::How::step(x, y, sums[s]);
  }
  for (const Vec& sum : sums) nobody_reads_it = bestow::BESTOW_ISA::sum(sum);
}

}  // namespace

// As many for each of begin ... end - 1 as `operations` points to.
extern "C" void multiply_fp32(int64_t begin, int64_t end, void* operations) {
  work<FormOf<float>::type>((end - begin) * *static_cast<int64_t*>(operations));
}
extern "C" void multiply_bf16(int64_t begin, int64_t end, void* operations) {
  work<FormOf<BFloat16>::type>((end - begin) * *static_cast<int64_t*>(operations));
}

}  // namespace bestow::BESTOW_ISA
