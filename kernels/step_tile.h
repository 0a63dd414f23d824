// One tile of one slot: the row of step.h over a run of elements that stays in the first-level cache, CPU only.
// The loops are written for the compiler's vectoriser; step_cpu.cpp compiles them once per instruction set.
#ifndef DDPM_RT_KERNELS_STEP_TILE_H_
#define DDPM_RT_KERNELS_STEP_TILE_H_

#include <limits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

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

// What a slot's row asks for, decided once for all its elements.
struct SlotPlan {
  const float *cond, *uncond, *second;  // second: the guide's output; cond is the lone evaluation if there is one only
  float s_row;
  LeadWeights lead;
  bool stores_e_x0, pushes, keeps, writes_input, is_direct;
};

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
  plan.lead = {row.p, row.q, is_clipped ? row.clip_lo : -inf, is_clipped ? row.clip_hi : inf,
               row.wx[kX], row.wx[kE], row.wx[kX0],
               mask_of(row.p), has_e ? mask_of(row.q) : 0u,
               mask_of(row.wx[kX]), has_e ? mask_of(row.wx[kE]) : 0u, mask_of(row.wx[kX0])};
  plan.pushes = (row.flags & kPush) != 0;
  plan.keeps = (row.flags & kKeep) != 0;
  plan.stores_e_x0 = plan.pushes || plan.keeps || slot.x0_out != nullptr;
  plan.writes_input = !(row.flags & kLast) && slot.next != nullptr;
  bool reads_registers = false;
  for (int k = kH1; k <= kY; ++k) reads_registers = reads_registers || row.wx[k] != 0.0f;
  plan.is_direct = !plan.stores_e_x0 && !reads_registers && plan.second == nullptr && slot.in[2] == nullptr;
  return plan;
}

struct Tile {
  alignas(64) float e[kTile], x0[kTile], x_new[kTile], z[kTile], sums[kTile];
};

struct LeadElement {
  float x0, sum;
};

DDPM_RT_HD LeadElement lead_element(const LeadWeights& w, float x, float e) {
  const float of_x = add_weighted(0.0f, w.p, masked(x, w.x_for_x0));
  const float x0 = clip(add_weighted(of_x, w.q, masked(e, w.e_for_x0)), w.lo, w.hi);
  float sum = add_weighted(0.0f, w.weight_x, masked(x, w.x_for_x));
  sum = add_weighted(sum, w.weight_e, masked(e, w.e_for_x));
  return {x0, add_weighted(sum, w.weight_x0, masked(x0, w.x0_for_x))};
}

// e, x0 and the first three terms of x' in one loop. Returns whether an e was not finite: any bit.
template <bool kPair, bool kStore>
DDPM_RT_HD uint32_t lead_loop(const SlotPlan& plan, const float* x, const float* cond, const float* uncond, size_t n,
                              Tile* __restrict tile) {
  const LeadWeights weights = plan.lead;
  const float s_row = plan.s_row;
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) {
    const float e = kPair ? guide(cond[i], uncond[i], s_row) : cond[i];
    bad |= nonfinite_bits(e);
    const LeadElement lead = lead_element(weights, x[i], e);
    tile->x_new[i] = lead.sum;
    if (kStore) tile->e[i] = e;
    if (kStore) tile->x0[i] = lead.x0;
  }
  return bad;
}

// The whole row in one loop, for the rows that read nothing but x, e, x0 and z and are watched by nobody.
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

