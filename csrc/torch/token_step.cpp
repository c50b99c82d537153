// One more token of each of a few rows, through all layers of a connector or of an LLM in a single call.
//
// With small models the arithmetic of a token takes less time than it takes to ask for it, layer by layer, from Python.
// The products and the attention are the kernels that the layers call one by one; what lies between them (norms,
// rotations, gates) is a few hundred numbers and needs no kernels of its own.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"
#include "layers.h"

namespace {

using namespace bestow;  // layers.h

void multiply(const bestow::FewRows& p) {
  const bestow::Kernels& isa = chosen();
  torch::stable::parallel_for(
      0, p.outputs, bestow::outputs_per_thread(p.inputs, p.rows),
      [&](int64_t begin, int64_t end) { isa.few_rows(p, begin, end, workspace(isa.few_rows_bytes(p))); });
}

struct Linear {
  const float* weight;  // (outputs, inputs), null where there is no such layer
  const float* bias;    // (outputs) or null
  int64_t inputs, outputs;

  Linear(Weights& from, int64_t inputs_) : inputs(inputs_) {
    const Tensor& w = from.next();
    weight = w.numel() == 0 ? nullptr : floats(w);
    outputs = weight == nullptr ? 0 : w.size(0);
    STD_TORCH_CHECK(weight == nullptr || (w.dim() == 2 && w.size(1) == inputs), "token step: a layer of ", w.size(-1),
                    " inputs where ", inputs, " belong");
    bias = from.vector(outputs, true);
  }

  void operator()(const float* x, int64_t rows, float* out) const {
    multiply({bestow::Scalar::kFloat, rows, inputs, outputs, x, nullptr, weight, nullptr, bias, out});
  }
};

// One query row over the first `visible` of some keys; everything dense in its last dimension.
void attend(bestow::Rows q, bestow::Rows k, bestow::Rows v, int64_t heads, int64_t kv_heads, int64_t width,
            int64_t visible, double scale, bestow::Rows out) {
  const int32_t seen = static_cast<int32_t>(visible);
  bestow::Forward p{};
  p.scalar = bestow::Scalar::kFloat;
  p.batch = 1, p.heads = heads, p.kv_heads = kv_heads, p.positions = 1, p.frames = visible, p.width = width;
  p.scale = static_cast<float>(scale);
  p.q = q, p.k = k, p.v = v, p.out = out;
  p.visible = &seen, p.visible_batch = p.visible_row = 0;
  std::vector<float> lse(heads);
  p.lse = lse.data();
  const bestow::Kernels& isa = chosen();
  isa.forward(p, 0, p.units(), workspace(isa.forward_bytes(p)));
}

// Where the rows of a batch sit in the caches: (R, N, H, D), a row per seat and a slot per position.
struct Seats {
  const int64_t *rows, *slots;
  int64_t count;

  Seats(const Tensor& rows_, const Tensor& slots_, int64_t batch) : count(batch) {
    for (const Tensor* each : {&rows_, &slots_}) {
      STD_TORCH_CHECK(
          each->is_cpu() && each->scalar_type() == ScalarType::Long && each->is_contiguous() && each->numel() == batch,
          "token step: rows and slots must be int64 (", batch, ")");
    }
    rows = static_cast<const int64_t*>(rows_.data_ptr()), slots = static_cast<const int64_t*>(slots_.data_ptr());
  }
};

// Rows that a thread takes through all layers by itself, where there are enough for all threads; of fewer, threads
// share each layer.
constexpr int64_t kRowsOfAThread = 16;

template <class F>
void in_groups(int64_t batch, const F& pass) {
  if (batch < kRowsOfAThread * static_cast<int64_t>(torch::stable::get_num_threads())) return pass(0, batch);
  torch::stable::parallel_for(0, batch, kRowsOfAThread, pass);
}

class Cache {
 public:
  Cache(const std::vector<Tensor>& caches, size_t number, const Seats& seats, int64_t heads, int64_t width)
      : seats_(&seats), heads_(heads), width_(width) {
    STD_TORCH_CHECK(number < caches.size(), "token step: ", caches.size(), " caches are too few");
    const Tensor& x = caches[number];
    STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 4 && x.size(2) == heads &&
                        x.size(3) == width && x.is_contiguous(),
                    "token step: a cache must be contiguous float32 (R, N, ", heads, ", ", width, ")");
    for (int64_t b = 0; b < seats.count; ++b) {
      STD_TORCH_CHECK(
          0 <= seats.rows[b] && seats.rows[b] < x.size(0) && 0 <= seats.slots[b] && seats.slots[b] < x.size(1),
          "token step: no seat ", seats.rows[b], " or slot ", seats.slots[b]);
    }
    data_ = static_cast<float*>(x.data_ptr()), row_ = x.size(1) * heads * width;
  }

