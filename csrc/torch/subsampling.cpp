// Sub-sampling by strided convolutions over time: all stages of a few streams in one call, from their features or from
// their audio.

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
#include "features.h"
#include "layers.h"

namespace {

using namespace bestow;  // features.h, layers.h

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
    STD_TORCH_CHECK(from.done(), "conv_subsampling: weights are left over");
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
  const float* fresh;  // input frames
  int64_t given;       // how many: behind them, and before a recording's first, is silence
  int64_t start, n;    // the output frames: the first, and how many
  int64_t length;      // input frames of all of it, or -1 while it goes on
  float* past;         // the last inputs of all stages, and afterwards those behind these frames
  float* out;          // (n, D)
};

// For the features of a piece, and for one stage.
struct Rooms {
  Room features, input, output;
};

// Those of a thread.
Rooms& own_rooms() {
  static thread_local Rooms rooms;
  return rooms;
}

// Frames before a recording's first one of which its first output frame is made too.
int64_t lead_of(const Network& net, int64_t start) { return start == 0 ? net.factor - 1 : 0; }

void run_at_once(const Network& net, const Piece& piece, Rooms& rooms) {
  const float* fresh = piece.fresh;
  float* past = piece.past;
  int64_t n = piece.n * net.factor, apart = net.factor, length = piece.length;  // apart: frames per output frame
  int64_t lead = lead_of(net, piece.start), given = std::min(piece.given, n - lead);
  for (const Stage& stage : net.stages) {
    const int64_t channels = stage.channels, own = stage.past * channels, all = own + n * channels;
    float *to = rooms.input.of(all), *first = to + own + lead * channels, *end = first + given * channels;
    std::memcpy(to, past, own * sizeof(float));
    std::fill(to + own, first, 0.0f);
    if (given > 0) std::memcpy(first, fresh, given * channels * sizeof(float));
    std::fill(end, to + all, 0.0f);
    std::memcpy(past, to + all - own, own * sizeof(float)), past += own;
    n /= kStride, lead = 0, given = n;
    float* output = rooms.output.of(n * stage.conv.outputs);
    stage.conv(to, n, output, kStride * channels);
    chosen().gelu(output, n * stage.conv.outputs, output);
    apart /= kStride;
    const int64_t from = apart * piece.start - (apart - 1);
    if (length >= 0) length = length / kStride + 1;
    silence_outside(output, from, n, length < 0 ? from + n : length, stage.conv.outputs);
    fresh = output;
  }
  net.linear(fresh, n, piece.out);
  net.norm(piece.out, n, piece.out);
}

void run(const Network& net, Piece piece, int64_t block, Rooms& rooms) {
  for (int64_t left = piece.n; left > 0; left -= piece.n) {
    piece.n = std::min(left, block);
    run_at_once(net, piece, rooms);
    const int64_t used = std::min(piece.n * net.factor - lead_of(net, piece.start), piece.given);
    piece.fresh += used * net.channels, piece.given -= used, piece.start += piece.n;
    piece.out += piece.n * net.linear.outputs;
  }
}

void run_all(const Network& net, const std::vector<Piece>& pieces, int64_t block) {
  std::vector<int64_t> costs;
  for (const Piece& piece : pieces) costs.push_back(piece.n);
  each_share(costs, [&](const std::vector<int64_t>& share) {
    for (int64_t b : share) run(net, pieces[b], block, own_rooms());
  });
}

// A copy of what some streams remember: (B, n) of the last inputs of all stages, or other dense numbers.
template <class T>
Tensor remembered(const Tensor& past, ScalarType type, int64_t count, const char* what) {
  const T* from = numbers<T>(past, type, count, what);
  Tensor copy = torch::stable::new_empty(past, past.sizes());
  std::copy(from, from + count, static_cast<T*>(copy.data_ptr()));
  return copy;
}

// The output frames of a stream that has ended after `length` input frames, or goes on (-1), of those that are wanted.
int64_t there_are(const Network& net, int64_t start, int64_t wanted, int64_t length) {
  STD_TORCH_CHECK(0 <= start && 0 <= wanted, "conv_subsampling: ", wanted, " frames from ", start, " on");
  return length < 0 ? wanted : std::min(std::max<int64_t>(net.frames_of(length) - start, 0), wanted);
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
  Tensor after = remembered<float>(past, ScalarType::Float, batch * net.remembered, "conv_subsampling: past");
  const int64_t* bound = numbers<int64_t>(bounds, ScalarType::Long, 3 * batch, "conv_subsampling: bounds");
  const int64_t width = net.linear.outputs;
  int64_t most = 0;
  for (int64_t b = 0; b < batch; ++b) most = std::max(most, bound[3 * b + 1]);
  Tensor out = torch::stable::new_empty(x, {batch, most, width});
  auto *to = static_cast<float*>(out.data_ptr()), *kept = static_cast<float*>(after.data_ptr());
  std::vector<Piece> pieces;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t start = bound[3 * b], length = bound[3 * b + 2];
    const int64_t n = there_are(net, start, bound[3 * b + 1], length);
    pieces.push_back({floats(x) + b * frames * x.size(2), frames, start, n, length, kept + b * net.remembered,
                      to + b * most * width});
    std::fill(to + (b * most + n) * width, to + (b + 1) * most * width, 0.0f);
  }
  run_all(net, pieces, block);
  return {out, after};
}