DDPM_RT_HD uint32_t lead(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, Tile* tile) {
  const float* x = slot.x + first;
  const float* cond = plan.cond != nullptr ? plan.cond + first : kZeros;
  const float* uncond = plan.uncond != nullptr ? plan.uncond + first : nullptr;
  if (plan.second != nullptr) {
    const float* second = plan.second + first;
    for (size_t i = 0; i < n; ++i) tile->e[i] = uncond ? guide(cond[i], uncond[i], plan.s_row) : cond[i];
    for (size_t i = 0; i < n; ++i) tile->sums[i] = guide_second(tile->e[i], cond[i], second[i], slot.scale2);
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

// Past the caches (`from` is aligned scratch): for calls so large that what they write first is evicted before they
// end, where an ordinary store would read each line from memory only to overwrite it.
DDPM_RT_HD void stream_copy(const float* from, size_t n, float* to) {
  size_t i = 0;
#if defined(__SSE2__)
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    for (; i + 4 <= n; i += 4) _mm_stream_ps(to + i, _mm_load_ps(from + i));
  }
#endif
  memcpy(to + i, from + i, (n - i) * sizeof(float));
}

DDPM_RT_HD void write_inputs(const StepSlot& slot, size_t first, size_t n, bool streams, Tile* tile) {
  const float c_in = slot.next->c_in;
  const float* values = tile->x_new;
  if (c_in != 1.0f) {
    for (size_t i = 0; i < n; ++i) tile->sums[i] = c_in * tile->x_new[i];
    values = tile->sums;
  }
  for (float* in : slot.in) {
    if (in == nullptr) continue;
    if (streams) {
      stream_copy(values, n, in + first);
    } else {
      memcpy(in + first, values, n * sizeof(float));
    }
  }
}

template <bool kPair, bool kNoise>
DDPM_RT_HD uint32_t step_direct_as(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, const float* z) {
  float* x = slot.x + first;
  const float* cond = plan.cond != nullptr ? plan.cond + first : kZeros;
  const float* uncond = kPair ? plan.uncond + first : nullptr;
  const float weight_z = slot.row->wx[kZ];
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
  if (row.wx[kZ] == 0.0f) {
    return is_pair ? step_direct_as<true, false>(slot, plan, first, n, z) : step_direct_as<false, false>(slot, plan, first, n, z);
  }
  tile_normals({slot.seed, row.noise_index, kStreamStep}, static_cast<uint32_t>(first / 4), n, z);
  return is_pair ? step_direct_as<true, true>(slot, plan, first, n, z) : step_direct_as<false, true>(slot, plan, first, n, z);
}

DDPM_RT_HD uint32_t step_tile(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, bool streams) {
  const StepRow& row = *slot.row;
  Tile tile;
  if (plan.is_direct && !(streams && plan.writes_input)) return step_direct(slot, plan, first, n, tile.z);
  const uint32_t bad = lead(slot, plan, first, n, &tile);
  if (slot.x0_out != nullptr) memcpy(slot.x0_out + first, tile.x0, n * sizeof(float));

  const float* operands[8] = {slot.x + first, plan.cond ? tile.e : nullptr, tile.x0};
  for (uint32_t k = 0; k < 3; ++k) {
    const float* stored = slot.history[(slot.ring + k) % 3];
    operands[kH1 + k] = stored != nullptr ? stored + first : nullptr;
  }
  operands[kY] = slot.anchor != nullptr ? slot.anchor + first : nullptr;
  operands[kZ] = tile.z;
  if (row.wx[kZ] != 0.0f) {
    tile_normals({slot.seed, row.noise_index, kStreamStep}, static_cast<uint32_t>(first / 4), n, tile.z);
  }
  Terms terms;
  for (int k = kH1; k <= kZ; ++k) add_term(&terms, row.wx[k], operands[k]);
  add_terms(terms, n, tile.x_new);

  // y' and h read the old state, anchor and history: y' goes by way of scratch, and both precede the new state. The
  // entry that PUSH overwrites is h3, which no later sum reads.
  if (plan.keeps && slot.anchor != nullptr) {
    Terms terms_y;
    for (int k = 0; k < 7; ++k) add_term(&terms_y, row.wy[k], operands[k]);
    memset(tile.sums, 0, n * sizeof(float));
    add_terms(terms_y, n, tile.sums);
    memcpy(slot.anchor + first, tile.sums, n * sizeof(float));
  }
  float* oldest = slot.history[(slot.ring + 2) % 3];
  if (plan.pushes && oldest != nullptr) {
    Terms terms_h;
    for (int k = 0; k < 3; ++k) add_term(&terms_h, row.wh[k], operands[k]);
    memset(tile.sums, 0, n * sizeof(float));
    add_terms(terms_h, n, tile.sums);
    memcpy(oldest + first, tile.sums, n * sizeof(float));
  }
  memcpy(slot.x + first, tile.x_new, n * sizeof(float));
  if (plan.writes_input) write_inputs(slot, first, n, streams, &tile);
  return bad;
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_STEP_TILE_H_
