// One more token of each of a few rows, through all blocks of a connector in a single call.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "bestow/cpu.h"
#include "token_layers.h"

namespace {

using namespace bestow;  // token_layers.h

// A cross-attention over encoder frames, its projections of them absorbed (see connectors/seated.py).
struct AbsorbedKeys {
  const float* data;  // (H, E, D)
  int64_t heads, frame, head;

  explicit AbsorbedKeys(const Tensor& x) : data(floats(x)), heads(0), frame(0), head(0) {
    STD_TORCH_CHECK(x.dim() == 3, "connector_token: absorbed keys must be (H, E, D)");
    heads = x.size(0), frame = x.size(1), head = x.size(2);
  }
};

struct AbsorbedAttention {
  Linear query;
  AbsorbedKeys key;
  const float *value, *bias;  // (H, D, E), (H, D)
  Linear out;

  AbsorbedAttention(Weights& from, int64_t width)
      : query(from, width),
        key(from.next()),
        value(from.vector(key.heads * key.head * key.frame)),
        bias(from.vector(key.heads * key.head)),
        out(from, key.heads * key.head) {}
};

struct ConnectorBlock {
  Norm self_norm;  // null where there is no self-attention
  SelfAttention self;
  Norm cross_norm;
  AbsorbedAttention cross;
  Norm ffn_norm;
  Linear first, second;

  ConnectorBlock(Weights& from, int64_t width, int64_t heads, int64_t frame, double eps)
      : self_norm(from, width, eps, true),
        self(from, width),
        cross_norm(from, width, eps),
        cross(from, width),
        ffn_norm(from, width, eps),
        first(from, width),
        second(from, first.outputs) {
    STD_TORCH_CHECK(self_norm.weight == nullptr || (self.query.outputs == width && self.key.outputs == width &&
                                                    self.value.outputs == width && self.out.outputs == width),
                    "connector_token: the self-attention of a block");
    STD_TORCH_CHECK(cross.query.outputs == width && cross.key.heads == heads && cross.key.head * heads == width &&
                        cross.key.frame == frame && cross.out.outputs == width,
                    "connector_token: the cross-attention of a block");
    STD_TORCH_CHECK(second.outputs == width, "connector_token: the feed-forward of a block");
  }
};

// What rows of text see of the frames (R, N, E), a row of which each session has.
struct Heard {
  float* data;
  int64_t row, frame;           // strides
  const int64_t* seats;         // whose row each is
  std::vector<int64_t> counts;  // frames that each sees
  int64_t width;                // E

