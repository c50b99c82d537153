// pybind11 module of the emulated kernels, for pytest.
#include <pybind11/pybind11.h>

#include "bestow/launch.h"

namespace bestow::emulation {
void limit_shared(int bytes);
}

namespace py = pybind11;

template <class Member>
static auto address(Member BestowAttention::* member) {
  return [member](BestowAttention& a, uintptr_t value) { a.*member = reinterpret_cast<Member>(value); };
}

PYBIND11_MODULE(bestow_emulated, m) {
  py::class_<BestowTensor>(m, "Tensor").def(py::init([](uintptr_t data, int64_t batch, int64_t head, int64_t row) {
    return BestowTensor{reinterpret_cast<void*>(data), batch, head, row};
  }));
  py::class_<BestowAttention>(m, "Attention")
      .def(py::init([] { return BestowAttention{}; }))
      .def_readwrite("q", &BestowAttention::q)
      .def_readwrite("k", &BestowAttention::k)
      .def_readwrite("v", &BestowAttention::v)
      .def_readwrite("out", &BestowAttention::out)
      .def_readwrite("grad_out", &BestowAttention::grad_out)
      .def_readwrite("grad_q", &BestowAttention::grad_q)
      .def_readwrite("grad_k", &BestowAttention::grad_k)
      .def_readwrite("grad_v", &BestowAttention::grad_v)
      .def_readwrite("weights", &BestowAttention::weights)
      .def_readwrite("batch", &BestowAttention::batch)
      .def_readwrite("heads", &BestowAttention::heads)
      .def_readwrite("kv_heads", &BestowAttention::kv_heads)
      .def_readwrite("queries", &BestowAttention::queries)
      .def_readwrite("keys", &BestowAttention::keys)
      .def_readwrite("width", &BestowAttention::width)
      .def_readwrite("splits", &BestowAttention::splits)
      .def_readwrite("scale", &BestowAttention::scale)
      .def("set_visible", address(&BestowAttention::visible))
      .def("set_lse", address(&BestowAttention::lse))
      .def("set_delta", address(&BestowAttention::delta))
      .def("set_partial", address(&BestowAttention::partial));
  m.def("forward", [](const BestowAttention& a, int dtype) { return bestow_cuda_forward(&a, dtype, nullptr); });
  m.def("backward", [](const BestowAttention& a, int dtype) { return bestow_cuda_backward(&a, dtype, nullptr); });
  m.def("decode", [](const BestowAttention& a, int dtype) { return bestow_cuda_decode(&a, dtype, nullptr); });
  m.def("weights", [](const BestowAttention& a, int dtype) { return bestow_cuda_weights(&a, dtype, nullptr); });
  m.def("limit_shared", &bestow::emulation::limit_shared);
  m.def("decode_splits", [](const BestowAttention& a, int processors, int clusters) {
    return bestow_decode_splits(&a, processors, clusters);
  });
  m.def("decode_scratch", [](const BestowAttention& a) { return bestow_decode_scratch(&a); });
}
