// A real GPU for the checks of gpu_*_checks.h.
#ifndef DDPM_RT_TESTS_CUDA_DEVICE_H_
#define DDPM_RT_TESTS_CUDA_DEVICE_H_

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

#include "gpu_arena.h"

namespace cuda_device {

inline void expect(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

inline void* allocate(size_t bytes) {
  void* memory = nullptr;
  expect(cudaMalloc(&memory, bytes), "cudaMalloc");
  return memory;
}
inline void release(void* memory) { cudaFree(memory); }
inline void upload(void* to, const void* from, size_t bytes) {
  expect(cudaDeviceSynchronize(), "kernels");
  expect(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "upload");
}
inline void download(void* to, const void* from, size_t bytes) {
  expect(cudaDeviceSynchronize(), "kernels");
  expect(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "download");
}
inline gpu_case::Device device() { return {allocate, release, upload, download}; }

// False: no GPU here, with the reason printed as JSON.
inline bool is_there(cudaDeviceProp* properties) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    std::printf("{\"skipped\": \"%s\"}\n", status != cudaSuccess ? cudaGetErrorString(status) : "no device");
    return false;
  }
  expect(cudaGetDeviceProperties(properties, 0), "cudaGetDeviceProperties");
  return true;
}

inline void print_versions(const cudaDeviceProp& properties) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  std::printf("\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"driver\": %d, \"runtime\": %d", properties.name,
              properties.major, properties.minor, driver, runtime);
}

constexpr int kSkipped = 77;  // exit status where there is no GPU

}  // namespace cuda_device

#endif  // DDPM_RT_TESTS_CUDA_DEVICE_H_
