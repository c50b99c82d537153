// The kernels of one instruction set as a table. Compiled once per instruction set (BESTOW_ISA).

#include "bestow/cpu.h"

namespace bestow::BESTOW_ISA {

// staircase_forward.cpp, staircase_backward.cpp
size_t forward_bytes(const Forward& p);
void forward(const Forward& p, int64_t begin, int64_t end, void* workspace);
size_t backward_bytes(const Backward& p);
void backward(const Backward& p, int64_t begin, int64_t end, void* workspace);

// few_queries.cpp
size_t softmax_bytes(const Softmax& p);
void softmax(const Softmax& p, int64_t begin, int64_t end, void* workspace);

// panel_linear.cpp
void panel_linear(const PanelLinear& p, int64_t begin, int64_t end);

// few_rows.cpp
void round_rows(const float* x, int64_t rows, int64_t inputs, int16_t* out, float* steps);
size_t few_rows_bytes(const FewRows& p);
void few_rows(const FewRows& p, int64_t begin, int64_t end, void* workspace);

// chunk.cpp
void norm(const NormRows& p, int64_t begin, int64_t end);
void gate(const float* x, const float* by, int64_t n, float* out);
void gelu(const float* x, int64_t n, float* out);
void chunk_attention(const ChunkAttention& p, int64_t begin, int64_t end, float* scratch);

// taps.cpp
void convolve(const Taps& p, int64_t begin, int64_t end);
void tap_gradients(const TapGradients& p, int64_t begin, int64_t end);

// log_mel.cpp, running_mvn.cpp
void log_mel(const LogMel& p, const float* samples, int64_t frames, float* out, float* scratch);
void running_mvn(const RunningMoments& p, const float* x, int64_t frames, double* weight, double* total, double* square,
                 float* out);

#define BESTOW_TEXT(x) #x
#define BESTOW_NAME(x) BESTOW_TEXT(x)

extern const Kernels kKernels;
const Kernels kKernels = {BESTOW_NAME(BESTOW_ISA),
                          forward_bytes,
                          forward,
                          backward_bytes,
                          backward,
                          softmax_bytes,
                          softmax,
                          panel_linear,
                          round_rows,
                          few_rows_bytes,
                          few_rows,
                          norm,
                          gate,
                          gelu,
                          convolve,
                          tap_gradients,
                          chunk_attention,
                          log_mel,
                          running_mvn};

}  // namespace bestow::BESTOW_ISA