  void write(int64_t begin, int64_t end, const float* fresh) const {  // (rows, H * D)
    for (int64_t b = begin; b < end; ++b, fresh += heads_ * width_)
      std::memcpy(data_ + seats_->rows[b] * row_ + seats_->slots[b] * heads_ * width_, fresh,
                  heads_ * width_ * sizeof(float));
  }
  bestow::Rows of(int64_t b) const { return {data_ + seats_->rows[b] * row_, 0, width_, heads_ * width_}; }

 private:
  const Seats* seats_;
  float* data_;
  int64_t heads_, width_, row_;
};

struct SelfAttention {
  Linear query, key, value, out;
  SelfAttention(Weights& from, int64_t width)
      : query(from, width), key(from, width), value(from, width), out(from, query.outputs) {}
};

// Halves (a, b) of a head become (a cos - b sin, b cos + a sin).
void rotate(float* x, int64_t heads, int64_t width, const float* cos, const float* sin) {
  const int64_t half = width / 2;
  for (int64_t h = 0; h < heads; ++h, x += width) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * cos[i] - b * sin[i], x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
  }
}

struct LlamaLayer {
  Norm before, after, of_query, of_key;
  SelfAttention self;
  Linear gated, raised, down;
  int64_t heads, kv_heads;

  LlamaLayer(Weights& from, int64_t width, int64_t head, double eps)
      : before(from, width, eps),
        after(from, width, eps),
        of_query(from, head, eps),
        of_key(from, head, eps),
        self(from, width),
        gated(from, width),
        raised(from, width),
        down(from, gated.outputs),
        heads(self.query.outputs / head),
        kv_heads(self.key.outputs / head) {
    STD_TORCH_CHECK(before.weight != nullptr && after.weight != nullptr && kv_heads > 0 && heads % kv_heads == 0 &&
                        self.query.outputs == heads * head && self.key.outputs == kv_heads * head &&
                        self.value.outputs == self.key.outputs && self.out.outputs == width,
                    "llama_token: the attention of a layer");
    STD_TORCH_CHECK(gated.outputs == raised.outputs && down.outputs == width, "llama_token: the MLP of a layer");
  }
};

