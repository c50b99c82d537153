// One more token of each of a few rows, through all layers of an LLM of Llama's kind in a single call.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "bestow/cpu.h"
#include "token_layers.h"

namespace {

using namespace bestow;  // token_layers.h

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
        of_query(from, head, eps, true),
        of_key(from, head, eps, true),
        self(from, width),
        gated(from, width),
        raised(from, width),
        down(from, gated.outputs),
        heads(self.query.outputs / head),
        kv_heads(self.key.outputs / head) {
    STD_TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0 && self.query.outputs == heads * head &&
                        self.key.outputs == kv_heads * head && self.value.outputs == self.key.outputs &&
                        self.out.outputs == width,
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
  STD_TORCH_CHECK(from.done(), "llama_token: weights are left over");
  Tensor out = torch::stable::new_empty(x, {batch, vocabulary.outputs});
  const float *cosines = floats(turn), *sines = cosines + batch * head;

  in_groups(batch, from, [&](int64_t begin, int64_t end) {
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

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // x (B, D) and the caches, two of (R, N, H, D) per layer, float32; rows and slots (B) int64; turn (2, B, D) -> (B, V)
  m.def(
      "llama_token(Tensor x, Tensor[] weights, Tensor(a!)[] caches, Tensor rows, Tensor slots, Tensor turn, float eps, "
      "float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) { m.impl("llama_token", TORCH_BOX(&llama_token)); }
