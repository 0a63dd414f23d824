// What one slot's row asks for, decided once for all its elements, and the scratch of a tile, CPU only.
#ifndef DDPM_RT_KERNELS_STEP_PLAN_H_
#define DDPM_RT_KERNELS_STEP_PLAN_H_

#include <limits>

#include "noise_tile.h"
#include "step.h"
#include "step_math.h"

namespace ddpm_rt {

// Elements in flight: an odd multiple of 1 KB, so that arrays of this length side by side do not alias in the cache.
constexpr size_t kTile = 768;
static_assert(kTile % kNormalsAtOnce == 0, "a tile of noise is written whole");

// What stands in for an operand whose weight is 0: 0 * (+0) = 0 leaves every bit of a sum that began at +0, so that the
// leading terms need no variant of the loop per set of weights.
alignas(64) constexpr float kZeros[kTile] = {};

// The operands of one weighted sum whose weight is not 0, in their documented order.
struct Terms {
  int count = 0;
  float weight[8];
  const float* data[8];
};

DDPM_RT_HD void add_term(Terms* terms, float weight, const float* data) {
  if (weight == 0.0f || data == nullptr) return;
  terms->weight[terms->count] = weight;
  terms->data[terms->count++] = data;
}

template <int kCount>
DDPM_RT_HD void add_fixed(const Terms& terms, size_t n, float* __restrict sums) {
  float weight[kCount];
  const float* data[kCount];
  for (int k = 0; k < kCount; ++k) weight[k] = terms.weight[k];
  for (int k = 0; k < kCount; ++k) data[k] = terms.data[k];
  for (size_t i = 0; i < n; ++i) {
    float sum = sums[i];
    for (int k = 0; k < kCount; ++k) sum = add_weighted(sum, weight[k], data[k][i]);
    sums[i] = sum;
  }
}

// `sums` is scratch of this file: it overlaps no operand.
DDPM_RT_HD void add_terms(const Terms& terms, size_t n, float* __restrict sums) {
  switch (terms.count) {
    case 0: break;
    case 1: add_fixed<1>(terms, n, sums); break;
    case 2: add_fixed<2>(terms, n, sums); break;
    case 3: add_fixed<3>(terms, n, sums); break;
    case 4: add_fixed<4>(terms, n, sums); break;
    case 5: add_fixed<5>(terms, n, sums); break;
    case 6: add_fixed<6>(terms, n, sums); break;
    case 7: add_fixed<7>(terms, n, sums); break;
    default: add_fixed<8>(terms, n, sums); break;
  }
}

// What every element of a slot shares until the first three terms of x'.
struct LeadWeights {
  float p, q, lo, hi, weight_x, weight_e, weight_x0;
  uint32_t x_for_x0, e_for_x0, x_for_x, e_for_x, x0_for_x;  // masks: all ones where the operand has a weight
};

DDPM_RT_HD uint32_t mask_of(float weight) { return weight != 0.0f ? ~0u : 0u; }

// What kRareFlags ask for (null, 0 or false: nothing), and what the sample's reductions gave.
struct RarePlan {
  bool rescales = false, thresholds = false, has_range = false;
  float factor = 1.0f;                // of RESCALE
  float r = 1.0f;                     // of THRESHOLD
  const float* variance = nullptr;    // v
  const float *grad_of_e = nullptr, *grad_of_x = nullptr;
  const float *mask = nullptr, *known = nullptr;
};

// What a slot's row asks for, decided once for all its elements.
struct SlotPlan {
  const float *cond, *uncond, *second;  // second: the guide's output; cond is the lone evaluation if there is one only
  float s_row, weight_z;
  LeadWeights lead;
  bool stores_e_x0, pushes, keeps, writes_input, is_rare, is_direct;
  RarePlan rare;
};

DDPM_RT_HD RarePlan plan_rare(const StepSlot& slot, bool has_e) {
  const StepRow& row = *slot.row;
  const auto has = [&](StepFlag flag) { return (row.flags & flag) != 0; };
  RarePlan rare;
  rare.rescales = has(kRescale) && has_e && slot.cond != nullptr;
  rare.thresholds = has(kThreshold);
  rare.has_range = has(kLearnedRange) && !has(kLearnedVar);
  if (has_e && (has(kLearnedVar) || rare.has_range)) rare.variance = slot.variance;
  if (has(kGrad) && has_e && row.ge != 0.0f) rare.grad_of_e = slot.grad;
  if (has(kGrad) && row.gm != 0.0f) rare.grad_of_x = slot.grad;
  if (has(kBlend)) rare.mask = slot.mask;
  if (has(kBlend) && row.ky != 0.0f) rare.known = slot.known;
  return rare;
}

DDPM_RT_HD SlotPlan plan_slot(const StepSlot& slot) {
  const StepRow& row = *slot.row;
  const float inf = std::numeric_limits<float>::infinity();
  const bool is_clipped = (row.flags & kClip) != 0;
  SlotPlan plan{};
  if (!(row.flags & kNoEval)) {
    const bool is_pair = slot.cond != nullptr && slot.uncond != nullptr;
    plan.cond = slot.cond != nullptr ? slot.cond : slot.uncond;
    plan.uncond = is_pair ? slot.uncond : nullptr;
    plan.second = slot.cond != nullptr ? slot.guide : nullptr;
  }
  const bool has_e = plan.cond != nullptr;
  plan.s_row = row_scale(slot.scale, row.gs);
  plan.weight_z = row.wx[kZ];
  plan.lead = {row.p, row.q, is_clipped ? row.clip_lo : -inf, is_clipped ? row.clip_hi : inf,
               row.wx[kX], row.wx[kE], row.wx[kX0],
               mask_of(row.p), has_e ? mask_of(row.q) : 0u,
               mask_of(row.wx[kX]), has_e ? mask_of(row.wx[kE]) : 0u, mask_of(row.wx[kX0])};
  plan.pushes = (row.flags & kPush) != 0;
  plan.keeps = (row.flags & kKeep) != 0;
  plan.is_rare = (row.flags & kRareFlags) != 0;
  if (plan.is_rare) plan.rare = plan_rare(slot, has_e);
  plan.stores_e_x0 = plan.pushes || plan.keeps || plan.is_rare || slot.x0_out != nullptr;
  plan.writes_input = !(row.flags & kLast) && slot.next != nullptr;
  bool reads_registers = false;
  for (int k = kH1; k <= kY; ++k) reads_registers = reads_registers || row.wx[k] != 0.0f;
  plan.is_direct = !plan.stores_e_x0 && !reads_registers && plan.second == nullptr && slot.in[2] == nullptr;
  return plan;
}

struct Tile {
  alignas(64) float e[kTile], x0[kTile], x_new[kTile], z[kTile], sums[kTile];
  alignas(64) float std[kTile];  // of learned variance
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_STEP_PLAN_H_
