// The kernels compiled for one instruction set: CMake builds this file once per -march, each in a namespace of its own.
#ifndef DDPM_RT_ISA
#define DDPM_RT_ISA isa_default
#endif
#ifndef DDPM_RT_NO_CLONES
#define DDPM_RT_NO_CLONES
#endif
#define ddpm_rt DDPM_RT_ISA
#include "step_cpu.cpp"
#undef ddpm_rt

#define DDPM_RT_JOIN_(a, b) a##b
#define DDPM_RT_JOIN(a, b) DDPM_RT_JOIN_(a, b)

// StepSlot has the same layout in every namespace.
extern "C" void DDPM_RT_JOIN(DDPM_RT_ISA, _step)(const void* slots, size_t count, size_t elements, uint8_t* slot_bad) {
  DDPM_RT_ISA::step_cpu(static_cast<const DDPM_RT_ISA::StepSlot*>(slots), count, elements, slot_bad);
}

extern "C" void DDPM_RT_JOIN(DDPM_RT_ISA, _normals)(uint64_t seed, size_t count, float* out) {
  DDPM_RT_ISA::fill_normals(seed, 3, 1, 0, count, out);
}

extern "C" void DDPM_RT_JOIN(DDPM_RT_ISA, _combine)(const float* cond, const float* uncond, const float* scale, float phi,
                                                    size_t count, size_t elements, float* out) {
  DDPM_RT_ISA::cfg_combine_cpu(cond, uncond, scale, phi, count, elements, out);
}

extern "C" void DDPM_RT_JOIN(DDPM_RT_ISA, _quantise)(const float* x, size_t channels, size_t pixels, bool truncate,
                                                     uint8_t* out) {
  DDPM_RT_ISA::to_uint8_nhwc(x, channels, pixels, -1.0f, 1.0f, truncate, out);
}
