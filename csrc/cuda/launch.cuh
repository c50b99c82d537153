// What the launchers share: checks, the choice of the kernel's element and width, and the launch itself.
#pragma once
#include <atomic>

#include "bestow/device.cuh"
#include "bestow/grid.h"

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

// A kernel of clusters (cluster > 0, blocks of each) may also begin before its predecessor in the stream has ended, and
// waits for it itself.
template <auto Kernel>
int launch(Grid grid, int threads, int shared_bytes, void* stream, const BestowAttention& attention, int cluster = 0) {
  if (grid.blocks() <= 0) return BESTOW_OK;
  if (grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 48 * 1024) {  // said once per device: a kernel may have as much as there is
    static std::atomic<uint64_t> said{0};
    int device = 0;
    if (const cudaError_t status = cudaGetDevice(&device)) return status;
    const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
    if (!(said & bit)) {
      if (const auto status = cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_limit()))
        return status;
      said |= bit;
    }
  }
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = cluster > 0 ? 2 : 0;
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
