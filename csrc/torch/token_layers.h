// What a token of each of a few rows meets on its way through the layers of a connector or of an LLM.
//
// With small models the arithmetic of a token takes less time than it takes to ask for it, layer by layer, from Python.
// The products and the attention are the kernels that the layers call one by one; what lies between them (norms,
// rotations, gates) is a few hundred numbers and needs no kernels of its own.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstring>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"
#include "layers.h"

namespace bestow {

struct Linear {
  const float* weight;  // (outputs, inputs) or panels (outputs / kPanel, inputs, kPanel); null: there is no such layer
  const float* bias;    // (outputs) or null
  int64_t inputs, outputs;
  bool in_panels;

  Linear(Weights& from, int64_t inputs_) : inputs(inputs_) {
    const Tensor& w = from.next();
    weight = w.numel() == 0 ? nullptr : floats(w);
    in_panels = w.dim() == 3 && w.size(2) == kPanel;
    outputs = weight == nullptr ? 0 : in_panels ? w.size(0) * kPanel : w.size(0);
    STD_TORCH_CHECK(weight == nullptr || ((w.dim() == 2 || in_panels) && w.size(1) == inputs),
                    "token step: a layer of ", w.dim() > 1 ? w.size(1) : 0, " inputs where ", inputs, " belong");
    bias = from.vector(outputs, true);
  }

  void operator()(const float* x, int64_t rows, float* out) const {
    if (in_panels)
      multiply(PanelLinear{rows, inputs, outputs, x, weight, bias, out});
    else
      multiply(FewRows{Scalar::kFloat, rows, inputs, outputs, x, nullptr, weight, nullptr, bias, out});
  }
};

// One query row over the first `visible` of some keys; everything dense in its last dimension. `weights`: where each
// head's go, if anybody asks, and if there are at most kFewRows heads for each of the keys'.
inline void attend(Rows q, Rows k, Rows v, int64_t heads, int64_t kv_heads, int64_t width, int64_t visible,
                   double scale, Rows out, Rows weights = {}) {
  const int32_t seen = static_cast<int32_t>(visible);
  Forward p{};
  p.scalar = Scalar::kFloat;
  p.batch = 1, p.heads = heads, p.kv_heads = kv_heads, p.positions = 1, p.frames = visible, p.width = width;
  p.scale = static_cast<float>(scale);
  p.q = q, p.k = k, p.v = v, p.out = out, p.weights = weights;
  p.visible = &seen, p.visible_batch = p.visible_row = 0;
  std::vector<float> lse(heads);
  p.lse = lse.data();
  const Kernels& isa = chosen();
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

// Rows that a thread takes through all layers by itself, where there are enough for all threads. Of fewer, threads
// share each layer and wait for each other after it, but none of them reads all weights: what it costs to read these,
// where they are more numbers than caches hold, decides how many rows are few.
constexpr int64_t kCached = int64_t{8} << 20, kRowsOfAThread = 4, kRowsForManyWeights = 12;

template <class F>
void in_groups(int64_t batch, const Weights& weights, const F& pass) {
  const int64_t least = weights.count() <= kCached ? kRowsOfAThread : kRowsForManyWeights;
  if (batch < least * static_cast<int64_t>(torch::stable::get_num_threads())) return pass(0, batch);
  torch::stable::parallel_for(0, batch, least, pass);
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
  Rows of(int64_t b) const { return {data_ + seats_->rows[b] * row_, 0, width_, heads_ * width_}; }

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

}  // namespace bestow
