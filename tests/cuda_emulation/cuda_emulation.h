// CUDA C++ for g++, as much of it as kernels/*.cu use: g++ -x c++ -include cuda_emulation.h step_cuda.cu
//
// Every block runs with all of its threads (fibers.h), blocks one after the other. What is shown: logic, indices, bits,
// missing barriers (run both ways, below). What is not: races between blocks, and anything about speed.
//
// A launch runs at once, on the calling thread, unless `enqueue` is set: then it gets the stream and the work.
#ifndef DDPM_RT_TESTS_CUDA_EMULATION_H_
#define DDPM_RT_TESTS_CUDA_EMULATION_H_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <tuple>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {

inline thread_local Fibers fibers;
inline bool runs_backwards = false;  // threads and blocks from last to first
inline std::function<void(void* stream, std::function<void()> work)> enqueue;
inline std::atomic<uint64_t> launches{0};

}  // namespace cuda_emulation

inline void __syncthreads() {
  const dim3 own = threadIdx;
  cuda_emulation::fibers.wait();
  threadIdx = own;
}
inline void __threadfence() {}

template <typename T>
T __ldcg(const T* at) {
  return *at;
}
inline unsigned atomicAdd(unsigned* at, unsigned value) { return *at += value, *at - value; }
inline unsigned atomicOr(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at = before | value;
  return before;
}
inline unsigned atomicMax(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at = std::max(before, value);
  return before;
}
inline unsigned atomicMin(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at = std::min(before, value);
  return before;
}
using std::rint;

namespace ddpm_rt {

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, void* stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z != 1 || grid.y > 65535 || block.y != 1 || block.z != 1) return 1;
  const std::tuple<Parameters...> values{Parameters(arguments)...};
  ++cuda_emulation::launches;
  std::function<void()> work = [=] {
    const bool is_backwards = cuda_emulation::runs_backwards;
    gridDim = grid;
    blockDim = block;
    const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y;
    for (uint64_t k = 0; k < blocks; ++k) {
      const uint64_t b = is_backwards ? blocks - 1 - k : k;
      blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x));
      cuda_emulation::fibers.run(block.x, is_backwards, [&](size_t thread) {
        threadIdx = dim3(static_cast<unsigned>(thread));
        std::apply(kernel, values);
      });
    }
  };
  if (cuda_emulation::enqueue) {
    cuda_emulation::enqueue(stream, std::move(work));
  } else {
    work();
  }
  return 0;
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_TESTS_CUDA_EMULATION_H_
