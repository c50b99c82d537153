// What the launchers share: checks, the choice of the kernel's element and width, and the launch itself.
#pragma once
#include <atomic>

#include "bestow/device.cuh"

namespace bestow {

#ifndef BESTOW_EMULATE
// Bytes of shared memory that a block of the current device may have.
inline int shared_limit() {
  static std::atomic<int> known[64];
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= 64) return 0;
  if ((bytes = known[device]) > 0) return bytes;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  return known[device] = bytes;
}

template <auto Kernel>
int launch(int64_t blocks, int threads, int shared_bytes, void* stream, const BestowAttention& attention,
           int cluster = 1) {
  if (blocks <= 0) return BESTOW_OK;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 48 * 1024) {  // said once per device: a kernel's need is always the same
    static std::atomic<uint64_t> said{0};
    int device = 0;
    if (const cudaError_t status = cudaGetDevice(&device)) return status;
    const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
    if (!(said & bit)) {
      if (const auto status = cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes))
        return status;
      said |= bit;
    }
  }
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeClusterDimension;
  together.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &together;
  config.numAttrs = cluster > 1;
  return cudaLaunchKernelEx(&config, Kernel, attention);
}
#endif

inline bool aligned(const BestowTensor& tensor, int element) {
  if (tensor.data == nullptr) return true;
  const auto whole = [&](int64_t stride) { return stride * element % 16 == 0; };
  return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && whole(tensor.batch) && whole(tensor.head) &&
         whole(tensor.row);
}

inline int check(const BestowAttention& a, int dtype) {
  if (dtype < BESTOW_FLOAT32 || dtype > BESTOW_FLOAT16) return BESTOW_BAD_DTYPE;
  if (a.width < 8 || a.width > 256 || a.width % 8 != 0) return BESTOW_BAD_WIDTH;
  if (a.kv_heads < 1 || a.heads % a.kv_heads != 0) return BESTOW_BAD_HEADS;
  for (const BestowTensor* t : {&a.q, &a.out, &a.k, &a.v, &a.grad_out, &a.grad_q, &a.grad_k, &a.grad_v})
    if (!aligned(*t, dtype == BESTOW_FLOAT32 ? 4 : 2)) return BESTOW_BAD_ALIGNMENT;
  return BESTOW_OK;
}

// Calls launch_for.template operator()<Element, Width>() with the smallest compiled width that holds `width`.
template <class T, class F>
int with_width(int width, const F& launch_for) {
  if (width <= 64) return launch_for.template operator()<T, 64>();
  if (width <= 128) return launch_for.template operator()<T, 128>();
  return launch_for.template operator()<T, 256>();
}
template <class F>
int with_kernel(int dtype, int width, const F& launch_for) {
  if (dtype == BESTOW_FLOAT32) return with_width<float>(width, launch_for);
  if (dtype == BESTOW_BFLOAT16) return with_width<bfloat16>(width, launch_for);
  return with_width<float16>(width, launch_for);
}

inline int64_t tiles_of(int count, int size) { return (static_cast<int64_t>(count) + size - 1) / size; }

}  // namespace bestow
