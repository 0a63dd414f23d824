// What a host compiler and nvcc must agree on, for the element maths of this folder: inline marks and bit casts.
// Bits are equal everywhere only if the compiler neither contracts nor reassociates: -ffp-contract=off, -fmad=false.
#ifndef DDPM_RT_KERNELS_HD_H_
#define DDPM_RT_KERNELS_HD_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__FAST_MATH__)
#error "kernels: -ffast-math would change the documented bits"
#endif

#if defined(__CUDACC__)
#define DDPM_RT_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// A function that is not inlined into a target clone runs with the default instruction set.
#define DDPM_RT_HD inline __attribute__((always_inline))
#else
#define DDPM_RT_HD inline
#endif

namespace ddpm_rt {

DDPM_RT_HD uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

DDPM_RT_HD float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

DDPM_RT_HD uint64_t double_bits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

DDPM_RT_HD double bits_double(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Correctly rounded; sqrtf under nvcc is so only with -prec-sqrt=true.
DDPM_RT_HD float sqrt_rn(float value) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(value);
#else
  return std::sqrt(value);
#endif
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_HD_H_
