// One tile of one slot: the row of step.h over a run of elements that stays in the first-level cache, CPU only.
// The loops are written for the compiler's vectoriser; step_cpu.cpp compiles them once per instruction set.
#ifndef DDPM_RT_KERNELS_STEP_TILE_H_
#define DDPM_RT_KERNELS_STEP_TILE_H_

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "step_direct.h"
#include "step_rare.h"

namespace ddpm_rt {

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

DDPM_RT_HD uint32_t step_tile(const StepSlot& slot, const SlotPlan& plan, size_t first, size_t n, bool streams) {
  const StepRow& row = *slot.row;
  Tile tile;
  if (plan.is_direct && !(streams && plan.writes_input)) return step_direct(slot, plan, first, n, tile.z);
  uint32_t bad = lead(slot, plan, first, n, &tile);
  if (slot.x0_out != nullptr) memcpy(slot.x0_out + first, tile.x0, n * sizeof(float));

  const float* operands[8] = {slot.x + first, plan.cond ? tile.e : nullptr, tile.x0};
  for (uint32_t k = 0; k < 3; ++k) {
    const float* stored = slot.history[(slot.ring + k) % 3];
    operands[kH1 + k] = stored != nullptr ? stored + first : nullptr;
  }
  operands[kY] = slot.anchor != nullptr ? slot.anchor + first : nullptr;
  operands[kZ] = tile.z;
  if (plan.weight_z != 0.0f) {
    tile_normals({slot.seed, row.noise_index, kStreamStep}, static_cast<uint32_t>(first / 4), n, tile.z);
  }
  if (plan.rare.variance != nullptr) scale_noise(slot, plan, first, n, &tile);
  Terms terms;
  for (int k = kH1; k <= kY; ++k) add_term(&terms, row.wx[k], operands[k]);
  add_term(&terms, plan.weight_z, operands[kZ]);
  add_terms(terms, n, tile.x_new);
  if (plan.is_rare) bad |= change_state(slot, plan, first, n, &tile);

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
