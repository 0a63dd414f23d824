// kernels/step_cuda.cu, unchanged, for the host.
#include "cuda_emulation.h"

#include "step_cuda.cu"
