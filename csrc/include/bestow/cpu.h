// The CPU kernels' face: plain pointers, no torch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bestow {

enum class Scalar { kFloat, kBFloat16, kHalf };

// A (B, H, N, D) array; strides in elements, the last dimension is dense.
struct Rows {
  void* data;
  int64_t batch, head, row;
};

// Attention in which query row (b, u) sees the first visible[b, u] keys.
struct Staircase {
  Scalar scalar;
  int64_t batch, heads, kv_heads, positions, frames, width;  // B, H, H_kv, U, F, D
  float scale;
  Rows q, k, v;            // (B, H, U, D), (B, H_kv, F, D), (B, H_kv, F, D)
  const int32_t* visible;  // (B, U), any values; clamped to 0 ... F where read
  int64_t visible_batch, visible_row;
};

struct Forward : Staircase {
  Rows out;            // (B, H, U, D)
  float* lse;          // (B, H, U) dense: log of the softmax's denominator; +inf in rows that see nothing
  int64_t splits = 1;  // into how many parts the query rows of one key head are cut
  Rows weights{};      // (B, H, U, F) or none: the softmax itself, of at most kFewRows query rows for each key head
  int64_t units() const { return batch * kv_heads * splits; }
};

struct Backward : Staircase {
  Rows grad;         // (B, H, U, D) gradient of out
  const float* lse;  // (B, H, U) from the forward pass
  Rows dq, dk, dv;   // as q, k, v; dk and dv have dense rows
  int64_t units() const { return batch * kv_heads; }
};

// The softmax itself of at most kFewRows query rows for each key head; v plays no part.
struct Softmax : Staircase {
  Rows out;  // (B, H, U, F)
  int64_t units() const { return batch * kv_heads; }
};

// out = x W^T + bias in float32, W cut in panels of kPanel outputs.
constexpr int64_t kPanel = 16;

constexpr int64_t kSteadyRows = 4;
struct PanelLinear {
  int64_t rows, inputs, outputs;  // M, K, N; N a multiple of kPanel
  const float* x;                 // (M, K)
  const float* panels;            // (N / kPanel, K, kPanel)
  const float* bias;              // (N,) or null
  float* out;                     // (M, N)
  int64_t x_row = 0;              // stride of rows of x that are not dense; they may overlap
  bool steady = false;            // every row is rounded alike, whatever its neighbours; M is a multiple of kSteadyRows
  int64_t units() const { return outputs / kPanel; }
  int64_t from_row() const { return x_row > 0 ? x_row : inputs; }
};

// A linear layer for a few rows of input.
struct FewRows {
  Scalar scalar;                  // of the weights: float or bfloat16; they are int8 where they have scales
  int64_t rows, inputs, outputs;  // M, K, N
  const void* input;              // (M, K): float, or int16 beside int8 weights
  const float* input_scale;       // (M), of int16 inputs
  const void* weight;             // (N, K) dense
  const float* scale;             // (N), of int8 weights
  const float* bias;              // (N) or null
  float* out;                     // (M, N)
  int64_t input_row = 0;          // strides where rows are not dense
  int64_t out_row = 0;
  int64_t from_row() const { return input_row > 0 ? input_row : inputs; }
  int64_t to_row() const { return out_row > 0 ? out_row : outputs; }
};

// Rows with their mean and deviation taken out, or without a bias their root mean square alone. A unit is a row.
struct NormRows {
  int64_t width;
  const float *x, *weight, *bias;  // (rows, width), (width), (width) or null
  float eps;
  float* out;  // (rows, width), may be x
};

// A convolution over time, channel by channel: rows + kernel - 1 frames give as many as there are rows. A unit is a
// row.
struct Taps {
  int64_t width, kernel;
  const float *x, *taps, *bias;  // (rows + kernel - 1, width), (kernel, width), (width) or null
  float* out;                    // (rows, width)
};

// What such convolutions of several recordings owe to their taps. A unit is kTapChannels channels, or what is left.
constexpr int64_t kTapChannels = 16;
struct TapGradients {
  int64_t batch, rows, width, kernel;
  const float *x, *gradient;  // (batch, rows + kernel - 1, width), (batch, rows, width)
  float* out;                 // (kernel, width)
  int64_t units() const { return (width + kTapChannels - 1) / kTapChannels; }
};

