// float16 and bfloat16 to float32 (exact) and back (round to nearest, ties to even; any NaN becomes 0x7FFF).
// The host's and the device's way give the same bits; tests/cpp/test_float16.cpp and the GPU test hold them together.
#ifndef DDPM_RT_KERNELS_FLOAT16_H_
#define DDPM_RT_KERNELS_FLOAT16_H_

#include "hd.h"

namespace ddpm_rt {

DDPM_RT_HD float half_to_float(uint16_t half) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
  if (magnitude > 0x7C00u) return bits_float(0x7FFFFFFFu);
  if (magnitude == 0x7C00u) return bits_float(sign | 0x7F800000u);
  if (magnitude < 0x0400u) return bits_float(sign | float_bits(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
  return bits_float(sign | ((magnitude << 13) + 0x38000000u));
#endif
}

DDPM_RT_HD uint16_t float_to_half(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
#else
  const uint32_t sign = (float_bits(value) >> 16) & 0x8000u;
  const uint32_t magnitude = float_bits(value) & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7FFFu;
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and up
  if (magnitude < 0x38800000u) {  // subnormal: 0.5 has the ulp of the least one, so that the sum rounds to multiples of it
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13));
#endif
}

DDPM_RT_HD float bfloat16_to_float(uint16_t value) { return bits_float(static_cast<uint32_t>(value) << 16); }

DDPM_RT_HD uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Two at once, the first in the low half: one instruction on the device, where a single conversion is slower.
DDPM_RT_HD uint32_t floats_to_halves(float first, float second) {
#if defined(__CUDA_ARCH__)
  uint32_t halves;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(second), "f"(first));
  return halves;
#else
  return float_to_half(first) | static_cast<uint32_t>(float_to_half(second)) << 16;
#endif
}

DDPM_RT_HD uint32_t floats_to_bfloat16s(float first, float second) {
#if defined(__CUDA_ARCH__)
  uint32_t halves;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(second), "f"(first));
  return halves;
#else
  return float_to_bfloat16(first) | static_cast<uint32_t>(float_to_bfloat16(second)) << 16;
#endif
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_FLOAT16_H_
