// x W^T + b in float32 for a few rows x, where reading W once at the speed of memory is all there is to win.
//
// W lies in panels of 16 outputs, input by input: a thread reads it as one stream, and sums stay in vectors. After
// every kPiece inputs they go to the output, so that many inputs are not one long chain of roundings. Compiled once per
// instruction set (BESTOW_ISA), like staircase_forward.cpp.

#include "bestow/cpu.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {
namespace {

constexpr int kVecs = kPanel / kLanes;                            // of one panel
constexpr int kWide = kTileVecs < kVecs ? 1 : kTileVecs / kVecs;  // panels that more than a few rows meet at once
constexpr int kRows = kTileRows * kTileVecs / (kVecs * kWide);    // rows whose sums then fit into the registers
// Rows of a group where the group's size, which decides how sums are cut, must be the same for all.
constexpr int kSteady = kRows < kSteadyRows ? kRows : kSteadyRows;
static_assert(kSteadyRows % kSteady == 0, "whole groups");
constexpr int64_t kAhead = 256;  // floats that are asked for ahead of use: 1 KB
constexpr int64_t kPiece = 128;

// Inputs first ... last - 1 of R rows of x times P panels, added to what they get from those before (the bias, or what
// lies in `out`). Few rows are summed in S strands, so that additions need not wait for each other.
template <int R, int P>
void add_piece(const PanelLinear& p, int64_t first, int64_t last, const float* x, const float* panel, const float* bias,
               float* out) {
  constexpr int V = P * kVecs;
  constexpr int S = R * V >= 6 ? 1 : R * V >= 3 ? 2 : 4;
  const int64_t apart = p.inputs * kPanel, row = p.from_row();
  Vec sums[S][R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      for (int s = 0; s < S; ++s) sums[s][r][v] = zero();
    }
  }
  const auto add_input = [&](int64_t k, int s) {
    const float* weights = panel + k * kPanel;
    Vec w[V];
    for (int v = 0; v < V; ++v) w[v] = load(weights + v / kVecs * apart + v % kVecs * kLanes);
    for (int i = 0; i < P; ++i) __builtin_prefetch(weights + i * apart + kAhead);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec one = splat(x[r * row + k]);
      for (int v = 0; v < V; ++v) sums[s][r][v] = fma(w[v], one, sums[s][r][v]);
    }
  };
  int64_t k = first;
  for (; k + S <= last; k += S) {
    for (int s = 0; s < S; ++s) add_input(k + s, s);
  }
  for (; k < last; ++k) add_input(k, 0);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      for (int s = 1; s < S; ++s) sums[0][r][v] = add(sums[0][r][v], sums[s][r][v]);
      float* to = out + r * p.outputs + v * kLanes;
      if (first > 0) {
        sums[0][r][v] = add(load(to), sums[0][r][v]);
      } else if (bias != nullptr) {
        sums[0][r][v] = add(load(bias + v * kLanes), sums[0][r][v]);
      }
      store(to, sums[0][r][v]);
    }
  }
}

template <int R, int P>
void rows_times_panels(const PanelLinear& p, const float* x, const float* panel, const float* bias, float* out) {
  int64_t first = 0;
  do {
    const int64_t last = p.inputs - first < kPiece ? p.inputs : first + kPiece;
    add_piece<R, P>(p, first, last, x, panel, bias, out);
    first = last;
  } while (first < p.inputs);
}

template <int P, int R = kRows>
void times_panels(int64_t rows, const PanelLinear& p, const float* x, const float* panel, const float* bias,
                  float* out) {
  if (rows == R) return rows_times_panels<R, P>(p, x, panel, bias, out);
  if constexpr (R > 1) times_panels<P, R - 1>(rows, p, x, panel, bias, out);
}

// All rows times the P panels from `unit` on, in groups of like size.
template <int P>
void all_rows(const PanelLinear& p, int64_t unit) {
  const float* panel = p.panels + unit * kPanel * p.inputs;
  const float* bias = p.bias ? p.bias + unit * kPanel : nullptr;
  const int64_t groups = (p.rows + kRows - 1) / kRows;
  const int64_t size = p.steady ? kSteady : (p.rows + groups - 1) / groups;
  for (int64_t row = 0; row < p.rows; row += size) {
    const int64_t rows = p.rows - row < size ? p.rows - row : size;
    times_panels<P>(rows, p, p.x + row * p.from_row(), panel, bias, p.out + row * p.outputs + unit * kPanel);
  }
}

}  // namespace

void panel_linear(const PanelLinear& p, int64_t begin, int64_t end) {
  if (p.rows == 0) return;
  // Of few rows memory sets the pace, and one stream is read faster than several.
  if (p.rows > kRows && !p.steady)
    for (; begin + kWide <= end; begin += kWide) all_rows<kWide>(p, begin);
  for (; begin < end; ++begin) all_rows<1>(p, begin);
}

}  // namespace bestow::BESTOW_ISA
