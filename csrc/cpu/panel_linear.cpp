// x W^T + b in float32 for a few rows x, where reading W once at the speed of memory is all there is to win.
//
// W lies in panels of 16 outputs, input by input: a thread reads it as one stream, and sums stay in vectors.
// Compiled once per instruction set (BESTOW_ISA), like staircase_forward.cpp.

#include "bestow/cpu.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {
namespace {

constexpr int kVecs = kPanel / kLanes;                // of one panel
constexpr int kRows = kTileRows * kTileVecs / kVecs;  // rows whose sums fit into the registers
constexpr int64_t kAhead = 256;                       // floats by which fetching runs ahead of use: 1 KB

// R rows of x times one panel. Few rows are summed in S strands, so that additions need not wait for each other.
template <int R>
void rows_times_panel(const PanelLinear& p, const float* x, const float* panel, const float* bias, float* out) {
  constexpr int S = R * kVecs >= 6 ? 1 : R * kVecs >= 3 ? 2 : 4;
  Vec sums[S][R][kVecs];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      sums[0][r][v] = bias ? load(bias + v * kLanes) : zero();
      for (int s = 1; s < S; ++s) sums[s][r][v] = zero();
    }
  }
  const auto add_input = [&](int64_t k, int s) {
    const float* weights = panel + k * kPanel;
    __builtin_prefetch(weights + kAhead);
    Vec w[kVecs];
    for (int v = 0; v < kVecs; ++v) w[v] = load(weights + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec one = splat(x[r * p.inputs + k]);
      for (int v = 0; v < kVecs; ++v) sums[s][r][v] = fma(w[v], one, sums[s][r][v]);
    }
  };
  int64_t k = 0;
  for (; k + S <= p.inputs; k += S) {
    for (int s = 0; s < S; ++s) add_input(k + s, s);
  }
  for (; k < p.inputs; ++k) add_input(k, 0);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      for (int s = 1; s < S; ++s) sums[0][r][v] = add(sums[0][r][v], sums[s][r][v]);
      store(out + r * p.outputs + v * kLanes, sums[0][r][v]);
    }
  }
}

template <int R>
void times_panel(int64_t rows, const PanelLinear& p, const float* x, const float* panel, const float* bias,
                 float* out) {
  if (rows == R) return rows_times_panel<R>(p, x, panel, bias, out);
  if constexpr (R > 1) times_panel<R - 1>(rows, p, x, panel, bias, out);
}

}  // namespace

void panel_linear(const PanelLinear& p, int64_t begin, int64_t end) {
  const int64_t groups = (p.rows + kRows - 1) / kRows, size = (p.rows + groups - 1) / groups;
  for (int64_t i = begin; i < end; ++i) {
    const float* panel = p.panels + i * kPanel * p.inputs;
    const float* bias = p.bias ? p.bias + i * kPanel : nullptr;
    for (int64_t row = 0; row < p.rows; row += size) {
      const int64_t rows = p.rows - row < size ? p.rows - row : size;
      times_panel<kRows>(rows, p, p.x + row * p.inputs, panel, bias, p.out + row * p.outputs + i * kPanel);
    }
  }
}

}  // namespace bestow::BESTOW_ISA
