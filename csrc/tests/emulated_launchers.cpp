// The launchers and kernels as they are, compiled for the host.
#define BESTOW_EMULATE
#include "../cuda/launch_backward.cu"
#include "../cuda/launch_decode.cu"
#include "../cuda/launch_forward.cu"
#include "../cuda/launch_weights.cu"

namespace bestow::emulation {
void limit_shared(int bytes) { shared_limit() = bytes; }
}  // namespace bestow::emulation
