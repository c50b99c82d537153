// The few device instructions the kernels use, each behind a name that the host emulation implements too.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bestow/launch.h"

#ifdef BESTOW_EMULATE
#include "host_emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace bestow {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, not there before copies_wait; zeros when !valid (nothing is read then).
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0));
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;"); }
template <int Pending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

__device__ __forceinline__ void block_sync() { __syncthreads(); }
__device__ __forceinline__ void warp_sync() { __syncwarp(); }
__device__ __forceinline__ float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
__device__ __forceinline__ int shuffle_xor(int value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}

template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, bfloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class T>
__device__ __forceinline__ T narrow(float value) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return __float2bfloat16(value);
  else if constexpr (std::is_same_v<T, float16>)
    return __float2half(value);
  else
    return value;
}
template <class T>
__device__ __forceinline__ float widen(T value) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return __bfloat162float(value);
  else if constexpr (std::is_same_v<T, float16>)
    return __half2float(value);
  else
    return value;
}

}  // namespace bestow
#endif

namespace bestow {

// Two neighbours of one row in one register, the lower column in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  const T l = narrow<T>(low), h = narrow<T>(high);
  uint16_t low_bits, high_bits;
  memcpy(&low_bits, &l, 2);
  memcpy(&high_bits, &h, 2);
  return low_bits | static_cast<uint32_t>(high_bits) << 16;
}

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kNothing = -__builtin_huge_valf();  // the score of a key that is not seen

}  // namespace bestow
