// Runs the CPU kernels on arrays that end where their last element ends, for the address and undefined-behaviour
// sanitizers (`make sanitize`). What the kernels compute is tested from Python; here only what they touch counts.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "bestow/best_path.h"
#include "bestow/cpu.h"

namespace {

std::mt19937 random_bits(0);

int64_t below(int64_t n) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(n)); }

// A (B, H, N, D) array of its own: no byte of it is spare, rows may have gaps between them.
struct Array {
  std::unique_ptr<char[]> memory;
  bestow::Rows rows;
  Array(bestow::Scalar scalar, int64_t b, int64_t h, int64_t n, int64_t d, bool gaps) {
    const int64_t size = scalar == bestow::Scalar::kFloat ? 4 : 2, row = d + (gaps ? below(5) : 0);
    const int64_t count = (b * h * n - 1) * row + d;
    memory.reset(new char[count * size]);
    for (int64_t i = 0; i < count; ++i) {
      const float x = static_cast<float>(below(2000)) / 1000 - 1;
      char bits[4];
      std::memcpy(bits, &x, 4);
      std::memcpy(memory.get() + i * size, bits + 4 - size, size);  // the high half is the same number in bfloat16
    }
    rows = {memory.get(), h * n * row, n * row, row};
  }
};

void one_problem(const bestow::Kernels& isa) {
  const bestow::Scalar scalar = static_cast<bestow::Scalar>(below(3));
  const int64_t batch = 1 + below(2), kv_heads = 1 + below(2), heads = kv_heads * (1 + below(2));
  const int64_t positions = 1 + below(below(2) ? 3 : 80), frames = 1 + below(120),
                width = 1 + below(below(2) ? 20 : 140);
  Array q(scalar, batch, heads, positions, width, true), grad(scalar, batch, heads, positions, width, true);
  Array k(scalar, batch, kv_heads, frames, width, true), v(scalar, batch, kv_heads, frames, width, true);
  Array out(scalar, batch, heads, positions, width, false), dq(scalar, batch, heads, positions, width, false);
  Array dk(scalar, batch, kv_heads, frames, width, false), dv(scalar, batch, kv_heads, frames, width, false);
  std::vector<int32_t> visible(batch * positions);
  for (int32_t& n : visible) n = static_cast<int32_t>(below(frames + 6) - 3);
  std::vector<float> lse(batch * heads * positions);

  bestow::Staircase p;
  p.scalar = scalar;
  p.batch = batch, p.heads = heads, p.kv_heads = kv_heads, p.positions = positions, p.frames = frames, p.width = width;
  p.scale = 0.2f;
  p.q = q.rows, p.k = k.rows, p.v = v.rows;
  p.visible = visible.data(), p.visible_batch = positions, p.visible_row = 1;

  bestow::Forward forward{p};
  forward.out = out.rows, forward.lse = lse.data(), forward.splits = 1 + below(3);
  std::unique_ptr<void, decltype(&std::free)> space(std::aligned_alloc(64, isa.forward_bytes(forward)), &std::free);
  isa.forward(forward, 0, forward.units(), space.get());

  if (heads / kv_heads * positions <= bestow::kFewRows) {
    Array weights(scalar, batch, heads, positions, frames, false);
    bestow::Softmax softmax{p};
    softmax.v = {}, softmax.out = weights.rows;
    space.reset(std::aligned_alloc(64, isa.softmax_bytes(softmax)));
    isa.softmax(softmax, 0, softmax.units(), space.get());
    forward.weights = weights.rows;
    space.reset(std::aligned_alloc(64, isa.forward_bytes(forward)));
    isa.forward(forward, 0, forward.units(), space.get());
  }

  bestow::Backward backward{p};
  backward.grad = grad.rows, backward.lse = lse.data();
  backward.dq = dq.rows, backward.dk = dk.rows, backward.dv = dv.rows;
  space.reset(std::aligned_alloc(64, isa.backward_bytes(backward)));
  isa.backward(backward, 0, backward.units(), space.get());
}

void one_panel_linear(const bestow::Kernels& isa) {
  bestow::PanelLinear p{1 + below(30), 1 + below(70), bestow::kPanel * (1 + below(4))};
  p.steady = p.rows % bestow::kSteadyRows == 0;
  const std::vector<float> x(p.rows * p.inputs, 0.5f), panels(p.inputs * p.outputs, 0.25f), bias(p.outputs, 1.0f);
  std::vector<float> out(p.rows * p.outputs);
  p.x = x.data(), p.panels = panels.data(), p.bias = below(2) ? bias.data() : nullptr, p.out = out.data();
  isa.panel_linear(p, 0, p.units());
}

