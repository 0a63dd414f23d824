// Launchers of step_gpu.h. Build with -fmad=false -prec-sqrt=true -prec-div=true -ftz=false: each product and sum rounds
// by itself, as on the CPU.
#include "cuda_launch.cuh"
#include "cuda_lane.cuh"
#include "cuda_pieces.cuh"
#include "cuda_reduce.cuh"
#include "cuda_step.cuh"

namespace ddpm_rt {
namespace {

constexpr int kRefused = 1;  // cudaErrorInvalidValue

uint32_t blocks_for(uint64_t threads) { return static_cast<uint32_t>((threads + kBlock - 1) / kBlock); }

bool is_aligned(const void* data, uint64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

enum class AccessKind { kPlanar, kPixelsOfThree, kPixelsOfFours, kElements };

// Whether a thread can take four neighbours of this list at once under the access.
bool allows(AccessKind access, const GpuLane& lane, const GpuTensor& tensor) {
  if (tensor.data == nullptr) return true;
  if (tensor.row % 4 != 0 || !is_aligned(tensor.data, tensor.type == kGpuF32 ? 16 : 8)) return false;
  if (access == AccessKind::kPlanar) {
    return tensor.layout == kGpuNchw || (lane.channels == 1 && tensor.channels == 1) || (lane.pixels == 1);
  }
  if (tensor.layout != kGpuNhwc) return false;
  return access == AccessKind::kPixelsOfThree ? tensor.channels == 3 : tensor.channels % 4 == 0;
}

AccessKind access_of(const GpuLane& lane, bool reads_rare) {
  const float* const registers[6] = {lane.x, lane.history[0], lane.history[1], lane.history[2], lane.anchor, lane.preview};
  bool is_wide = lane.stride % 4 == 0 && (lane.channels * lane.pixels) % 4 == 0;
  for (const float* one : registers) is_wide = is_wide && is_aligned(one, 16);
  if (!is_wide) return AccessKind::kElements;
  const auto all_allow = [&](AccessKind access) {
    bool allowed = true;
    for (const GpuNetwork& network : lane.network) {
      allowed = allowed && allows(access, lane, network.in) && allows(access, lane, network.out);
      if (reads_rare) allowed = allowed && allows(access, lane, network.variance) && allows(access, lane, network.grad);
    }
    return allowed;
  };
  if (all_allow(AccessKind::kPlanar)) return AccessKind::kPlanar;
  if (lane.pixels % 4 != 0 || reads_rare) return AccessKind::kElements;
  if (lane.channels == 3 && all_allow(AccessKind::kPixelsOfThree)) return AccessKind::kPixelsOfThree;
  if (lane.channels % 4 == 0 && all_allow(AccessKind::kPixelsOfFours)) return AccessKind::kPixelsOfFours;
  return AccessKind::kElements;
}

// One share per thread until there are blocks enough for any GPU; then more, so that a block's first reads (slot, row)
// are paid for by more elements.
dim3 step_grid(uint32_t shares, uint32_t slot_count) {
  constexpr uint32_t kEnoughBlocks = 2048, kMostShares = 4;
  const uint32_t blocks = blocks_for(shares);
  const bool has_enough = static_cast<uint64_t>(blocks) * slot_count >= kEnoughBlocks * kMostShares;
  return dim3(has_enough ? (blocks + kMostShares - 1) / kMostShares : blocks, slot_count);
}

template <typename Access>
int launch_variant(const GpuLane& lane, uint32_t needs, void* stream) {
  const dim3 grid = step_grid(Access::shares(lane), lane.slot_count);
#define DDPM_RT_LAUNCH_VARIANT(name, covered)                                                       \
  if constexpr (!((covered) & kNeedRare) || Access::kFours == 1) {                                  \
    if ((needs & ~kNeedReductions & ~static_cast<uint32_t>(covered)) == 0) {                        \
      return launch(step_kernel<Access, (covered)>, grid, dim3(kBlock), stream, lane, needs);       \
    }                                                                                               \
  }
  DDPM_RT_STEP_VARIANTS(DDPM_RT_LAUNCH_VARIANT)
#undef DDPM_RT_LAUNCH_VARIANT
  return kRefused;
}

int launch_reductions(const GpuLane& lane, uint32_t needs, void* stream) {
  const uint32_t n = lane.channels * lane.pixels;
  const Scratch scratch = scratch_of(lane.scratch, lane.slot_count, n);
  const dim3 grid(scratch.chunks, lane.slot_count), block(kBlock);
  int status = 0;
  if (needs & kNeedRescale) status = launch(rescale_kernel, grid, block, stream, lane, scratch);
  if (status == 0 && (needs & kNeedNorm)) status = launch(norm_kernel, grid, block, stream, lane, scratch);
  if (needs & kNeedThreshold) {
    const uint32_t blocks = (n + kSelectElements - 1) / kSelectElements;
    const dim3 select_grid(blocks, lane.slot_count);
    for (int pass = 0; pass < kSelectPasses && status == 0; pass = blocks == 1 ? kSelectPasses : pass + 1) {
      const int last = blocks == 1 ? kSelectPasses - 1 : pass;
      status = launch(select_kernel, select_grid, block, stream, lane, scratch, pass, last);
    }
  }
  if (status == 0 && (needs & kNeedVlb)) status = launch(vlb_kernel, grid, block, stream, lane, scratch);
  return status;
}

}  // namespace

uint64_t gpu_scratch_bytes(uint32_t slot_count, uint64_t elements) {
  return slot_count * (sizeof(SlotScratch) + chunks_of(elements) * kSums * sizeof(double));
}

int launch_step(const GpuLane& lane, uint32_t needs, void* stream) {
  if (lane.slot_count == 0 || lane.channels == 0 || lane.pixels == 0) return 0;
  if (needs & kNeedReductions) {
    if (lane.scratch == nullptr) return kRefused;
    const int status = launch_reductions(lane, needs, stream);
    if (status != 0) return status;
    needs |= kNeedRare;
  }
  switch (access_of(lane, (needs & kNeedRare) != 0)) {
    case AccessKind::kPlanar: return launch_variant<PlanarAccess>(lane, needs, stream);
    case AccessKind::kPixelsOfThree: return launch_variant<PixelsOfThree>(lane, needs, stream);
    case AccessKind::kPixelsOfFours: return launch_variant<PixelsOfFours>(lane, needs, stream);
    case AccessKind::kElements: break;
  }
  const dim3 grid = step_grid(ElementAccess::shares(lane), lane.slot_count);
  constexpr uint32_t kAll = kNeedPair | kNeedNoise | kNeedRegisters | kNeedRare;
  return launch(step_kernel<ElementAccess, kAll>, grid, dim3(kBlock), stream, lane, needs);
}

int launch_advance(const GpuLane& lane, void* stream) {
  return lane.slot_count == 0 ? 0 : launch(advance_kernel, dim3(lane.slot_count), dim3(kBlock), stream, lane);
}

int launch_apply(const GpuLane& lane, const GpuPacket& packet, void* stream) {
  constexpr uint32_t kMostBlocks = 256;  // per place or copy
  int status = 0;
  if (packet.copy_count > 0) {
    status = launch(copy_kernel, dim3(kMostBlocks, packet.copy_count), dim3(kBlock), stream, packet.copies);
  }
  if (status == 0 && packet.padding_count > 0) {
    const uint32_t blocks = blocks_for(lane.network[0].in.row / 4);
    const dim3 grid(blocks < 1 ? 1 : blocks < kMostBlocks ? blocks : kMostBlocks, packet.padding_count);
    status = launch(padding_kernel, grid, dim3(kBlock), stream, lane, packet.padding);
  }
  if (status != 0 || packet.install_count == 0) return status;
  status = launch(install_kernel, dim3(packet.install_count), dim3(kBlock), stream, lane, packet.installs);
  if (status != 0) return status;
  const auto begin = [&](auto access) {
    using Access = decltype(access);
    const dim3 grid(blocks_for(Access::shares(lane)), packet.install_count);
    return launch(begin_kernel<Access>, grid, dim3(kBlock), stream, lane, packet.installs);
  };
  switch (access_of(lane, false)) {
    case AccessKind::kPlanar: return begin(PlanarAccess{});
    case AccessKind::kPixelsOfThree: return begin(PixelsOfThree{});
    case AccessKind::kPixelsOfFours: return begin(PixelsOfFours{});
    case AccessKind::kElements: break;
  }
  return begin(ElementAccess{});
}

int launch_finish(const GpuLane& lane, const GpuFinish* items, uint32_t count, void* stream) {
  if (count == 0) return 0;
  const dim3 grid(blocks_for(lane.channels * lane.pixels), count);
  const int status = launch(finish_kernel, grid, dim3(kBlock), stream, lane, items);
  return status != 0 ? status : launch(report_kernel, dim3(blocks_for(count)), dim3(kBlock), stream, lane, items, count);
}

int launch_normals(uint64_t seed, uint32_t noise_index, uint32_t noise_stream, uint64_t first, uint64_t count, float* out,
                   void* stream) {
  if (count == 0) return 0;
  const uint64_t shares = (first + count + 3) / 4 - first / 4;
  return launch(normals_kernel, dim3(blocks_for(shares)), dim3(kBlock), stream, seed, noise_index, noise_stream, first,
                count, out);
}

int launch_cfg_combine(const void* cond, const void* uncond, const float* scale, float phi, GpuType type, uint32_t count,
                       uint64_t elements, void* out, void* scratch, void* stream) {
  if (count == 0 || elements == 0) return 0;
  if (elements > 0x7FFFFFFF || count > 65535 || (phi != 0.0f && scratch == nullptr)) return kRefused;
  const uint32_t n = static_cast<uint32_t>(elements);
  const auto list = [&](const void* data) { return GpuTensor{const_cast<void*>(data), type, kGpuNchw, 1, elements}; };
  const Combine combine{list(cond), list(uncond), list(out), scale, phi};
  const SlotScratch* factors = nullptr;
  if (phi != 0.0f) {
    const Scratch own = scratch_of(scratch, count, elements);
    const int status = launch(combine_spread_kernel, dim3(own.chunks, count), dim3(kBlock), stream, combine, n, own);
    if (status != 0) return status;
    factors = own.slots;
  }
  const uint64_t wide = type == kGpuF32 ? 16 : 8;
  const bool is_vector = n % 4 == 0 && is_aligned(cond, wide) && is_aligned(uncond, wide) && is_aligned(out, wide);
  const dim3 grid(blocks_for((elements + 3) / 4), count);
  return is_vector ? launch(combine_kernel<true>, grid, dim3(kBlock), stream, combine, n, factors)
                   : launch(combine_kernel<false>, grid, dim3(kBlock), stream, combine, n, factors);
}

int launch_gaussian_mixture(const GpuMixture& mixture, const GpuNetwork& network, uint64_t elements, int32_t first,
                            uint32_t count, void* stream) {
  if (count == 0) return 0;
  const bool is_planar = network.in.type == kGpuF32 && network.out.type == kGpuF32 && network.in.layout == kGpuNchw &&
                         network.out.layout == kGpuNchw;
  if (!is_planar || mixture.components == 0 || mixture.components > kMostComponents || elements > 0x7FFFFFFF) return kRefused;
  return launch(mixture_kernel, dim3(count), dim3(kBlock), stream, mixture, network, static_cast<uint32_t>(elements), first);
}

}  // namespace ddpm_rt