// The same from recordings: what lies between audio and output frames is not written down. bounds (B, 5): the first
// feature frame that is computed and the one behind the last, then as above. Moments (B, 3, M) and past are those of
// the frames before. Returns the output frames of all recordings, one after the other, then moments and past.
std::tuple<Tensor, Tensor, Tensor> subsampled_audio(std::vector<Tensor> audio, Tensor bounds, Tensor moments,
                                                    Tensor past, int64_t block, int64_t hop, Tensor window,
                                                    Tensor turns, Tensor spans, Tensor filters, double floor,
                                                    Tensor mean, double smallest, bool norm_vars,
                                                    std::vector<Tensor> weights, int64_t count, double eps) {
  const MelFrames mel_frames(hop, window, turns, spans, filters, floor);
  const int64_t batch = audio.size(), bins = mel_frames.p.bins;
  const RunningMVN normalize(bins, mean, smallest, norm_vars);
  Weights from(weights);
  const Network net(from, bins, count, eps);
  STD_TORCH_CHECK(block > 0, "conv_subsampling: blocks of ", block);
  Tensor after = remembered<float>(past, ScalarType::Float, batch * net.remembered, "conv_subsampling: past");
  Tensor sums = remembered<double>(moments, ScalarType::Double, batch * 3 * bins, "running_mvn: moments");
  const int64_t* bound = numbers<int64_t>(bounds, ScalarType::Long, 5 * batch, "subsampled_audio: bounds");
  float* kept = static_cast<float*>(after.data_ptr());
  double* heard = static_cast<double*>(sums.data_ptr());
  struct Job {
    Recording of;
    int64_t first;   // feature frame
    double* heard;   // moments
    int64_t wanted;  // rows of the output
    Piece piece;
  };
  std::vector<Job> jobs;
  std::vector<int64_t> costs;
  int64_t rows = 0;
  for (int64_t b = 0; b < batch; ++b, bound += 5) {
    const int64_t given = bound[1] - bound[0], n = there_are(net, bound[2], bound[3], bound[4]);
    STD_TORCH_CHECK(bound[0] >= 0 && given >= 0, "log_mel: frames ", bound[0], " to ", bound[1]);
    jobs.push_back({Recording(audio[b]),
                    bound[0],
                    heard + b * 3 * bins,
                    bound[3],
                    {nullptr, given, bound[2], n, bound[4], kept + b * net.remembered, nullptr}});
    costs.push_back(n), rows += bound[3];
  }
  const int64_t width = net.linear.outputs;
  Tensor out = torch::stable::new_empty(past, {rows, width});
  float* to = static_cast<float*>(out.data_ptr());
  for (Job& job : jobs) {
    job.piece.out = to, to += job.wanted * width;
    std::fill(job.piece.out + job.piece.n * width, to, 0.0f);
  }
  each_share(costs, [&](const std::vector<int64_t>& share) {
    Rooms& rooms = own_rooms();
    for (int64_t b : share) {
      const Job& job = jobs[b];
      Piece piece = job.piece;
      float* features = rooms.features.of(piece.given * bins);
      mel_frames.all(job.of, job.first, piece.given, features);
      normalize(features, piece.given, job.heard, features);
      piece.fresh = features;
      run(net, piece, block, rooms);
    }
  });
  return {out, sums, after};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // x (B, T, C), past (B, n), bounds (B, 3) int64 -> (B, F, D), (B, n)
  m.def(
      "conv_subsampling(Tensor x, Tensor past, Tensor bounds, Tensor[] weights, int count, int block, float eps) -> "
      "(Tensor, Tensor)");
  // recordings, bounds (B, 5) int64, moments (B, 3, M), past (B, n), and constants of log_mel, of running_mvn and of
  // conv_subsampling -> (R, D), moments and past
  m.def(
      "subsampled_audio(Tensor[] audio, Tensor bounds, Tensor moments, Tensor past, int block, int hop, Tensor window, "
      "Tensor turns, Tensor spans, Tensor filters, float floor, Tensor mean, float smallest, bool norm_vars, Tensor[] "
      "weights, int count, float eps) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) {
  m.impl("conv_subsampling", TORCH_BOX(&conv_subsampling));
  m.impl("subsampled_audio", TORCH_BOX(&subsampled_audio));
}