// A linear layer whose arrays, too, have nothing to spare.
void one_linear(const bestow::Kernels& isa) {
  const int64_t rows = 1 + below(40), inputs = 1 + below(200), outputs = 1 + below(40);
  const int bytes = 1 << below(3);  // int8, bfloat16, float
  const bestow::Scalar scalar = bytes == 4 ? bestow::Scalar::kFloat : bestow::Scalar::kBFloat16;
  std::vector<float> x(rows * inputs), scale(outputs, 0.1f), bias(outputs, 1.0f), out(rows * outputs), steps(rows);
  const float size = below(4) == 0 ? 1e-38f : 1e-3f;
  for (float& number : x) number = static_cast<float>(below(2000) - 1000) * size;
  std::vector<int16_t> rounded(rows * inputs);
  std::vector<char> weight(outputs * inputs * bytes);
  for (char& byte : weight) byte = static_cast<char>(below(64));
  bestow::FewRows p{scalar, rows, inputs, outputs, x.data(), nullptr, weight.data(), nullptr, bias.data(), out.data()};
  if (bytes == 1) {
    isa.round_rows(x.data(), rows, inputs, rounded.data(), steps.data());
    p.input = rounded.data(), p.input_scale = steps.data(), p.scale = scale.data();
  }
  const int64_t middle = below(outputs + 1);
  std::vector<char> workspace(isa.few_rows_bytes(p));
  isa.few_rows(p, 0, middle, workspace.data()), isa.few_rows(p, middle, outputs, workspace.data());
}

// What lies between the products of a chunk.
void one_chunk(const bestow::Kernels& isa) {
  const int64_t batch = 1 + below(2), most = 1 + below(5), size = most + below(40), heads = 1 + below(3);
  const int64_t head = 2 * (1 + below(20)), width = heads * head, kernel = 1 + below(9);
  std::vector<std::vector<float>> memories;
  std::vector<bestow::ChunkWindow> windows;
  int64_t rows = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t chunk = 1 + below(most), frames = chunk + below(size - chunk + 1);
    memories.emplace_back(frames * 2 * width, 0.25f);
    windows.push_back({rows, chunk, memories.back().data(), below(frames - chunk + 1), 1 + below(frames)});
    rows += chunk;
  }
  const int64_t places = 2 * size - 1 + bestow::kSparePlaces;  // wherever in its window a chunk stands
  const std::vector<float> qkv(rows * 3 * width, 0.5f), ones(width, 1.0f), relative(places * width, 0.125f);
  std::vector<float> out(rows * width);
  bestow::ChunkAttention p{heads, head, most, size, places};
  p.queries = qkv.data(), p.query_row = 3 * width, p.windows = windows.data(), p.relative = relative.data();
  p.bias_content = p.bias_place = ones.data(), p.scale = 0.3f, p.out = out.data();
  std::vector<float> scratch(p.scratch() / sizeof(float));
  isa.chunk_attention(p, 0, batch * heads, scratch.data());
  isa.norm({width, out.data(), ones.data(), below(2) ? ones.data() : nullptr, 1e-5f, out.data()}, 0, rows);
  isa.gate(out.data(), out.data(), rows * width, out.data());
  const std::vector<float> past((rows + kernel - 1) * width, 0.5f), taps(kernel * width, 0.5f);
  isa.convolve({width, kernel, past.data(), taps.data(), below(2) ? ones.data() : nullptr, out.data()}, 0, rows);
  const std::vector<float> twice(2 * (rows + kernel - 1) * width, 0.5f), gradient(2 * rows * width, 0.5f);
  std::vector<float> sums(kernel * width);
  const bestow::TapGradients owed{2, rows, width, kernel, twice.data(), gradient.data(), sums.data()};
  isa.tap_gradients(owed, 0, owed.units());
}

// Log-mel frames whose samples end with the last window, and what a stream makes of them.
void some_features(const bestow::Kernels& isa) {
  const int64_t size = 32 << below(4), hop = 1 + below(size), frames = 1 + below(40), bins = 1 + below(40);
  const std::vector<float> samples((frames - 1) * hop + size, 0.1f), window(size, 0.5f), turns(2 * size, 0.5f);
  std::vector<int64_t> spans;
  int64_t weights = 0;
  for (int64_t bin = 0; bin < bins; ++bin) {
    const int64_t count = below(6), first = below(size / 2 + 2 - count);
    spans.push_back(first), spans.push_back(count), weights += count;
  }
  const std::vector<float> filters(weights, 0.25f), mean(bins, -7.0f);
  std::vector<float> out(frames * bins);
  bestow::LogMel p{size, hop, bins, window.data(), turns.data(), spans.data(), filters.data(), 1e-10f};
  std::vector<float> scratch(p.scratch() / sizeof(float));
  isa.log_mel(p, samples.data(), frames, out.data(), scratch.data());
  std::vector<double> weight(bins, 20.0), total(bins), square(bins, 20.0);
  isa.running_mvn({bins, mean.data(), 1e-3f, true}, out.data(), frames, weight.data(), total.data(), square.data(),
                  out.data());
}

void one_best_path() {
  const int64_t frames = below(30), classes = 2 + below(10), count = below(12);
  std::vector<float> logp(frames * classes);
  for (float& x : logp) x = below(50) == 0 ? NAN : -static_cast<float>(below(1000)) / 100;
  std::vector<int64_t> tokens(count), path(frames);
  for (int64_t& token : tokens) token = below(classes - 1);
  bestow::best_path({logp.data(), frames, classes, tokens.data(), count}, path.data());
}

}  // namespace

int main() {
  const bestow::Kernels* isa = bestow::kernels();
  if (isa == nullptr) {
    std::puts("skipped: BESTOW_CPU_ISA does not run on this CPU");
    return 0;
  }
  for (int i = 0; i < 400; ++i)
    one_problem(*isa), one_panel_linear(*isa), one_linear(*isa), one_chunk(*isa), some_features(*isa), one_best_path();
  std::printf("%s: 2400 problems, nothing out of bounds\n", isa->name);
  return 0;
}
