// Guidance, x0 and the first three terms of x' for a tile, CPU only.
#ifndef DDPM_RT_KERNELS_STEP_LEAD_H_
#define DDPM_RT_KERNELS_STEP_LEAD_H_

#include "step_plan.h"

namespace ddpm_rt {

struct LeadElement {
  float x0, sum;
};

template <bool kThresholds = false>
DDPM_RT_HD LeadElement lead_element(const LeadWeights& w, float x, float e, float r = 1.0f) {
  const float of_x = add_weighted(0.0f, w.p, masked(x, w.x_for_x0));
  const float raw = add_weighted(of_x, w.q, masked(e, w.e_for_x0));
  const float x0 = kThresholds ? threshold(raw, r) : clip(raw, w.lo, w.hi);
  float sum = add_weighted(0.0f, w.weight_x, masked(x, w.x_for_x));
  sum = add_weighted(sum, w.weight_e, masked(e, w.e_for_x));
  return {x0, add_weighted(sum, w.weight_x0, masked(x0, w.x0_for_x))};
}

// e, x0 and the first three terms of x' in one loop. Returns whether an e was not finite: any bit.
template <bool kPair, bool kStore, bool kThresholds = false>
DDPM_RT_HD uint32_t lead_loop(const SlotPlan& plan, const float* x, const float* cond, const float* uncond, size_t n,
                              Tile* __restrict tile) {
  const LeadWeights weights = plan.lead;
  const float s_row = plan.s_row;
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) {
    const float e = kPair ? guide(cond[i], uncond[i], s_row) : cond[i];
    bad |= nonfinite_bits(e);
    const LeadElement lead = lead_element<kThresholds>(weights, x[i], e, plan.rare.r);
    tile->x_new[i] = lead.sum;
    if (kStore) tile->e[i] = e;
    if (kStore) tile->x0[i] = lead.x0;
  }
  return bad;
}

// e before RESCALE and GRAD; +0 without an evaluation.
DDPM_RT_HD void guided_tile(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, float* __restrict e) {
  const float* cond = plan.cond != nullptr ? plan.cond + first : kZeros;
  if (plan.uncond != nullptr) {
    const float* uncond = plan.uncond + first;
    for (size_t i = 0; i < n; ++i) e[i] = guide(cond[i], uncond[i], plan.s_row);
  } else {
    for (size_t i = 0; i < n; ++i) e[i] = cond[i];
  }
  if (plan.second == nullptr) return;
  const float* second = plan.second + first;
  for (size_t i = 0; i < n; ++i) e[i] = guide_second(e[i], cond[i], second[i], slot.scale2);
}

// As lead(), with the sample's factor of RESCALE, the gradient, and THRESHOLD's r.
DDPM_RT_HD uint32_t lead_rare(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, Tile* tile) {
  float* e = tile->sums;
  guided_tile(slot, plan, first, n, e);
  if (plan.rare.rescales) {
    const float factor = plan.rare.factor;
    for (size_t i = 0; i < n; ++i) e[i] = factor * e[i];
  }
  if (plan.rare.grad_of_e != nullptr) {
    const float* grad = plan.rare.grad_of_e + first;
    const float ge = slot.row->ge;
    for (size_t i = 0; i < n; ++i) e[i] = add_weighted(e[i], ge, grad[i]);
  }
  const float* x = slot.x + first;
  return plan.rare.thresholds ? lead_loop<false, true, true>(plan, x, e, nullptr, n, tile)
                              : lead_loop<false, true>(plan, x, e, nullptr, n, tile);
}

// Fills x_new with the first three terms of x', and e and x0 where the row stores them.
DDPM_RT_HD uint32_t lead(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, Tile* tile) {
  if (plan.is_rare) return lead_rare(slot, plan, first, n, tile);
  const float* x = slot.x + first;
  const float* cond = plan.cond != nullptr ? plan.cond + first : kZeros;
  const float* uncond = plan.uncond != nullptr ? plan.uncond + first : nullptr;
  if (plan.second != nullptr) {
    guided_tile(slot, plan, first, n, tile->sums);
    cond = tile->sums;
    uncond = nullptr;
  }
  if (uncond != nullptr) {
    return plan.stores_e_x0 ? lead_loop<true, true>(plan, x, cond, uncond, n, tile)
                            : lead_loop<true, false>(plan, x, cond, uncond, n, tile);
  }
  return plan.stores_e_x0 ? lead_loop<false, true>(plan, x, cond, uncond, n, tile)
                          : lead_loop<false, false>(plan, x, cond, uncond, n, tile);
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_STEP_LEAD_H_
