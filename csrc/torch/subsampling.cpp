// Sub-sampling by strided convolutions over time, all stages of a few streams in one call.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"
#include "layers.h"

namespace {

using namespace bestow;  // layers.h

constexpr int64_t kStride = 2;

// A convolution of stride 2: a frame is a product of `kernel` frames of its input, which lie one after the other.
struct Stage {
  Panels conv;  // inputs: frame by frame, channel by channel
  int64_t channels, past;

  Stage(Weights& from, int64_t channels_) : conv(from, 0), channels(channels_), past(conv.inputs / channels - kStride) {
    STD_TORCH_CHECK(past >= 0 && conv.inputs % channels == 0, "conv_subsampling: ", conv.inputs, " inputs of ",
                    channels, " channels");
  }
};

// Frames `first` ... first + count - 1 of a stream that has those from 0 to before `length`: others become 0.
void silence_outside(float* x, int64_t first, int64_t count, int64_t length, int64_t width) {
  const int64_t begin = std::min(std::max<int64_t>(-first, 0), count);
  const int64_t end = std::max(std::min(length - first, count), begin);
  std::fill(x, x + begin * width, 0.0f), std::fill(x + end * width, x + count * width, 0.0f);
}

// All stages, a linear layer and a norm: per stage its weights and bias, then those of the other two.
struct Network {
  std::vector<Stage> stages;
  int64_t channels, factor, remembered = 0;
  Panels linear;
  Norm norm;

  Network(Weights& from, int64_t channels_, int64_t count, double eps)
      : stages(stages_of(from, channels_, count)),
        channels(channels_),
        factor(int64_t{1} << count),
        linear(from, stages.back().conv.outputs),
        norm(from, linear.outputs, eps) {
    STD_TORCH_CHECK(norm.weight != nullptr && from.done(), "conv_subsampling: weights are left over");
    for (const Stage& stage : stages) remembered += stage.past * stage.channels;
  }

  static std::vector<Stage> stages_of(Weights& from, int64_t channels, int64_t count) {
    STD_TORCH_CHECK(1 <= count && count < 16 && channels > 0, "conv_subsampling: ", count, " stages");
    std::vector<Stage> stages;
    for (int64_t s = 0; s < count; ++s) stages.emplace_back(from, s == 0 ? channels : stages.back().conv.outputs);
    return stages;
  }

  // Output frames of so many input frames.
  int64_t frames_of(int64_t length) const {
    for (size_t s = 0; s < stages.size(); ++s) length = length / kStride + 1;
    return length;
  }
};

// One stream's next frames.
struct Piece {
  const float* fresh;   // input frames
  int64_t given;        // how many: behind them, and before a recording's first, is silence
  int64_t start, n;     // the output frames: the first, and how many
  int64_t length;       // input frames of all of it, or -1 while it goes on
  const float* before;  // the last inputs of all stages
  float* after;         // the same behind these frames
  float* out;           // (n, D)
};

// Of one stage; both grow in the first one of the longest stream.
struct Scratch {
  std::vector<float> input, output;
};

// Frames before a recording's first one of which its first output frame is made too.
int64_t lead_of(const Network& net, int64_t start) { return start == 0 ? net.factor - 1 : 0; }

void run_at_once(const Network& net, const Piece& piece, Scratch& scratch) {
  auto& [input, output] = scratch;
  const float *fresh = piece.fresh, *before = piece.before;
  float* after = piece.after;
  int64_t n = piece.n * net.factor, apart = net.factor, length = piece.length;  // apart: frames per output frame
  int64_t lead = lead_of(net, piece.start), given = std::min(piece.given, n - lead);
  for (const Stage& stage : net.stages) {
    const int64_t channels = stage.channels, own = stage.past * channels, all = own + n * channels;
    input.resize(std::max<size_t>(input.size(), all));
    float *to = input.data(), *first = to + own + lead * channels, *end = first + given * channels;
    std::memcpy(to, before, own * sizeof(float)), before += own;
    std::fill(to + own, first, 0.0f);
    std::memcpy(first, fresh, given * channels * sizeof(float));
    std::fill(end, to + all, 0.0f);
    std::memcpy(after, to + all - own, own * sizeof(float)), after += own;
    n /= kStride, lead = 0, given = n;
    output.resize(std::max<size_t>(output.size(), n * stage.conv.outputs));
    stage.conv(to, n, output.data(), kStride * channels);
    chosen().gelu(output.data(), n * stage.conv.outputs, output.data());
    apart /= kStride;
    const int64_t from = apart * piece.start - (apart - 1);
    if (length >= 0) length = length / kStride + 1;
    silence_outside(output.data(), from, n, length < 0 ? from + n : length, stage.conv.outputs);
    fresh = output.data();
  }
  net.linear(fresh, n, piece.out);
  net.norm(piece.out, n, piece.out);
}

void run(const Network& net, Piece piece, int64_t block, Scratch& scratch) {
  for (int64_t left = piece.n; left > 0; left -= piece.n) {
    piece.n = std::min(left, block);
    run_at_once(net, piece, scratch);
    const int64_t used = std::min(piece.n * net.factor - lead_of(net, piece.start), piece.given);
    piece.fresh += used * net.channels, piece.given -= used, piece.start += piece.n;
    piece.before = piece.after, piece.out += piece.n * net.linear.outputs;
  }
}

void run_all(const Network& net, const std::vector<Piece>& pieces, int64_t block) {
  const int64_t threads = torch::stable::get_num_threads(), count = pieces.size();
  std::vector<int64_t> costs;
  for (const Piece& piece : pieces) costs.push_back(piece.n);
  // Of fewer pieces than there are threads, these share each layer.
  const auto shares = shared_out(costs, count < threads ? 1 : threads);
  torch::stable::parallel_for(0, shares.size(), 1, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t share = begin; share < end; ++share)
      for (int64_t b : shares[share]) run(net, pieces[b], block, scratch);
  });
}

