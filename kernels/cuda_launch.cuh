// Starting a kernel: returns a cudaError_t as int. A build that is not nvcc's brings its own `launch`.
#ifndef DDPM_RT_KERNELS_CUDA_LAUNCH_CUH_
#define DDPM_RT_KERNELS_CUDA_LAUNCH_CUH_

#if defined(__CUDACC__)
namespace ddpm_rt {

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, void* stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

}  // namespace ddpm_rt
#endif

#endif  // DDPM_RT_KERNELS_CUDA_LAUNCH_CUH_
