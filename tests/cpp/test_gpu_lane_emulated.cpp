// Ticks of the GPU kernels on the host: begin, step, advance, apply, finish against the CPU executing the same tables.
#include "cuda_emulation.h"

#include "gpu_lane_checks.h"
#include "host_device.h"

int main() {
  const gpu_case::Device device = cuda_emulation::host_device();
  for (bool is_backwards : {false, true}) {
    cuda_emulation::runs_backwards = is_backwards;
    gpu_case::check_all_of_lane(device, nullptr);
  }
  return finish();
}
