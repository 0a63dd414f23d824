// The whole row in one loop over a tile, for the rows that read nothing but x, e, x0 and z and are watched by nobody; CPU
// only.
#ifndef DDPM_RT_KERNELS_STEP_DIRECT_H_
#define DDPM_RT_KERNELS_STEP_DIRECT_H_

#include "step_lead.h"

namespace ddpm_rt {

template <bool kPair, bool kNoise, int kInputs>
DDPM_RT_HD uint32_t direct_loop(const SlotPlan& plan, float* __restrict x, const float* __restrict cond,
                                const float* __restrict uncond, const float* __restrict z, float weight_z, float c_in,
                                size_t n, float* __restrict in0, float* __restrict in1) {
  const LeadWeights weights = plan.lead;
  const float s_row = plan.s_row;
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) {
    const float e = kPair ? guide(cond[i], uncond[i], s_row) : cond[i];
    bad |= nonfinite_bits(e);
    float x_new = lead_element(weights, x[i], e).sum;
    if (kNoise) x_new = add_weighted(x_new, weight_z, z[i]);
    x[i] = x_new;
    if (kInputs > 0) in0[i] = c_in * x_new;
    if (kInputs > 1) in1[i] = c_in * x_new;
  }
  return bad;
}

template <bool kPair, bool kNoise>
DDPM_RT_HD uint32_t step_direct_as(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, const float* z) {
  float* x = slot.x + first;
  const float* cond = plan.cond != nullptr ? plan.cond + first : kZeros;
  const float* uncond = kPair ? plan.uncond + first : nullptr;
  const float weight_z = plan.weight_z;
  float* in[2] = {};
  int inputs = 0;
  for (int k = 0; k < 2 && plan.writes_input; ++k) {
    if (slot.in[k] != nullptr) in[inputs++] = slot.in[k] + first;
  }
  const float c_in = inputs > 0 ? slot.next->c_in : 1.0f;
  switch (inputs) {
    case 0: return direct_loop<kPair, kNoise, 0>(plan, x, cond, uncond, z, weight_z, c_in, n, nullptr, nullptr);
    case 1: return direct_loop<kPair, kNoise, 1>(plan, x, cond, uncond, z, weight_z, c_in, n, in[0], nullptr);
    default: return direct_loop<kPair, kNoise, 2>(plan, x, cond, uncond, z, weight_z, c_in, n, in[0], in[1]);
  }
}

DDPM_RT_HD uint32_t step_direct(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, float* z) {
  const StepRow& row = *slot.row;
  const bool is_pair = plan.uncond != nullptr;
  if (plan.weight_z == 0.0f) {
    return is_pair ? step_direct_as<true, false>(slot, plan, first, n, z) : step_direct_as<false, false>(slot, plan, first, n, z);
  }
  tile_normals({slot.seed, row.noise_index, kStreamStep}, static_cast<uint32_t>(first / 4), n, z);
  return is_pair ? step_direct_as<true, true>(slot, plan, first, n, z) : step_direct_as<false, true>(slot, plan, first, n, z);
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_STEP_DIRECT_H_
