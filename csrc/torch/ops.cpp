// Schemas of the ops, and their CPU side, on torch's stable ABI (one binary for torch 2.11 and newer).
// CUDA registers its side of the same schemas in ops_cuda.cpp; fake, autograd and autocast rules are in Python.

#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <tuple>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"

namespace {

using bestow::chosen;
using bestow::workspace;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bestow::Scalar scalar_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return bestow::Scalar::kFloat;
    case ScalarType::BFloat16:
      return bestow::Scalar::kBFloat16;
    case ScalarType::Half:
      return bestow::Scalar::kHalf;
    default:
      STD_TORCH_CHECK(false, "staircase attention on CPU takes float32, bfloat16 and float16");
  }
}

Tensor dense_rows(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "staircase attention wants 4 dimensions, got ", x.dim());
  return x.size(3) > 1 && x.stride(3) != 1 ? torch::stable::contiguous(x) : x;
}

bestow::Rows rows(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

// What must hold before a pointer is followed; errors that users meet are raised in Python with fuller words.
bestow::Staircase problem(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& visible, double scale) {
  for (const Tensor* x : {&q, &k, &v}) {
    STD_TORCH_CHECK(x->is_cpu() && x->scalar_type() == q.scalar_type(),
                    "staircase attention: devices or dtypes differ");
    STD_TORCH_CHECK(x->size(0) == q.size(0) && x->size(3) == q.size(3), "staircase attention: batch or width differ");
  }
  STD_TORCH_CHECK(k.size(1) == v.size(1) && k.size(2) == v.size(2), "staircase attention: k and v differ");
  STD_TORCH_CHECK(k.size(1) > 0 ? q.size(1) % k.size(1) == 0 : q.size(1) == 0, "staircase attention: ", q.size(1),
                  " heads over ", k.size(1));
  STD_TORCH_CHECK(visible.is_cpu() && visible.scalar_type() == ScalarType::Int && visible.dim() == 2 &&
                      visible.size(0) == q.size(0) && visible.size(1) == q.size(2),
                  "staircase attention: visible must be int32 (B, U) on the same device");
  bestow::Staircase p;
  p.scalar = scalar_of(q);
  p.batch = q.size(0), p.heads = q.size(1), p.kv_heads = k.size(1);
  p.positions = q.size(2), p.frames = k.size(2), p.width = q.size(3);
  p.scale = static_cast<float>(scale);
  p.q = rows(q), p.k = rows(k), p.v = rows(v);
  p.visible = static_cast<const int32_t*>(visible.data_ptr());
  p.visible_batch = visible.stride(0), p.visible_row = visible.stride(1);
  return p;
}

constexpr int64_t kMostInputs = 1 << 20;

std::tuple<Tensor, Tensor> staircase_forward(Tensor q, Tensor k, Tensor v, Tensor visible, double scale) {
  q = dense_rows(q), k = dense_rows(k), v = dense_rows(v);
  bestow::Forward p{problem(q, k, v, visible, scale)};
  Tensor out = torch::stable::new_empty(q, {p.batch, p.heads, p.positions, p.width});
  Tensor lse = torch::stable::new_empty(q, {p.batch, p.heads, p.positions}, ScalarType::Float);
  if (lse.numel() == 0) return {out, lse};
  p.out = rows(out);
  p.lse = static_cast<float*>(lse.data_ptr());
  const int64_t threads = torch::stable::get_num_threads(), pairs = p.batch * p.kv_heads;
  // Too few key heads for the threads: they share one, each with its own query rows.
  if (pairs < threads) p.splits = std::min((threads + pairs - 1) / pairs, (p.positions + 3) / 4);
  const bestow::Kernels& isa = chosen();
  const size_t bytes = isa.forward_bytes(p);
  bestow::in_pieces(p.units(), 1, 1, [&](int64_t begin, int64_t end) { isa.forward(p, begin, end, workspace(bytes)); });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> staircase_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor visible,
                                                      Tensor out, Tensor lse, double scale) {
  q = dense_rows(q), k = dense_rows(k), v = dense_rows(v);
  bestow::Backward p{problem(q, k, v, visible, scale)};
  STD_TORCH_CHECK(grad.is_cpu() && grad.scalar_type() == q.scalar_type() && grad.dim() == 4,
                  "staircase_backward: grad");
  STD_TORCH_CHECK(lse.is_cpu() && lse.scalar_type() == ScalarType::Float && lse.dim() == 3, "staircase_backward: lse");
  for (int64_t d = 0; d < 4; ++d) STD_TORCH_CHECK(grad.size(d) == q.size(d), "staircase_backward: shape of grad");
  for (int64_t d = 0; d < 3; ++d) STD_TORCH_CHECK(lse.size(d) == q.size(d), "staircase_backward: shape of lse");
  grad = dense_rows(grad), lse = torch::stable::contiguous(lse);
  Tensor dq = torch::stable::new_empty(q, {p.batch, p.heads, p.positions, p.width});
  Tensor dk = torch::stable::new_empty(k, {p.batch, p.kv_heads, p.frames, p.width});
  Tensor dv = torch::stable::new_empty(v, {p.batch, p.kv_heads, p.frames, p.width});
  p.grad = rows(grad), p.dq = rows(dq), p.dk = rows(dk), p.dv = rows(dv);
  p.lse = static_cast<const float*>(lse.data_ptr());
  const bestow::Kernels& isa = chosen();
  const size_t bytes = isa.backward_bytes(p);
  bestow::in_pieces(p.units(), 1, 1,
                    [&](int64_t begin, int64_t end) { isa.backward(p, begin, end, workspace(bytes)); });
  return {dq, dk, dv};
}

Tensor staircase_weights(Tensor q, Tensor k, Tensor visible, double scale) {
  q = dense_rows(q), k = dense_rows(k);
  bestow::Softmax p{problem(q, k, k, visible, scale)};
  Tensor out = torch::stable::new_empty(q, {p.batch, p.heads, p.positions, p.frames});
  if (out.numel() == 0) return out;
  STD_TORCH_CHECK(p.heads / p.kv_heads * p.positions <= bestow::kFewRows, "staircase_weights: more than ",
                  bestow::kFewRows, " rows of a key head");
  p.out = rows(out);
  const bestow::Kernels& isa = chosen();
  const size_t bytes = isa.softmax_bytes(p);
  // Less than 256 KB of keys are not worth a thread.
  const int64_t grain = 1 + (1 << 16) / (p.frames * p.width + 1);
  torch::stable::parallel_for(0, p.units(), grain,
                              [&](int64_t begin, int64_t end) { isa.softmax(p, begin, end, workspace(bytes)); });
  return out;
}

Tensor panel_linear(Tensor x, Tensor panels, std::optional<Tensor> bias) {
  STD_TORCH_CHECK(x.dim() > 0 && panels.dim() == 3 && panels.size(2) == bestow::kPanel && panels.is_contiguous() &&
                      panels.size(1) == x.size(-1),
                  "panel_linear wants x (..., K) and dense panels (N / 16, K, 16)");
  const int64_t outputs = panels.size(0) * bestow::kPanel;
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == outputs && bias->is_contiguous()),
                  "panel_linear wants a bias of ", outputs);
  for (const Tensor* each : {&x, &panels, bias ? &*bias : &x}) {
    STD_TORCH_CHECK(each->is_cpu() && each->scalar_type() == ScalarType::Float, "panel_linear takes float32 on CPU");
  }
  x = torch::stable::contiguous(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = outputs;
  Tensor out = torch::stable::new_empty(x, shape);
  if (out.numel() == 0) return out;
  bestow::PanelLinear p{out.numel() / outputs, x.size(-1), outputs};
  p.x = static_cast<const float*>(x.data_ptr()), p.panels = static_cast<const float*>(panels.data_ptr());
  p.bias = bias ? static_cast<const float*>(bias->data_ptr()) : nullptr;
  p.out = static_cast<float*>(out.data_ptr());
  // Less than 64 KB of weights is not worth a thread.
  const int64_t grain = 1 + (1 << 14) / (p.inputs * bestow::kPanel + 1);
  const bestow::Kernels& isa = chosen();
  torch::stable::parallel_for(0, p.units(), grain,
                              [&](int64_t begin, int64_t end) { isa.panel_linear(p, begin, end); });
  return out;
}

