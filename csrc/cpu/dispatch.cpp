// Which instruction set's kernels run: decided once, at the first use.

#include <cstdlib>
#include <cstring>

#include "bestow/cpu.h"

namespace bestow {

// Which of them were compiled, the build says.
namespace avx512bf16 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace portable {
extern const Kernels kKernels;
}

namespace {

const Kernels* choose() {
  const char* wanted = std::getenv("BESTOW_CPU_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  const auto fits = [&](const Kernels& isa) { return any || std::strcmp(wanted, isa.name) == 0; };
#if defined(__x86_64__)
  __builtin_cpu_init();
  [[maybe_unused]] const bool avx2_runs =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  [[maybe_unused]] const bool avx512_runs = avx2_runs && __builtin_cpu_supports("avx512f") &&
                                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                                            __builtin_cpu_supports("avx512vl");
#endif
#if defined(BESTOW_WITH_avx512bf16)
  if (avx512_runs && __builtin_cpu_supports("avx512bf16") && fits(avx512bf16::kKernels)) return &avx512bf16::kKernels;
#endif
#if defined(BESTOW_WITH_avx512)
  if (avx512_runs && fits(avx512::kKernels)) return &avx512::kKernels;
#endif
#if defined(BESTOW_WITH_avx2)
  if (avx2_runs && fits(avx2::kKernels)) return &avx2::kKernels;
#endif
#if defined(BESTOW_WITH_portable)
  if (fits(portable::kKernels)) return &portable::kKernels;
#endif
  return nullptr;
}

}  // namespace

const Kernels* kernels() {
  static const Kernels* const chosen = choose();
  return chosen;
}

}  // namespace bestow
