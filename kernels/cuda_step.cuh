// The step: one pass over a slot's sample. A thread reads everything that its elements need before it writes any of them.
#ifndef DDPM_RT_KERNELS_CUDA_STEP_CUH_
#define DDPM_RT_KERNELS_CUDA_STEP_CUH_

#include "cuda_slot.cuh"

namespace ddpm_rt {

// Compile-time variants: what a kernel can do. launch_step takes the first that covers `needs`; rows are branched on
// within, so that every variant gives a row the same bits. X(name, needs)
#define DDPM_RT_STEP_VARIANTS(X)                                        \
  X(Plain, 0)                                                           \
  X(Noise, kNeedNoise)                                                  \
  X(Pair, kNeedPair)                                                    \
  X(PairNoise, kNeedPair | kNeedNoise)                                  \
  X(Registers, kNeedPair | kNeedNoise | kNeedRegisters)                 \
  X(Rare, kNeedPair | kNeedNoise | kNeedRegisters | kNeedRare)

DDPM_RT_DEVICE void four_normals(uint64_t seed, uint32_t block, uint32_t noise_index, uint32_t stream, float (&z)[4]) {
  const Words words = noise_words(seed, block, noise_index, stream);
  normal_pair(words.w0, words.w1, &z[0], &z[1]);
  normal_pair(words.w2, words.w3, &z[2], &z[3]);
}

DDPM_RT_DEVICE void add_four(float (&sum)[4], float weight, const float (&operand)[4]) {
  if (weight == 0.0f) return;
  for (int m = 0; m < 4; ++m) sum[m] = add_weighted(sum[m], weight, operand[m]);
}

// What only rare rows read of their evaluations, for a thread's share.
template <typename Access>
struct RareShare {
  float second[Access::kFours][4] = {}, grad[Access::kFours][4] = {}, variance[Access::kFours][4] = {};

