// The plain C face of the CUDA kernels: pointers, strides and a stream, no torch.
//
// Every launcher only enqueues work; none allocates, synchronises or reads device memory on the host, so that all may
// be captured in a CUDA graph. The host emulation (csrc/tests) gives the same functions on the CPU.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum BestowDtype { BESTOW_FLOAT32 = 0, BESTOW_BFLOAT16 = 1, BESTOW_FLOAT16 = 2 };

enum BestowStatus {
  BESTOW_OK = 0,
  BESTOW_BAD_WIDTH = -1,      // D must be a multiple of 8, at most 256
  BESTOW_BAD_HEADS = -2,      // H must be a multiple of H_kv
  BESTOW_BAD_ALIGNMENT = -3,  // rows must begin at multiples of 16 bytes
  BESTOW_BAD_ROWS = -4,       // decoding takes 1 to 8 query rows, in 1, 2, 4 or 8 splits if these are clusters
  BESTOW_BAD_DTYPE = -5,
  // Anything positive is a cudaError_t.
};

// A tensor (B, H, N, D) whose last dimension is dense; strides in elements.
struct BestowTensor {
  void* data;
  int64_t batch, head, row;
};

// What the kernels are told. Members that an operation does not use stay zero.
struct BestowAttention {
  BestowTensor q, out;            // (B, H, U, D)
  BestowTensor k, v;              // (B, H_kv, F, D)
  BestowTensor grad_out, grad_q;  // (B, H, U, D)
  BestowTensor grad_k, grad_v;    // (B, H_kv, F, D)
  BestowTensor weights;           // (B, H, U, F), wherever its rows begin
  const int32_t* visible;         // (B, U) dense
  float* lse;                     // (B, H, U) dense: log of the softmax denominator; -inf where nothing is seen
  float* delta;                   // (B, H, U) dense, scratch of the backward pass
  float* partial;                 // scratch of decoding, bestow_decode_scratch() floats; null: splits are clusters
  int32_t batch, heads, kv_heads, queries, keys, width, splits;
  float scale;
};

int bestow_cuda_forward(const BestowAttention* attention, int dtype, void* stream);

// Deterministic: one pass for few rows, else two (dQ by rows, dK and dV by keys); reads out, lse and grad_out.
int bestow_cuda_backward(const BestowAttention* attention, int dtype, void* stream);

// 1 to 8 query rows per stream over `splits` parts of the keys, then their merge: by a second kernel, from scratch
// memory, or in the clusters that the splits are (splits 1, 2, 4 or 8).
int bestow_cuda_decode(const BestowAttention* attention, int dtype, void* stream);

// Reads q and k, writes the softmax of each row; for few rows, any number will do.
int bestow_cuda_weights(const BestowAttention* attention, int dtype, void* stream);

// How many parts keep `processors` multiprocessors busy; as many as a cluster may have if they are to be one.
int bestow_decode_splits(const BestowAttention* attention, int processors, int clusters);

// Whether the device and the machine code for it have clusters.
int bestow_cuda_clusters(int device);

// Multiprocessors of a device; 0 where it cannot be told.
int bestow_cuda_processors(int device);

// Floats of scratch memory that decoding needs for these sizes and splits.
int64_t bestow_decode_scratch(const BestowAttention* attention);

#ifdef __cplusplus
}
#endif
