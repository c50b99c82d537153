// The CUDA side of the schemas in ops.cpp, on torch's stable ABI. Only the launchers' C face is needed, so that this
// file compiles without CUDA headers and the module loads where torch has no CUDA.

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <mutex>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "bestow/launch.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

// Decoding splits the keys over blocks; from this many rows on the forward kernel has enough blocks by itself.
constexpr int64_t kDecodeRows = 8;

int dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return BESTOW_FLOAT32;
    case ScalarType::BFloat16:
      return BESTOW_BFLOAT16;
    case ScalarType::Half:
      return BESTOW_FLOAT16;
    default:
      STD_TORCH_CHECK(false, "staircase attention on CUDA takes float32, bfloat16 and float16");
  }
}

// The kernels read 16 bytes at a time: what is not laid out for that is copied.
Tensor readable(const Tensor& x) {
  const int64_t step = 16 / static_cast<int64_t>(x.element_size());
  bool fits = x.numel() == 0 || (x.stride(3) == 1 && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0);
  for (int64_t d = 0; d < 3; ++d) fits = fits && (x.size(d) == 1 || x.stride(d) % step == 0);
  if (fits) return x;
  // contiguous() returns a dense view as it is, also one that begins in the middle of 16 bytes.
  return torch::stable::clone(torch::stable::contiguous(x));
}

BestowTensor described(const Tensor& x) {
  // A dimension of size 1 may have any stride, but it is never taken: 0 passes the launchers' check of alignment.
  const auto stride = [&](int64_t d) { return x.size(d) == 1 ? 0 : x.stride(d); };
  return {x.data_ptr(), stride(0), stride(1), stride(2)};
}

int32_t size_of(const Tensor& x, int64_t d) {
  STD_TORCH_CHECK(x.size(d) <= 0x7fffffff, "staircase attention: dimension ", d, " has ", x.size(d), " elements");
  return static_cast<int32_t>(x.size(d));
}

// torch's function that tells a device's current stream, or null. It lives in a library that a torch without CUDA does
// not have, so nothing here is linked to it; and Python loads that library for torch alone, so that the loader would
// not resolve a weak reference either.
using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);
CurrentStream stream_getter() {
  static const auto found = []() -> CurrentStream {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  return found;
}

bool has_cuda_streams() { return stream_getter() != nullptr; }

void* current_stream(const Tensor& x) {
  void* stream = nullptr;
  STD_TORCH_CHECK(has_cuda_streams(), "staircase attention: this torch has no CUDA streams");
  STD_TORCH_CHECK(stream_getter()(x.get_device(), &stream) == AOTI_TORCH_SUCCESS, "no current CUDA stream");
  return stream;
}

void check(int status, const char* what, const Tensor& q) {
  STD_TORCH_CHECK(status == BESTOW_OK, what, " failed with status ", status, " for width ", q.size(3),
                  " (width: a multiple of 8, at most 256; positive: cudaError_t)");
}

struct Gpu {
  int processors, clusters;
};
// Asked once per device: a step of decoding is too short for it.
Gpu gpu_of(const Tensor& x) {
  static std::mutex busy;
  static std::unordered_map<int, Gpu> known;
  const std::lock_guard<std::mutex> hold(busy);
  const int device = x.get_device();
  const auto [found, fresh] = known.try_emplace(device);
  if (fresh) found->second = {bestow_cuda_processors(device), bestow_cuda_clusters(device)};
  return found->second;
}

// What must hold before a pointer is followed; errors that users meet are raised in Python with fuller words.
BestowAttention problem(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& visible, double scale) {
  for (const Tensor* x : {&q, &k, &v}) {
    STD_TORCH_CHECK(x->dim() == 4, "staircase attention wants 4 dimensions, got ", x->dim());
    STD_TORCH_CHECK(x->is_cuda() && x->get_device() == q.get_device() && x->scalar_type() == q.scalar_type(),
                    "staircase attention: devices or dtypes differ");
    STD_TORCH_CHECK(x->size(0) == q.size(0) && x->size(3) == q.size(3), "staircase attention: batch or width differ");
  }
  STD_TORCH_CHECK(k.size(1) == v.size(1) && k.size(2) == v.size(2), "staircase attention: k and v differ");
  STD_TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, "staircase attention: ", q.size(1), " heads over ",
                  k.size(1));
  STD_TORCH_CHECK(visible.is_cuda() && visible.get_device() == q.get_device() &&
                      visible.scalar_type() == ScalarType::Int && visible.dim() == 2 && visible.size(0) == q.size(0) &&
                      visible.size(1) == q.size(2) && visible.is_contiguous(),
                  "staircase attention: visible must be int32 (B, U), dense, on the same device");
  BestowAttention a{};
  a.q = described(q), a.k = described(k), a.v = described(v);
  a.visible = static_cast<const int32_t*>(visible.data_ptr());
  a.batch = size_of(q, 0), a.heads = size_of(q, 1), a.queries = size_of(q, 2), a.width = size_of(q, 3);
  a.kv_heads = size_of(k, 1), a.keys = size_of(k, 2);
  a.scale = static_cast<float>(scale);
  return a;
}

