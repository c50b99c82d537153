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
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

using SharedAddress = uint32_t;
__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// What the kernels of a cluster (blocks that run together and see each other's shared memory) are made of.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define BESTOW_CLUSTERS
// Each thread says that it has begun, and knows after the wait that all others have.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// What a block gets from others is counted in a mailbox. One thread says how many bytes will come, before
// cluster_arrive.
using Mailbox = uint64_t;
__device__ __forceinline__ void expect_mail(Mailbox* box, int bytes) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\n"
      "fence.mbarrier_init.release.cluster;\n"
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(box)),
      "r"(bytes)
      : "memory");
}
// To where the block of that rank has what this one has at `to` and `box`.
__device__ __forceinline__ void send(float* to, float value, Mailbox* box, int rank) {
  uint32_t there, counted;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(shared_address(box)), "r"(rank));
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(there),
               "r"(__float_as_uint(value)), "r"(counted)
               : "memory");
}
__device__ __forceinline__ void await_mail(Mailbox* box) {
  uint32_t here = 0;
  while (!here)
    asm volatile(
        "{\n.reg .pred here;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 here, [%1], 0;\n"
        "selp.u32 %0, 1, 0, here;\n}"
        : "=r"(here)
        : "r"(shared_address(box))
        : "memory");
}

// A kernel that is launched so (launch.cuh) may begin while the one before it in the stream still runs, once all blocks
// of that one have ended or said that it may; it waits before it reads or writes anything.
__device__ __forceinline__ void next_kernel_may_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void previous_kernel_is_done() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#endif

// 16 bytes from global to shared memory, not there before copies_wait; zeros when !valid (nothing is read then).
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0));
}
// The same here and now.
__device__ __forceinline__ void copy_chunk(void* to, const void* from) {
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}
__device__ __forceinline__ void clear_chunk(void* to) { *static_cast<uint4*>(to) = uint4{}; }
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;"); }
template <int Pending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// The block's and the thread's number, asked for anew at each call: what is made of them need not be kept in registers
// meanwhile.
__device__ __forceinline__ int block_number() {
  int number;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
  return number;
}
__device__ __forceinline__ int thread_number() {
  int number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
}

__device__ __forceinline__ void block_sync() { __syncthreads(); }
// The two warps that are the number-th pair of the block wait for each other.
__device__ __forceinline__ void pair_sync(int number) { asm volatile("bar.sync %0, 64;" ::"r"(number + 1) : "memory"); }
__device__ __forceinline__ void warp_sync() { __syncwarp(); }
__device__ __forceinline__ float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
__device__ __forceinline__ float shuffle(float value, int lane) { return __shfl_sync(~0u, value, lane); }
__device__ __forceinline__ unsigned which_lanes(bool value) { return __ballot_sync(~0u, value); }
__device__ __forceinline__ int lowest_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }
__device__ __forceinline__ bool any_lane(bool value) { return __any_sync(~0u, value); }
__device__ __forceinline__ int warp_max(int value) { return __reduce_max_sync(~0u, value); }

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&m)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row)
               : "memory");
}

template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, bfloat16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two to the power of x, to about two units in the last place; results below the normal numbers are zero.
__device__ __forceinline__ float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
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

// Two neighbours of one row in one register, the lower column in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, bfloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

}  // namespace bestow
#endif

namespace bestow {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kNothing = -__builtin_huge_valf();  // the score of a key that is not seen

}  // namespace bestow
