// What only rows with rare flags do: the sample's reductions before its first tile, and their changes to x'; CPU only.
#ifndef DDPM_RT_KERNELS_STEP_RARE_H_
#define DDPM_RT_KERNELS_STEP_RARE_H_

#include "reduce.h"
#include "step_lead.h"

namespace ddpm_rt {

// z becomes std z. The z of a row that adds no noise is not made; its std may still be wanted.
DDPM_RT_HD void scale_noise(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, Tile* tile) {
  if (plan.weight_z == 0.0f && plan.rare.grad_of_x == nullptr) return;
  const float* v = plan.rare.variance + first;
  const float lo = slot.row->log_var_lo, hi = slot.row->log_var_hi;
  if (plan.rare.has_range) {
    for (size_t i = 0; i < n; ++i) tile->std[i] = learned_range_std(v[i], lo, hi);
  } else {
    for (size_t i = 0; i < n; ++i) tile->std[i] = learned_std(v[i]);
  }
  if (plan.weight_z == 0.0f) return;
  for (size_t i = 0; i < n; ++i) tile->z[i] = tile->std[i] * tile->z[i];
}

// GRAD and BLEND of x'. Returns whether an x' was not finite: any bit.
DDPM_RT_HD uint32_t change_state(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, Tile* tile) {
  const StepRow& row = *slot.row;
  if (plan.rare.grad_of_x != nullptr) {
    const float* grad = plan.rare.grad_of_x + first;
    const bool has_std = plan.rare.variance != nullptr;
    for (size_t i = 0; i < n; ++i) {
      tile->x_new[i] = add_gradient(tile->x_new[i], row.gm, has_std ? tile->std[i] : 1.0f, grad[i]);
    }
  }
  if (plan.rare.mask != nullptr) {
    const float* mask = plan.rare.mask + first;
    const float* known = plan.rare.known != nullptr ? plan.rare.known + first : kZeros;
    if (row.kz != 0.0f) {
      tile_normals({slot.seed, row.noise_index, kStreamKnown}, static_cast<uint32_t>(first / 4), n, tile->sums);
    } else {
      memset(tile->sums, 0, n * sizeof(float));
    }
    for (size_t i = 0; i < n; ++i) {
      tile->x_new[i] = blend(mask[i], known[i], tile->sums[i], row.ky, row.kz, tile->x_new[i]);
    }
  }
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) bad |= nonfinite_bits(tile->x_new[i]);
  return bad;
}

template <typename Work>
DDPM_RT_HD void for_tiles(size_t elements, Work work) {
  for (size_t first = 0; first < elements; first += kTile) work(first, elements - first < kTile ? elements - first : kTile);
}
static_assert(kTile % kSumLanes == 0, "TreeSum takes whole rounds of lanes");

DDPM_RT_HD float sample_rescale_factor(const StepSlot& slot, const SlotPlan& plan, size_t elements, Tile* tile) {
  Spread spread_c, spread_e;
  for_tiles(elements, [&](size_t first, size_t n) {
    guided_tile(slot, plan, first, n, tile->e);
    spread_c.add(slot.cond + first, n);
    spread_e.add(tile->e, n);
  });
  return rescale_factor(slot.row->phi, spread_c.deviation(elements), spread_e.deviation(elements));
}

DDPM_RT_HD NormWeights sample_norm_weights(const StepSlot& slot, const SlotPlan& plan, size_t elements, Tile* tile) {
  const StepRow& row = *slot.row;
  TreeSum squares_e, squares_z;
  for_tiles(elements, [&](size_t first, size_t n) {
    lead_rare(slot, plan, first, n, tile);
    tile_normals({slot.seed, row.noise_index, kStreamStep}, static_cast<uint32_t>(first / 4), n, tile->z);
    squares_e.add(n, [&](size_t i) { return static_cast<double>(tile->e[i]) * static_cast<double>(tile->e[i]); });
    squares_z.add(n, [&](size_t i) { return static_cast<double>(tile->z[i]) * static_cast<double>(tile->z[i]); });
  });
  return norm_weights(row.wx[kE], row.wx[kZ], row.snr, squares_e.finish(), squares_z.finish());
}

// `plan` has no clip and no threshold yet: x0 of the tiles is the raw prediction.
DDPM_RT_HD float sample_threshold(const StepSlot& slot, const SlotPlan& plan, size_t elements, Tile* tile) {
  const StepRow& row = *slot.row;
  Selection selection{};
  for (int pass = 0; pass < kSelectPasses && !selection.is_done; ++pass) {
    Histogram histogram{};
    histogram.next_above = kNoBits;
    for_tiles(elements, [&](size_t first, size_t n) {
      lead_rare(slot, plan, first, n, tile);
      count_values(tile->x0, n, selection.prefix, pass, &histogram);
    });
    select_from(histogram, pass, row.threshold_p, row.threshold_cap, static_cast<uint32_t>(elements), &selection);
  }
  return selection.r;
}

DDPM_RT_HD double sample_kl(const StepSlot& slot, const SlotPlan& plan, size_t elements, Tile* tile) {
  const StepRow& row = *slot.row;
  TreeSum sum;
  for_tiles(elements, [&](size_t first, size_t n) {
    lead_rare(slot, plan, first, n, tile);
    const float* v = plan.rare.variance != nullptr ? plan.rare.variance + first : nullptr;
    sum.add(n, [&](size_t i) {
      double lp = static_cast<double>(row.lp);
      if (v != nullptr) {
        lp = plan.rare.has_range ? learned_range_log_var(v[i], row.log_var_lo, row.log_var_hi) : static_cast<double>(v[i]);
      }
      return kl_term(row.v0, static_cast<double>(row.lq), lp, slot.x0_true[first + i], tile->x0[i]);
    });
  });
  return sum.finish() / static_cast<double>(elements);
}

// Runs the reductions that the row asks for, in the order in which they build on each other.
DDPM_RT_HD void reduce_sample(const StepSlot& slot, SlotPlan* plan, size_t elements) {
  const StepRow& row = *slot.row;
  Tile tile;
  const bool thresholds = plan->rare.thresholds;
  plan->rare.thresholds = false;
  if (plan->rare.rescales) plan->rare.factor = sample_rescale_factor(slot, *plan, elements, &tile);
  if ((row.flags & kNorm) && plan->cond != nullptr) {
    const NormWeights weights = sample_norm_weights(slot, *plan, elements, &tile);
    plan->lead.weight_e = weights.e;
    plan->lead.e_for_x = mask_of(weights.e);
    plan->weight_z = weights.z;
  }
  if (thresholds) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    plan->lead.lo = -kInfinity;
    plan->lead.hi = kInfinity;
    plan->rare.r = sample_threshold(slot, *plan, elements, &tile);
    plan->rare.thresholds = true;
  }
  if ((row.flags & kVlb) && slot.kl != nullptr && slot.x0_true != nullptr) *slot.kl = sample_kl(slot, *plan, elements, &tile);
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_STEP_RARE_H_