Tensor input_frames(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.scalar_type() == ScalarType::Float, "conv_subsampling: x");
  return torch::stable::contiguous(x);
}

// Input frames (B, T, C) of streams from the first on that makes output frame `start` (see causal_subsampling.py);
// no more than `block` output frames are computed at a time, for how many there are decides how sums are rounded;
// past (B, n) holds the last inputs of all stages. bounds (B, 3): start, how many output frames are wanted, and input
// frames of a stream that has ended or -1. Returns frames, 0 behind these and behind the end, and past, which means
// nothing there.
std::tuple<Tensor, Tensor> conv_subsampling(Tensor x, Tensor past, Tensor bounds, std::vector<Tensor> weights,
                                            int64_t count, int64_t block, double eps) {
  x = input_frames(x), past = torch::stable::contiguous(past);
  const int64_t batch = x.size(0), frames = x.size(1);
  Weights from(weights);
  const Network net(from, x.size(2), count, eps);
  STD_TORCH_CHECK(block > 0, "conv_subsampling: blocks of ", block);
  STD_TORCH_CHECK(past.is_cpu() && past.scalar_type() == ScalarType::Float && past.dim() == 2 &&
                      past.size(0) == batch && past.size(1) == net.remembered,
                  "conv_subsampling: past must be float32 (", batch, ", ", net.remembered, ")");
  const int64_t* bound = numbers<int64_t>(bounds, ScalarType::Long, 3 * batch, "conv_subsampling: bounds");
  const int64_t width = net.linear.outputs;
  int64_t most = 0;
  for (int64_t b = 0; b < batch; ++b) most = std::max(most, bound[3 * b + 1]);
  Tensor out = torch::stable::new_empty(x, {batch, most, width});
  Tensor after = torch::stable::new_empty(past, {batch, net.remembered});
  auto *to = static_cast<float*>(out.data_ptr()), *kept = static_cast<float*>(after.data_ptr());
  std::vector<Piece> pieces;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t start = bound[3 * b], wanted = bound[3 * b + 1], length = bound[3 * b + 2];
    STD_TORCH_CHECK(0 <= start && 0 <= wanted, "conv_subsampling: ", wanted, " frames from ", start, " on");
    const int64_t n = length < 0 ? wanted : std::min(std::max<int64_t>(net.frames_of(length) - start, 0), wanted);
    const int64_t past_of = b * net.remembered;
    pieces.push_back({floats(x) + b * frames * x.size(2), frames, start, n, length, floats(past) + past_of,
                      kept + past_of, to + b * most * width});
    std::fill(to + (b * most + n) * width, to + (b + 1) * most * width, 0.0f);
    if (n == 0) std::copy(floats(past) + past_of, floats(past) + past_of + net.remembered, kept + past_of);
  }
  run_all(net, pieces, block);
  return {out, after};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // x (B, T, C), past (B, n), bounds (B, 3) int64 -> (B, F, D), (B, n)
  m.def(
      "conv_subsampling(Tensor x, Tensor past, Tensor bounds, Tensor[] weights, int count, int block, float eps) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) { m.impl("conv_subsampling", TORCH_BOX(&conv_subsampling)); }