// Per layer: two norms, those of query and key heads if any, query, key, value, output, gate, up and down; at the end
// the last norm and the head. Biases follow their weights; norms have an empty one. Returns logits (B, V).
Tensor llama_token(Tensor x, std::vector<Tensor> weights, std::vector<Tensor> caches, Tensor rows, Tensor slots,
                   Tensor turn, double eps, double scale) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && x.scalar_type() == ScalarType::Float, "llama_token: x");
  x = torch::stable::contiguous(x);
  const int64_t batch = x.size(0), width = x.size(1), head = turn.size(-1);
  STD_TORCH_CHECK(turn.is_cpu() && turn.dim() == 3 && turn.size(0) == 2 && turn.size(1) == batch && head > 0 &&
                      head % 2 == 0 && turn.is_contiguous() && turn.scalar_type() == ScalarType::Float,
                  "llama_token: turn must be float32 (2, ", batch, ", D)");
  const Seats seats(rows, slots, batch);
  Weights from(weights);
  std::vector<LlamaLayer> layers;
  std::vector<Cache> keys, values;
  for (size_t layer = 0; 2 * layer < caches.size(); ++layer) {
    layers.emplace_back(from, width, head, eps);
    keys.emplace_back(caches, 2 * layer, seats, layers.back().kv_heads, head);
    values.emplace_back(caches, 2 * layer + 1, seats, layers.back().kv_heads, head);
  }
  const Norm last(from, width, eps);
  const Linear vocabulary(from, width);
  STD_TORCH_CHECK(last.weight != nullptr && from.done(), "llama_token: weights are left over");
  Tensor out = torch::stable::new_empty(x, {batch, vocabulary.outputs});
  const float *cosines = floats(turn), *sines = cosines + batch * head;

  in_groups(batch, [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    std::vector<float> hidden(floats(x) + begin * width, floats(x) + end * width);
    float* y = hidden.data();
    std::vector<float> normed(count * width), update(count * width), q, k, v, attended, gate, up;
    for (size_t number = 0; number < layers.size(); ++number) {
      const LlamaLayer& layer = layers[number];
      const int64_t wide = layer.heads * head, narrow = layer.kv_heads * head;
      q.resize(count * wide), k.resize(count * narrow), v.resize(k.size()), attended.resize(q.size());
      layer.before(y, count, normed.data());
      layer.self.query(normed.data(), count, q.data());
      layer.self.key(normed.data(), count, k.data());
      layer.self.value(normed.data(), count, v.data());
      if (layer.of_query.weight != nullptr) layer.of_query(q.data(), count * layer.heads, q.data());
      if (layer.of_key.weight != nullptr) layer.of_key(k.data(), count * layer.kv_heads, k.data());
      for (int64_t i = 0; i < count; ++i) {
        const float *cos = cosines + (begin + i) * head, *sin = sines + (begin + i) * head;
        rotate(&q[i * wide], layer.heads, head, cos, sin), rotate(&k[i * narrow], layer.kv_heads, head, cos, sin);
      }
      keys[number].write(begin, end, k.data()), values[number].write(begin, end, v.data());
      each_row(count, [&](int64_t i) {
        const int64_t b = begin + i;
        attend({&q[i * wide], 0, head, head}, keys[number].of(b), values[number].of(b), layer.heads, layer.kv_heads,
               head, seats.slots[b] + 1, scale, {&attended[i * wide], 0, head, head});
      });
      layer.self.out(attended.data(), count, update.data());
      add_to(y, update.data(), count * width);
      gate.resize(count * layer.gated.outputs), up.resize(gate.size());
      layer.after(y, count, normed.data());
      layer.gated(normed.data(), count, gate.data());
      layer.raised(normed.data(), count, up.data());
      chosen().gate(gate.data(), gate.data(), gate.size(), gate.data());
      for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i];
      layer.down(gate.data(), count, update.data());
      add_to(y, update.data(), count * width);
    }
    last(y, count, y);
    vocabulary(y, count, static_cast<float*>(out.data_ptr()) + begin * vocabulary.outputs);
  });
  return out;
}

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
      : self_norm(from, width, eps),
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

// What rows of text see of the frames (B, F, E).
struct Heard {
  float* data;
  int64_t row, frame;  // strides
  const int32_t* visible;
  int64_t frames, width;  // F, E

  int64_t count(int64_t b) const { return visible[b] < 0 ? 0 : visible[b] < frames ? visible[b] : frames; }
  bestow::Rows of(int64_t b) const { return {data + b * row, 0, 0, frame}; }
};