std::tuple<Tensor, Tensor> staircase_forward(Tensor q, Tensor k, Tensor v, Tensor visible, double scale) {
  const DeviceGuard guard(q.get_device());
  q = readable(q), k = readable(k), v = readable(v), visible = torch::stable::contiguous(visible);
  BestowAttention a = problem(q, k, v, visible, scale);
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), q.size(3)});
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)}, ScalarType::Float);
  if (lse.numel() == 0) return {out, lse};
  a.out = described(out);
  a.lse = static_cast<float*>(lse.data_ptr());
  if (q.size(2) > kDecodeRows) {
    check(bestow_cuda_forward(&a, dtype_of(q), current_stream(q)), "staircase attention", q);
    return {out, lse};
  }
  const Gpu gpu = gpu_of(q);
  a.splits = bestow_decode_splits(&a, gpu.processors, gpu.clusters);
  std::optional<Tensor> partial;
  if (!gpu.clusters) {
    partial = torch::stable::new_empty(q, {bestow_decode_scratch(&a)}, ScalarType::Float);
    a.partial = static_cast<float*>(partial->data_ptr());
  }
  check(bestow_cuda_decode(&a, dtype_of(q), current_stream(q)), "staircase decoding", q);
  return {out, lse};
}

Tensor staircase_weights(Tensor q, Tensor k, Tensor visible, double scale) {
  const DeviceGuard guard(q.get_device());
  q = readable(q), k = readable(k), visible = torch::stable::contiguous(visible);
  BestowAttention a = problem(q, k, k, visible, scale);
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), k.size(2)});
  if (out.numel() == 0) return out;
  a.weights = described(out);
  check(bestow_cuda_weights(&a, dtype_of(q), current_stream(q)), "staircase weights", q);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> staircase_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor visible,
                                                      Tensor out, Tensor lse, double scale) {
  const DeviceGuard guard(q.get_device());
  q = readable(q), k = readable(k), v = readable(v), visible = torch::stable::contiguous(visible);
  BestowAttention a = problem(q, k, v, visible, scale);
  for (const Tensor* x : {&grad, &out}) {
    STD_TORCH_CHECK(x->is_cuda() && x->scalar_type() == q.scalar_type() && x->dim() == 4,
                    "staircase_backward: grad, out");
    for (int64_t d = 0; d < 4; ++d)
      STD_TORCH_CHECK(x->size(d) == q.size(d), "staircase_backward: shape of grad or out");
  }
  STD_TORCH_CHECK(lse.is_cuda() && lse.scalar_type() == ScalarType::Float && lse.dim() == 3, "staircase_backward: lse");
  for (int64_t d = 0; d < 3; ++d) STD_TORCH_CHECK(lse.size(d) == q.size(d), "staircase_backward: shape of lse");
  grad = readable(grad), out = readable(out), lse = torch::stable::contiguous(lse);
  Tensor dq = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), q.size(3)});
  Tensor dk = torch::stable::new_empty(k, {k.size(0), k.size(1), k.size(2), k.size(3)});
  Tensor dv = torch::stable::new_empty(v, {v.size(0), v.size(1), v.size(2), v.size(3)});
  Tensor delta = torch::stable::new_empty(lse, {lse.size(0), lse.size(1), lse.size(2)});
  a.out = described(out), a.grad_out = described(grad);
  a.grad_q = described(dq), a.grad_k = described(dk), a.grad_v = described(dv);
  a.lse = static_cast<float*>(lse.data_ptr());
  a.delta = static_cast<float*>(delta.data_ptr());
  check(bestow_cuda_backward(&a, dtype_of(q), current_stream(q)), "staircase attention's gradient", q);
  return {dq, dk, dv};
}

}  // namespace

// Asked by tests: it can be known without a GPU whether kernels will find the stream they run on.
STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) { m.def("has_cuda_streams() -> bool"); }
STABLE_TORCH_LIBRARY_IMPL(bestow, CompositeExplicitAutograd, m) {
  m.impl("has_cuda_streams", TORCH_BOX(&has_cuda_streams));
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CUDA, m) {
  m.impl("staircase_forward", TORCH_BOX(&staircase_forward));
  m.impl("staircase_backward", TORCH_BOX(&staircase_backward));
  m.impl("staircase_weights", TORCH_BOX(&staircase_weights));
}