  bestow::Rows of(int64_t b) const { return {data + seats[b] * row, 0, 0, frame}; }
};

// Rows from `begin` on: their queries q (rows, H * D) ask the frames, each head in D_enc dimensions; the answers are
// (rows, H * D), and how they looked, in the mean of the heads, is (rows, F), 0 where it is not written.
void ask(const AbsorbedAttention& cross, const Heard& heard, int64_t begin, int64_t rows, const float* q,
         float* answers, float* looked, int64_t frames) {
  const int64_t heads = cross.key.heads, head = cross.key.head, frame = heard.width, width = heads * head;
  std::vector<float> asked(rows * heads * frame), means(rows * heads * frame);
  bestow::FewRows p{bestow::Scalar::kFloat, rows};
  p.input_scale = p.scale = nullptr;
  p.inputs = head, p.outputs = frame, p.bias = nullptr, p.input_row = width, p.out_row = heads * frame;
  for (int64_t h = 0; h < heads; ++h) {
    p.input = q + h * head, p.weight = cross.key.data + h * frame * head, p.out = &asked[h * frame];
    multiply(p);
  }
  each_row(rows, [&](int64_t i) {
    const int64_t count = heard.counts[begin + i];
    if (count == 0) return;
    const bestow::Rows memory = heard.of(begin + i);
    std::vector<float> weights(bestow::kFewRows * count);
    for (int64_t h = 0; h < heads; h += bestow::kFewRows) {
      const int64_t some = std::min(bestow::kFewRows, heads - h), at = (i * heads + h) * frame;
      attend({&asked[at], 0, frame, frame}, memory, memory, some, 1, frame, count,
             1 / std::sqrt(static_cast<double>(head)), {&means[at], 0, frame, frame},
             {weights.data(), 0, count, count});
      for (int64_t each = 0; each < some; ++each)
        add_to(looked + i * frames, &weights[each * count], count, 1.0f / static_cast<float>(heads));
    }
  });
  p.inputs = frame, p.outputs = head, p.input_row = heads * frame, p.out_row = width;
  for (int64_t h = 0; h < heads; ++h) {
    p.input = &means[h * frame], p.bias = cross.bias + h * head;
    p.weight = cross.value + h * frame * head, p.out = answers + h * head;
    multiply(p);
  }
  for (int64_t i = 0; i < rows; ++i)  // who sees nothing stays at exactly 0, without the bias
    if (heard.counts[begin + i] == 0) std::memset(answers + i * width, 0, width * sizeof(float));
}

// First the layer into the connector; per block norm and self-attention (or empty tensors), norm and cross-attention,
// norm and feed-forward; at the end a norm and the layer out of it. Returns what is added to the text, and how each
// block looked at the first frames, (X, B, F), in the mean of its heads.
std::tuple<Tensor, Tensor> connector_token(Tensor text, std::vector<Tensor> weights, std::vector<Tensor> caches,
                                           Tensor frames, Tensor visible, Tensor rows, Tensor slots, int64_t blocks,
                                           int64_t heads, double eps) {
  STD_TORCH_CHECK(text.is_cpu() && text.dim() == 2 && text.scalar_type() == ScalarType::Float && heads > 0,
                  "connector_token: text");
  text = torch::stable::contiguous(text);
  const int64_t batch = text.size(0), frame = frames.size(-1);
  STD_TORCH_CHECK(
      frames.is_cpu() && frames.dim() == 3 && frames.is_contiguous() && frames.scalar_type() == ScalarType::Float,
      "connector_token: frames must be contiguous float32 (R, N, E)");
  STD_TORCH_CHECK(visible.is_cpu() && visible.scalar_type() == ScalarType::Int && visible.numel() == batch &&
                      visible.is_contiguous(),
                  "connector_token: visible must be int32 (", batch, ")");
  const Seats seats(rows, slots, batch);
  Heard heard{static_cast<float*>(frames.data_ptr()), frames.stride(0), frames.stride(1), seats.rows, {}, frame};
  int64_t most = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t count = std::max(static_cast<const int32_t*>(visible.data_ptr())[b], 0);
    STD_TORCH_CHECK(count == 0 || (count <= frames.size(1) && 0 <= seats.rows[b] && seats.rows[b] < frames.size(0)),
                    "connector_token: ", count, " frames of seat ", seats.rows[b], " of (", frames.size(0), ", ",
                    frames.size(1), ")");
    heard.counts.push_back(count), most = std::max(most, count);
  }
  Weights from(weights);
  const Linear in(from, text.size(1));
  const int64_t width = in.outputs, head = width / heads;
  STD_TORCH_CHECK(head * heads == width, "connector_token: ", heads, " heads of ", width);
  std::vector<ConnectorBlock> layers;
  std::vector<Cache> keys, values;
  for (int64_t block = 0; block < blocks; ++block) {
    layers.emplace_back(from, width, heads, frame, eps);
    if (layers.back().self_norm.weight == nullptr) continue;
    keys.emplace_back(caches, 2 * block, seats, heads, head),
        values.emplace_back(caches, 2 * block + 1, seats, heads, head);
  }
  const Norm last(from, width, eps);
  const Linear outward(from, width);
  STD_TORCH_CHECK(from.done() && (keys.empty() || keys.size() == layers.size()),
                  "connector_token: weights are left over");
  Tensor looked = torch::stable::new_empty(text, {blocks, batch, most});
  std::memset(looked.data_ptr(), 0, blocks * batch * most * sizeof(float));
  Tensor out = torch::stable::new_empty(text, {batch, outward.outputs});

  in_groups(batch, from, [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    const size_t size = count * width;
    std::vector<float> x(size), normed(size), update(size), q(size), k(size), v(size), attended(size), inner;
    in(floats(text) + begin * text.size(1), count, x.data());
    for (int64_t block = 0; block < blocks; ++block) {
      const ConnectorBlock& layer = layers[block];
      if (layer.self_norm.weight != nullptr) {
        layer.self_norm(x.data(), count, normed.data());
        layer.self.query(normed.data(), count, q.data());
        layer.self.key(normed.data(), count, k.data());
        layer.self.value(normed.data(), count, v.data());
        keys[block].write(begin, end, k.data()), values[block].write(begin, end, v.data());
        each_row(count, [&](int64_t i) {
          const int64_t b = begin + i;
          attend({&q[i * width], 0, head, head}, keys[block].of(b), values[block].of(b), heads, heads, head,
                 seats.slots[b] + 1, 1 / std::sqrt(static_cast<double>(head)), {&attended[i * width], 0, head, head});
        });
        layer.self.out(attended.data(), count, update.data());
        add_to(x.data(), update.data(), size);
      }
      layer.cross_norm(x.data(), count, normed.data());
      layer.cross.query(normed.data(), count, q.data());
      float* weights_of = static_cast<float*>(looked.data_ptr()) + (block * batch + begin) * most;
      ask(layer.cross, heard, begin, count, q.data(), attended.data(), weights_of, most);
      layer.cross.out(attended.data(), count, update.data());
      add_to(x.data(), update.data(), size);
      inner.resize(count * layer.first.outputs);
      layer.ffn_norm(x.data(), count, normed.data());
      layer.first(normed.data(), count, inner.data());
      for (float& each : inner) each = each > 0.0f || each != each ? each : 0.0f;
      layer.second(inner.data(), count, update.data());
      add_to(x.data(), update.data(), size);
    }
    last(x.data(), count, normed.data());
    outward(normed.data(), count, static_cast<float*>(out.data_ptr()) + begin * outward.outputs);
  });
  return {out, looked};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // text (B, D_llm), frames (R, N, E), visible (B) int32 -> (B, D_llm), (X, B, F)
  m.def(
      "connector_token(Tensor text, Tensor[] weights, Tensor(a!)[] caches, Tensor frames, Tensor visible, Tensor rows, "
      "Tensor slots, int blocks, int heads, float eps) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) { m.impl("connector_token", TORCH_BOX(&connector_token)); }
