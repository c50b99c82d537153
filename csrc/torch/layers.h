// Pieces of models of which the ops that run several layers in one call are made.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"

namespace bestow {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const float* floats(const Tensor& x) { return static_cast<const float*>(x.data_ptr()); }

// The numbers of a tensor that must have so many of them, dense and of this type.
template <class T>
T* numbers(const Tensor& x, ScalarType type, int64_t count, const char* what) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == type && x.is_contiguous() && x.numel() == count, what, " has ",
                  x.numel(), " numbers where ", count, " belong, or is of another type");
  return static_cast<T*>(x.data_ptr());
}

// Weights in the order in which Python lists them; where a model has none, an empty tensor stands.
class Weights {
 public:
  explicit Weights(const std::vector<Tensor>& all) : all_(all) {}

  const Tensor& next() {
    STD_TORCH_CHECK(at_ < all_.size(), "a step: ", all_.size(), " weights are too few");
    const Tensor& found = all_[at_++];
    STD_TORCH_CHECK(found.is_cpu() && found.scalar_type() == ScalarType::Float && found.is_contiguous(),
                    "a step: weights must be contiguous float32 on CPU");
    return found;
  }
  // (n), or null where it may be missing and is.
  const float* vector(int64_t n, bool may_miss = false) {
    const Tensor& found = next();
    if (may_miss && found.numel() == 0) return nullptr;
    STD_TORCH_CHECK(found.numel() == n, "a step: a vector of ", found.numel(), " where ", n, " belong");
    return floats(found);
  }
  bool done() const { return at_ == all_.size(); }
  int64_t count() const {  // of all numbers
    return std::accumulate(all_.begin(), all_.end(), int64_t{0},
                           [](int64_t n, const Tensor& x) { return n + x.numel(); });
  }

 private:
  const std::vector<Tensor>& all_;
  size_t at_ = 0;
};

struct Norm {
  const float *weight, *bias;  // a bias makes it a layer norm; without one it is the root mean square that is taken out
  int64_t width;
  float eps;

  Norm(Weights& from, int64_t width_, double eps_, bool may_miss = false)
      : weight(from.vector(width_, may_miss)),
        bias(from.vector(width_, true)),
        width(width_),
        eps(static_cast<float>(eps_)) {}

  void operator()(const float* x, int64_t rows, float* out) const {
    chosen().norm({width, x, weight, bias, eps, out}, 0, rows);
  }
};

inline void multiply(const PanelLinear& p) {
  const Kernels& isa = chosen();
  torch::stable::parallel_for(0, p.units(), 1 + outputs_per_thread(p.inputs, p.rows) / kPanel,
                              [&](int64_t begin, int64_t end) { isa.panel_linear(p, begin, end); });
}

// A layer whose weights lie in panels; `inputs` 0: as many as they have.
struct Panels {
  const float* weight;  // (N / 16, K, 16)
  const float* bias;    // (N) or null
  int64_t inputs, outputs;
  bool steady = false;  // see PanelLinear

  Panels(Weights& from, int64_t inputs_, int64_t outputs_ = 0) {
    const Tensor& w = from.next();
    STD_TORCH_CHECK(w.dim() == 3 && (inputs_ == 0 || w.size(1) == inputs_) && w.size(2) == kPanel, "a step: panels (",
                    w.size(0), ", ", w.size(1), ", ...) where ", inputs_, " inputs belong");
    weight = floats(w), inputs = w.size(1), outputs = w.size(0) * kPanel;
    STD_TORCH_CHECK(outputs_ == 0 || outputs == outputs_, "a step: ", outputs, " outputs, not ", outputs_);
    bias = from.vector(outputs, true);
  }

  // `count` of the outputs, a whole number of panels, from `first` on.
  Panels part(int64_t first, int64_t count) const {
    Panels found = *this;
    found.weight += first * inputs, found.outputs = count;
    if (bias != nullptr) found.bias += first;
    return found;
  }

  // Rows of x may be `row` apart.
  void operator()(const float* x, int64_t rows, float* out, int64_t row = 0) const {
    multiply(PanelLinear{rows, inputs, outputs, x, weight, bias, out, row, steady});
  }
};

inline void add_to(float* x, const float* more, int64_t n, float times = 1.0f) {
  for (int64_t i = 0; i < n; ++i) x[i] += times * more[i];
}

// Which of some jobs each of `threads` does: the dearest first, each to whoever has least to do so far.
inline std::vector<std::vector<int64_t>> shared_out(const std::vector<int64_t>& costs, int64_t threads) {
  std::vector<int64_t> order(costs.size()), loads(threads, 0);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return costs[a] > costs[b]; });
  std::vector<std::vector<int64_t>> shares(threads);
  for (int64_t job : order) {
    const int64_t least = std::min_element(loads.begin(), loads.end()) - loads.begin();
    shares[least].push_back(job), loads[least] += costs[job];
  }
  return shares;
}

// Jobs shared out among all threads; `work` does a thread's. Fewer jobs than threads come one after the other, so that
// threads can share what is within them.
template <class F>
void each_share(const std::vector<int64_t>& costs, const F& work) {
  const int64_t threads = torch::stable::get_num_threads(), count = costs.size();
  const auto shares = shared_out(costs, count < threads ? 1 : threads);
  torch::stable::parallel_for(0, shares.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) work(shares[share]);
  });
}

// What rows of a batch do each on their own; a few of them are worth a thread.
template <class F>
void each_row(int64_t batch, const F& work) {
  torch::stable::parallel_for(0, batch, 4, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) work(b);
  });
}

}  // namespace bestow