Tensor few_rows_linear(Tensor x, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> bias) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && x.scalar_type() == ScalarType::Float, "few_rows_linear: x");
  const ScalarType type = weight.scalar_type();
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 2 && weight.size(1) == x.size(1) && weight.is_contiguous() &&
                      (scale ? type == ScalarType::Char : type == ScalarType::BFloat16 || type == ScalarType::Float),
                  "few_rows_linear: weight");
  for (const std::optional<Tensor>* vector : {&scale, &bias}) {
    STD_TORCH_CHECK(!*vector || ((*vector)->is_cpu() && (*vector)->dim() == 1 && (*vector)->is_contiguous() &&
                                 (*vector)->size(0) == weight.size(0) && (*vector)->scalar_type() == ScalarType::Float),
                    "few_rows_linear: scale or bias");
  }
  x = torch::stable::contiguous(x);
  const bestow::Scalar scalar = type == ScalarType::Float ? bestow::Scalar::kFloat : bestow::Scalar::kBFloat16;
  bestow::FewRows p{scalar, x.size(0), x.size(1), weight.size(0)};
  STD_TORCH_CHECK(p.inputs <= kMostInputs, "few_rows_linear: ", p.inputs, " inputs");
  Tensor out = torch::stable::new_empty(x, {p.rows, p.outputs});
  const auto floats = [](const std::optional<Tensor>& y) {
    return y ? static_cast<const float*>(y->data_ptr()) : nullptr;
  };
  p.weight = weight.data_ptr(), p.scale = floats(scale), p.bias = floats(bias);
  p.out = static_cast<float*>(out.data_ptr());
  const bestow::Kernels& isa = chosen();
  p.input = x.data_ptr();
  std::vector<int16_t> rounded(scale ? p.rows * p.inputs : 0);
  std::vector<float> steps(scale ? p.rows : 0);
  if (scale) {
    isa.round_rows(static_cast<const float*>(p.input), p.rows, p.inputs, rounded.data(), steps.data());
    p.input = rounded.data(), p.input_scale = steps.data();
  }
  bestow::multiply(p);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(bestow, m) {
  // lse (B, H, U) float32 is what the backward pass needs; it carries no gradient.
  m.def("staircase_forward(Tensor q, Tensor k, Tensor v, Tensor visible, float scale) -> (Tensor out, Tensor lse)");
  m.def(
      "staircase_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor visible, Tensor out, Tensor lse, "
      "float scale) -> (Tensor dq, Tensor dk, Tensor dv)");
  // The weights (B, H, U, F) of at most 8 query rows for each key head; without gradient.
  m.def("staircase_weights(Tensor q, Tensor k, Tensor visible, float scale) -> Tensor");
  // x (..., K), panels (N / 16, K, 16), bias (N), all float32 -> (..., N)
  m.def("panel_linear(Tensor x, Tensor panels, Tensor? bias) -> Tensor");
  // x (M, K) float32; weight (N, K) float32 or bfloat16, or int8 with a scale per row; scale and bias (N) float32
  // -> (M, N) float32.
  m.def("few_rows_linear(Tensor x, Tensor weight, Tensor? scale, Tensor? bias) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) {
  m.impl("staircase_forward", TORCH_BOX(&staircase_forward));
  m.impl("staircase_backward", TORCH_BOX(&staircase_backward));
  m.impl("staircase_weights", TORCH_BOX(&staircase_weights));
  m.impl("panel_linear", TORCH_BOX(&panel_linear));
  m.impl("few_rows_linear", TORCH_BOX(&few_rows_linear));
}

// Python imports the module for the registrations above and, by cpu_isa(), to learn which kernels run.
static PyObject* cpu_isa(PyObject*, PyObject*) {
  const bestow::Kernels* found = bestow::kernels();
  if (found != nullptr) return PyUnicode_FromString(found->name);
  PyErr_SetString(PyExc_RuntimeError, bestow::no_kernels().c_str());
  return nullptr;
}

static PyMethodDef methods[] = {{"cpu_isa", cpu_isa, METH_NOARGS, "Name of the instruction set whose kernels run."},
                                {nullptr, nullptr, 0, nullptr}};

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