  DDPM_RT_DEVICE void load(const GpuLane& lane, const SlotBlock& block, uint32_t share) {
    Share<Access> raw;
    const auto read = [&](bool is_read, const GpuTensor& tensor, int32_t place, float (&values)[Access::kFours][4]) {
      if (is_read) raw.load(lane, tensor, place, share);
      if (is_read) raw.decode_into(tensor, values);
    };
    const StepRow& row = block.row;
    read(has_guide(block), lane.network[1].out, block.slot.places[kRoleGuide], second);
    read(has_gradient(lane, block) && (row.ge != 0.0f || row.gm != 0.0f), lane.network[0].grad, first_place(block), grad);
    read(is_learned(lane, block) && (row.wx[kZ] != 0.0f || row.gm != 0.0f), lane.network[0].variance, first_place(block),
         variance);
  }
};

// RESCALE, GRAD and the second guide's part of e.
DDPM_RT_DEVICE void finish_e(const GpuLane& lane, const SlotBlock& block, const float (&cond)[4], const float (&second)[4],
                             const float (&grad)[4], float (&e)[4]) {
  if (has_guide(block)) {
    for (int m = 0; m < 4; ++m) e[m] = guide_second(e[m], cond[m], second[m], block.slot.scale2);
  }
  if (rescales(block)) {
    for (int m = 0; m < 4; ++m) e[m] = block.factor * e[m];
  }
  if (has_gradient(lane, block)) add_four(e, block.row.ge, grad);
}

// GRAD and BLEND of x'.
template <bool kIsVector>
DDPM_RT_DEVICE void finish_state(const GpuLane& lane, const SlotBlock& block, uint32_t at, uint32_t n,
                                 const float (&grad)[4], const float (&std)[4], float (&x_new)[4]) {
  const StepRow& row = block.row;
  if (has_gradient(lane, block) && row.gm != 0.0f) {
    for (int m = 0; m < 4; ++m) x_new[m] = add_gradient(x_new[m], row.gm, std[m], grad[m]);
  }
  if (!has_flag(block, kBlend) || block.slot.mask == nullptr) return;
  float mask[4], known[4] = {}, z_known[4] = {};
  load_canonical<kIsVector>(block.slot.mask, at, n, mask);
  if (row.ky != 0.0f && block.slot.known != nullptr) load_canonical<kIsVector>(block.slot.known, at, n, known);
  if (row.kz != 0.0f) four_normals(block.slot.seed, at / 4, row.noise_index, kStreamKnown, z_known);
  for (int m = 0; m < 4; ++m) x_new[m] = blend(mask[m], known[m], z_known[m], row.ky, row.kz, x_new[m]);
}

DDPM_RT_DEVICE uint32_t nonfinite_of(const float (&values)[4]) {
  uint32_t bad = 0;
  for (int m = 0; m < 4; ++m) bad |= nonfinite_bits(values[m]);
  return bad;
}

// One run of four elements, from its network outputs to the value of its next input. Returns whether anything was not
// finite: any bit.
template <typename Access, uint32_t kNeeds>
DDPM_RT_DEVICE uint32_t step_four(const GpuLane& lane, const SlotBlock& block, uint32_t slot, uint32_t at,
                                  const float (&x)[4], const float (&cond)[4], const float (&uncond)[4],
                                  const float (&second)[4], const float (&grad)[4], const float (&variance)[4],
                                  float (&in)[4]) {
  constexpr bool kIsVector = Access::kIsVector;
  constexpr bool kIsRare = (kNeeds & kNeedRare) != 0;
  const StepRow& row = block.row;
  const uint32_t n = lane.channels * lane.pixels;
  const uint64_t base = slot * lane.stride;
  const bool has_e = first_place(block) >= 0;
  const bool pushes = (kNeeds & kNeedRegisters) != 0 && has_flag(block, kPush) && lane.history[0] != nullptr;
  const bool keeps = (kNeeds & kNeedRegisters) != 0 && has_flag(block, kKeep) && lane.anchor != nullptr;

  // Load.
  float h[3][4] = {}, y[4] = {};
  if (kNeeds & kNeedRegisters) {
    for (uint32_t k = 0; k < 3; ++k) {
      const float* stored = lane.history[(block.slot.ring + k) % 3];
      if (stored == nullptr || (row.wx[kH1 + k] == 0.0f && !(keeps && row.wy[kH1 + k] != 0.0f))) continue;
      load_canonical<kIsVector>(stored + base, at, n, h[k]);
    }
    if (lane.anchor != nullptr && (row.wx[kY] != 0.0f || (keeps && row.wy[kY] != 0.0f))) {
      load_canonical<kIsVector>(lane.anchor + base, at, n, y);
    }
  }

  // Compute.
  float e[4] = {};
  if (has_e) {
    const float s_row = row_scale(block.slot.scale, row.gs);
    const bool guides = (kNeeds & kNeedPair) != 0 && is_pair(block);
    for (int m = 0; m < 4; ++m) e[m] = guides ? guide(cond[m], uncond[m], s_row) : cond[m];
    if (kIsRare) finish_e(lane, block, cond, second, grad, e);
  }
  uint32_t bad = nonfinite_of(e);
  float x0[4] = {};
  add_four(x0, row.p, x);
  if (has_e) add_four(x0, row.q, e);
  if (kIsRare && has_flag(block, kThreshold)) {
    for (int m = 0; m < 4; ++m) x0[m] = threshold(x0[m], block.r);
  } else if (has_flag(block, kClip)) {
    for (int m = 0; m < 4; ++m) x0[m] = clip(x0[m], row.clip_lo, row.clip_hi);
  }
  const bool is_normed_row = kIsRare && is_normed(block);
  float x_new[4] = {};
  add_four(x_new, row.wx[kX], x);
  if (has_e) add_four(x_new, is_normed_row ? block.norm.e : row.wx[kE], e);
  add_four(x_new, row.wx[kX0], x0);
  if (kNeeds & kNeedRegisters) {
    for (int k = 0; k < 3; ++k) add_four(x_new, row.wx[kH1 + k], h[k]);
    add_four(x_new, row.wx[kY], y);
  }
  float std[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  if (kIsRare && is_learned(lane, block) && (row.wx[kZ] != 0.0f || row.gm != 0.0f)) {
    for (int m = 0; m < 4; ++m) {
      std[m] = has_range(block) ? learned_range_std(variance[m], row.log_var_lo, row.log_var_hi) : learned_std(variance[m]);
    }
  }
  const float weight_z = is_normed_row ? block.norm.z : row.wx[kZ];
  if ((kNeeds & kNeedNoise) && weight_z != 0.0f) {
    float z[4];
    four_normals(block.slot.seed, at / 4, row.noise_index, kStreamStep, z);
    if (kIsRare && is_learned(lane, block)) {
      for (int m = 0; m < 4; ++m) z[m] = std[m] * z[m];
    }
    add_four(x_new, weight_z, z);
  }
  if (kIsRare) finish_state<kIsVector>(lane, block, at, n, grad, std, x_new);
  if (kIsRare && has_flag(block, kRareFlags)) bad |= nonfinite_of(x_new);

  // Store.
  if (keeps) {
    float y_new[4] = {};
    add_four(y_new, row.wy[kX], x);
    if (has_e) add_four(y_new, row.wy[kE], e);
    add_four(y_new, row.wy[kX0], x0);
    for (int k = 0; k < 3; ++k) add_four(y_new, row.wy[kH1 + k], h[k]);
    add_four(y_new, row.wy[kY], y);
    store_canonical<kIsVector>(lane.anchor + base, at, n, y_new);
  }
  if (pushes) {
    float pushed[4] = {};
    add_four(pushed, row.wh[kX], x);
    if (has_e) add_four(pushed, row.wh[kE], e);
    add_four(pushed, row.wh[kX0], x0);
    store_canonical<kIsVector>(lane.history[(block.slot.ring + 2) % 3] + base, at, n, pushed);
  }
  if ((kNeeds & kNeedRegisters) && (block.slot.flags & kSlotPreview) && lane.preview != nullptr) {
    store_canonical<kIsVector>(lane.preview + base, at, n, x0);
  }
  store_canonical<kIsVector>(lane.x + base, at, n, x_new);
  for (int m = 0; m < 4; ++m) in[m] = block.c_in * x_new[m];
  return bad;
}

// A thread's share. Returns whether anything was not finite: any bit.
template <typename Access, uint32_t kNeeds>
DDPM_RT_DEVICE uint32_t step_share(const GpuLane& lane, const SlotBlock& block, uint32_t slot, uint32_t share) {
  constexpr int kFours = Access::kFours;
  const GpuTensor& out = lane.network[0].out;
  const int32_t first = first_place(block);
  const bool guides = (kNeeds & kNeedPair) != 0 && is_pair(block);
  Share<Access> raw_cond, raw_uncond;
  float cond[kFours][4] = {}, uncond[kFours][4] = {};
  if (first >= 0) raw_cond.load(lane, out, first, share);
  if (guides) raw_uncond.load(lane, out, block.slot.places[kRoleUncond], share);
  float x[kFours][4];  // before anything is decoded, which waits for what was loaded
  DDPM_RT_UNROLL for (int run = 0; run < kFours; ++run) {
    const uint32_t at = Access::canonical(lane, share, run);
    load_canonical<Access::kIsVector>(lane.x + slot * lane.stride, at, lane.channels * lane.pixels, x[run]);
  }
  if (first >= 0) raw_cond.decode_into(out, cond);
  if (guides) raw_uncond.decode_into(out, uncond);
  RareShare<Access> rare;
  if (kNeeds & kNeedRare) rare.load(lane, block, share);

  float in[kFours][4];
  uint32_t bad = 0;
  DDPM_RT_UNROLL for (int run = 0; run < kFours; ++run) {
    bad |= step_four<Access, kNeeds>(lane, block, slot, Access::canonical(lane, share, run), x[run], cond[run],
                                     uncond[run], rare.second[run], rare.grad[run], rare.variance[run], in[run]);
  }
  if (has_flag(block, kLast) || block.slot.row + 1 >= block.slot.row_count) return bad;
  for (int role = 0; role < kRoles; ++role) {
    const int32_t place = block.slot.next[role];
    if (place >= 0) store_share<Access>(lane, lane.network[role == kRoleGuide].in, place, share, in);
  }
  return bad;
}

// A slot per blockIdx.y; what its blocks are told to do is `told`, so that a row that needs more is found out.
template <typename Access, uint32_t kNeeds>
__global__ void __launch_bounds__(kBlock) step_kernel(const __grid_constant__ GpuLane lane, uint32_t told) {
  __shared__ SlotBlock block;
  const uint32_t slot = blockIdx.y;
  if (!load_slot(lane, slot, &block)) return;
  if (threadIdx.x == 0 && blockIdx.x == 0) {
    const uint32_t needs = gpu_needs(block.row, is_pair(block), has_guide(block), (block.slot.flags & kSlotPreview) != 0);
    if ((needs & ~told) != 0) atomicOr(&lane.status[slot], static_cast<uint32_t>(kStatusNeeds));
  }
  const uint32_t shares = Access::shares(lane);
  uint32_t bad = 0;
  for (uint32_t share = blockIdx.x * kBlock + threadIdx.x; share < shares; share += gridDim.x * kBlock) {
    bad |= step_share<Access, kNeeds>(lane, block, slot, share);
  }
  if (bad != 0) atomicOr(&lane.status[slot], static_cast<uint32_t>(kStatusNonfinite));
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_CUDA_STEP_CUH_
