// kernels/step_cuda.cu compiled for the host (tests/cuda_emulation) against step_cpu: bits, every variant, both layouts,
// all types, poisoned memory, threads and blocks in either order.
#include "cuda_emulation.h"

#include "gpu_step_checks.h"
#include "host_device.h"

int main() {
  const gpu_case::Device device = cuda_emulation::host_device();
  for (bool is_backwards : {false, true}) {
    cuda_emulation::runs_backwards = is_backwards;
    gpu_case::check_all_of_step(device, is_backwards ? 500 : 0, 1, nullptr);
  }
  CHECK(cuda_emulation::launches > 1000);
  return finish();
}