// Rows from `begin` on: their queries q (rows, H * D) ask the frames, each head in D_enc dimensions, asked (rows, H,
// E); the answers are (rows, H * D).
void ask(const AbsorbedAttention& cross, const Heard& heard, int64_t begin, int64_t rows, const float* q, float* asked,
         float* answers) {
  const int64_t heads = cross.key.heads, head = cross.key.head, frame = heard.width, width = heads * head;
  std::vector<float> means(rows * heads * frame);
  bestow::FewRows p{bestow::Scalar::kFloat, rows};
  p.input_scale = p.scale = nullptr;
  p.inputs = head, p.outputs = frame, p.bias = nullptr, p.input_row = width, p.out_row = heads * frame;
  for (int64_t h = 0; h < heads; ++h) {
    p.input = q + h * head, p.weight = cross.key.data + h * frame * head, p.out = asked + h * frame;
    multiply(p);
  }
  each_row(rows, [&](int64_t i) {
    const int64_t count = heard.count(begin + i), at = i * heads * frame;
    if (count > 0)
      attend({asked + at, 0, frame, frame}, heard.of(begin + i), heard.of(begin + i), heads, 1, frame, count,
             1 / std::sqrt(static_cast<double>(head)), {&means[at], 0, frame, frame});
  });
  p.inputs = frame, p.outputs = head, p.input_row = heads * frame, p.out_row = width;
  for (int64_t h = 0; h < heads; ++h) {
    p.input = &means[h * frame], p.bias = cross.bias + h * head;
    p.weight = cross.value + h * frame * head, p.out = answers + h * head;
    multiply(p);
  }
  for (int64_t i = 0; i < rows; ++i)  // who sees nothing stays at exactly 0, without the bias
    if (heard.count(begin + i) == 0) std::memset(answers + i * width, 0, width * sizeof(float));
}

// First the layer into the connector; per block norm and self-attention (or empty tensors), norm and cross-attention,
// norm and feed-forward; at the end a norm and the layer out of it. Returns what is added to the text, and the queries
// (X, B, H, E) over frames, which tell where it looked.
std::tuple<Tensor, Tensor> connector_token(Tensor text, std::vector<Tensor> weights, std::vector<Tensor> caches,
                                           Tensor frames, Tensor visible, Tensor rows, Tensor slots, int64_t blocks,
                                           int64_t heads, double eps) {
  STD_TORCH_CHECK(text.is_cpu() && text.dim() == 2 && text.scalar_type() == ScalarType::Float && heads > 0,
                  "connector_token: text");
  text = torch::stable::contiguous(text);
  const int64_t batch = text.size(0), frame = frames.size(-1);
  STD_TORCH_CHECK(frames.is_cpu() && frames.dim() == 3 && frames.size(0) == batch && frames.stride(2) == 1 &&
                      frames.scalar_type() == ScalarType::Float,
                  "connector_token: frames must be float32 (", batch, ", F, E)");
  STD_TORCH_CHECK(visible.is_cpu() && visible.scalar_type() == ScalarType::Int && visible.numel() == batch &&
                      visible.is_contiguous(),
                  "connector_token: visible must be int32 (", batch, ")");
  const Heard heard{static_cast<float*>(frames.data_ptr()),          frames.stride(0), frames.stride(1),
                    static_cast<const int32_t*>(visible.data_ptr()), frames.size(1),   frame};
  const Seats seats(rows, slots, batch);
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
  Tensor queries = torch::stable::new_empty(text, {blocks, batch, heads, frame});
  Tensor out = torch::stable::new_empty(text, {batch, outward.outputs});

  in_groups(batch, [&](int64_t begin, int64_t end) {
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
      float* asked = static_cast<float*>(queries.data_ptr()) + (block * batch + begin) * heads * frame;
      ask(layer.cross, heard, begin, count, q.data(), asked, attended.data());
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
  return {out, queries};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // x (B, D) and the caches, two of (R, N, H, D) per layer, float32; rows and slots (B) int64; turn (2, B, D)
  m.def(
      "llama_token(Tensor x, Tensor[] weights, Tensor(a!)[] caches, Tensor rows, Tensor slots, Tensor turn, float eps, "
      "float scale) -> Tensor");
  // text (B, D_llm), frames (B, F, E), visible (B) int32
  m.def(
      "connector_token(Tensor text, Tensor[] weights, Tensor(a!)[] caches, Tensor frames, Tensor visible, Tensor rows, "
      "Tensor slots, int blocks, int heads, float eps) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) {
  m.impl("llama_token", TORCH_BOX(&llama_token));
  m.impl("connector_token", TORCH_BOX(&connector_token));
}
