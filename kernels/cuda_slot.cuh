// A block's view of one slot: slot, row and the sample's reductions in shared memory, and e of one element.
#ifndef DDPM_RT_KERNELS_CUDA_SLOT_CUH_
#define DDPM_RT_KERNELS_CUDA_SLOT_CUH_

#include "cuda_tensor.cuh"
#include "philox.h"
#include "reduce.h"

namespace ddpm_rt {

// Per slot, in GpuLane.scratch: behind all of them lie the chunk sums, kSums float64 per chunk and slot.
struct SlotScratch {
  float factor;                                // of RESCALE
  NormWeights norm;                            // of NORM
  Selection selection;                         // of THRESHOLD
  uint32_t ticket;                             // blocks of this slot that are done; 0 between launches
  uint32_t below, greatest_below, next_above;  // of the running pass; next_above counts down from kNoBits
  uint32_t bins[kSelectBins];                  // zero between launches
};
constexpr uint32_t kSums = 4;

__host__ __device__ inline uint64_t chunks_of(uint64_t elements) { return (elements + kSumChunk - 1) / kSumChunk; }

struct SlotBlock {
  GpuSlot slot;
  StepRow row;
  float c_in;                                  // of the next row
  float factor, r;
  NormWeights norm;
};
static_assert(sizeof(GpuSlot) % 4 == 0 && sizeof(GpuSlot) / 4 <= kBlock, "one word per thread");

// Of the whole block. False: the slot has nothing to do.
DDPM_RT_DEVICE bool load_slot(const GpuLane& lane, uint32_t index, SlotBlock* block) {
  const uint32_t thread = threadIdx.x;
  if (thread < sizeof(GpuSlot) / 4) {
    reinterpret_cast<uint32_t*>(&block->slot)[thread] = reinterpret_cast<const uint32_t*>(lane.slots + index)[thread];
  }
  __syncthreads();
  const GpuSlot& slot = block->slot;
  if (!(slot.flags & kSlotActive)) return false;
  const StepRow* row = slot.table + slot.row;
  if (thread < sizeof(StepRow) / 4) {
    reinterpret_cast<uint32_t*>(&block->row)[thread] = reinterpret_cast<const uint32_t*>(row)[thread];
  } else if (thread == sizeof(StepRow) / 4) {
    block->c_in = slot.row + 1 < slot.row_count ? row[1].c_in : 0.0f;
  } else if (thread == sizeof(StepRow) / 4 + 1 && lane.scratch != nullptr) {
    const SlotScratch& scratch = static_cast<const SlotScratch*>(lane.scratch)[index];
    block->factor = scratch.factor;
    block->r = scratch.selection.r;
    block->norm = scratch.norm;
  }
  __syncthreads();
  return true;
}

DDPM_RT_DEVICE bool has_flag(const SlotBlock& block, uint32_t flags) { return (block.row.flags & flags) != 0; }

// Place of the evaluation that e starts from: cond's, or the lone one's; kNoPlace without one.
DDPM_RT_DEVICE int32_t first_place(const SlotBlock& block) {
  if (has_flag(block, kNoEval)) return kNoPlace;
  const int32_t cond = block.slot.places[kRoleCond];
  return cond >= 0 ? cond : block.slot.places[kRoleUncond];
}
DDPM_RT_DEVICE bool is_pair(const SlotBlock& block) {
  return !has_flag(block, kNoEval) && block.slot.places[kRoleCond] >= 0 && block.slot.places[kRoleUncond] >= 0;
}
DDPM_RT_DEVICE bool has_guide(const SlotBlock& block) {
  return !has_flag(block, kNoEval) && block.slot.places[kRoleCond] >= 0 && block.slot.places[kRoleGuide] >= 0;
}
DDPM_RT_DEVICE bool rescales(const SlotBlock& block) {
  return has_flag(block, kRescale) && !has_flag(block, kNoEval) && block.slot.places[kRoleCond] >= 0;
}
DDPM_RT_DEVICE bool is_normed(const SlotBlock& block) { return has_flag(block, kNorm) && first_place(block) >= 0; }
DDPM_RT_DEVICE bool is_learned(const GpuLane& lane, const SlotBlock& block) {
  return has_flag(block, kLearnedVar | kLearnedRange) && first_place(block) >= 0 && lane.network[0].variance.data != nullptr;
}
DDPM_RT_DEVICE bool has_range(const SlotBlock& block) { return has_flag(block, kLearnedRange) && !has_flag(block, kLearnedVar); }
DDPM_RT_DEVICE bool has_gradient(const GpuLane& lane, const SlotBlock& block) {
  return has_flag(block, kGrad) && first_place(block) >= 0 && lane.network[0].grad.data != nullptr;
}

// One element of what a row computes, for the reductions, which take elements in another order than the step.
struct Element {
  const GpuLane& lane;
  const SlotBlock& block;
  uint32_t slot;

  DDPM_RT_DEVICE float of(const GpuTensor& tensor, int32_t place, uint32_t at) const {
    return load_element(tensor, element_index(tensor, lane.pixels, place, at));
  }
  DDPM_RT_DEVICE float cond(uint32_t at) const { return of(lane.network[0].out, first_place(block), at); }
  DDPM_RT_DEVICE float guided(uint32_t at) const {
    const float c = cond(at);
    float e = c;
    if (is_pair(block)) {
      e = guide(c, of(lane.network[0].out, block.slot.places[kRoleUncond], at), row_scale(block.slot.scale, block.row.gs));
    }
    if (has_guide(block)) {
      e = guide_second(e, c, of(lane.network[1].out, block.slot.places[kRoleGuide], at), block.slot.scale2);
    }
    return e;
  }
  DDPM_RT_DEVICE float e(uint32_t at) const {
    if (first_place(block) < 0) return 0.0f;
    float value = guided(at);
    if (rescales(block)) value = block.factor * value;
    if (has_gradient(lane, block) && block.row.ge != 0.0f) {
      value = add_weighted(value, block.row.ge, of(lane.network[0].grad, first_place(block), at));
    }
    return value;
  }
  // Before THRESHOLD and CLIP.
  DDPM_RT_DEVICE float raw_x0(uint32_t at) const {
    float x0 = 0.0f;
    if (block.row.p != 0.0f) x0 = add_weighted(x0, block.row.p, lane.x[slot * lane.stride + at]);
    if (block.row.q != 0.0f && first_place(block) >= 0) x0 = add_weighted(x0, block.row.q, e(at));
    return x0;
  }
  DDPM_RT_DEVICE float x0(uint32_t at) const {
    const float raw = raw_x0(at);
    if (has_flag(block, kThreshold)) return threshold(raw, block.r);
    return has_flag(block, kClip) ? clip(raw, block.row.clip_lo, block.row.clip_hi) : raw;
  }
  DDPM_RT_DEVICE float z(uint32_t at) const {
    const Words words = noise_words(block.slot.seed, at / 4, block.row.noise_index, kStreamStep);
    float first, second;
    normal_pair(at & 2 ? words.w2 : words.w0, at & 2 ? words.w3 : words.w1, &first, &second);
    return at & 1 ? second : first;
  }
  DDPM_RT_DEVICE double log_variance(uint32_t at) const {
    if (!is_learned(lane, block)) return static_cast<double>(block.row.lp);
    const float v = of(lane.network[0].variance, first_place(block), at);
    return has_range(block) ? learned_range_log_var(v, block.row.log_var_lo, block.row.log_var_hi) : static_cast<double>(v);
  }
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_CUDA_SLOT_CUH_