// One stream's queries, rows `row` ... row + chunk - 1 of all streams', and keys and values of its past and of the
// chunk, whose own come last. The first `seen` are attended to.
struct ChunkWindow {
  int64_t row, chunk;
  const float* data;  // (frames, 2 H d)
  int64_t first;      // which of these frames the first query is of
  int64_t seen;
};

// Whole vectors are read of the columns of a table of relative positions: so many stand behind the last.
constexpr int64_t kSparePlaces = 15;

// Frames of chunks attend to their windows, by content and by relative position. A unit is one head of one stream.
struct ChunkAttention {
  int64_t heads, head, chunk, size, places;  // H, d; no chunk has more frames, no window; columns of `relative`,
                                             // kSparePlaces of them beyond all distances
  const float* queries;                      // (rows, H d), `query_row` apart
  int64_t query_row;
  const ChunkWindow* windows;              // (streams)
  const float *bias_content, *bias_place;  // (H d)
  const float* relative;  // (H, d, places), scaled: frame p of a window meets j in column size - 1 - p + j
  float scale;            // of scores by content
  float* out;             // (rows, H d)
  int64_t pitch() const { return (size + 15) / 16 * 16; }  // whole vectors of any instruction set
  size_t scratch() const {                                 // bytes; eight queries are weighed together at most
    return ((head + chunk) * pitch() + 8 * (2 * head + pitch() + 16)) * sizeof(float);
  }
};

// Log-mel frames of audio: log(max(filters |FFT(window samples)|^2, floor)).
struct LogMel {
  int64_t size, hop, bins;  // N, a power of two from 32 on; samples from frame to frame; M
  const float* window;      // (N)
  const float* turns;       // (2, N): cosines and sines of 2 pi n / N
  const int64_t* spans;     // (M, 2): the first frequency of each filter, and how many it has
  const float* filters;     // their weights, filter by filter
  float floor;
  size_t scratch() const { return (5 * size / 2 + 1) * 16 * sizeof(float); }  // bytes, for any instruction set
};

// Frames less the mean of all frames so far, by their deviation.
struct RunningMoments {
  int64_t bins;
  const float* mean;  // (bins), of the pseudo-frames; sums are those of distances from it
  float smallest;     // variance
  bool norm_vars;
};

// One instruction set's kernels. Work is cut in units that may run on any thread; each call needs its own workspace.
struct Kernels {
  const char* name;
  size_t (*forward_bytes)(const Forward&);
  void (*forward)(const Forward&, int64_t begin, int64_t end, void* workspace);
  size_t (*backward_bytes)(const Backward&);
  void (*backward)(const Backward&, int64_t begin, int64_t end, void* workspace);
  size_t (*softmax_bytes)(const Softmax&);
  void (*softmax)(const Softmax&, int64_t begin, int64_t end, void* workspace);
  void (*panel_linear)(const PanelLinear&, int64_t begin, int64_t end);
  // x (rows, inputs) as integers times a step size per row; the step is NaN where the row is not finite.
  void (*round_rows)(const float* x, int64_t rows, int64_t inputs, int16_t* out, float* steps);
  size_t (*few_rows_bytes)(const FewRows&);
  void (*few_rows)(const FewRows&, int64_t begin, int64_t end, void* workspace);  // a unit is one output
  void (*norm)(const NormRows&, int64_t begin, int64_t end);
  void (*gate)(const float* x, const float* by, int64_t n, float* out);  // x sigmoid(by); out may be either
  void (*gelu)(const float* x, int64_t n, float* out);                   // out may be x
  void (*convolve)(const Taps&, int64_t begin, int64_t end);
  void (*tap_gradients)(const TapGradients&, int64_t begin, int64_t end);
  void (*chunk_attention)(const ChunkAttention&, int64_t begin, int64_t end, float* scratch);
  // samples ((frames - 1) hop + N) -> out (frames, M)
  void (*log_mel)(const LogMel&, const float* samples, int64_t frames, float* out, float* scratch);
  // x (frames, bins) -> out, and weight, total and square (bins) of the past -> with these frames
  void (*running_mvn)(const RunningMoments&, const float* x, int64_t frames, double* weight, double* total,
                      double* square, float* out);
};

// Up to this many query rows per key head, keys are read once as they lie instead of being packed.
constexpr int64_t kFewRows = 8;

// The best kernels this CPU can run, or those that BESTOW_CPU_ISA names. Null when none of those that were compiled is
// named so or can run here.
const Kernels* kernels();

}  // namespace bestow
