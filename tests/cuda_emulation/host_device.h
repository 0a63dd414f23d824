// The emulation's device: host memory, exactly as large as asked for, so that address checks find what is out of bounds.
#ifndef DDPM_RT_TESTS_CUDA_EMULATION_HOST_DEVICE_H_
#define DDPM_RT_TESTS_CUDA_EMULATION_HOST_DEVICE_H_

#include <cstdlib>
#include <cstring>

#include "gpu_arena.h"

namespace cuda_emulation {

inline gpu_case::Device host_device() {
  return {[](size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); },
          [](void* memory) { std::free(memory); },
          [](void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); },
          [](void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }};
}

}  // namespace cuda_emulation

#endif  // DDPM_RT_TESTS_CUDA_EMULATION_HOST_DEVICE_H_
