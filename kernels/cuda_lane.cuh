// What surrounds the step: installing slots and their first inputs, moving on to the next row, handing results out.
#ifndef DDPM_RT_KERNELS_CUDA_LANE_CUH_
#define DDPM_RT_KERNELS_CUDA_LANE_CUH_

#include "cuda_step.cuh"

namespace ddpm_rt {

// Of the whole block: from and to are 16-byte aligned where bytes is a multiple of 16; from null: zeros.
DDPM_RT_DEVICE void copy_bytes(const void* from, void* to, uint64_t bytes, uint64_t first, uint64_t stride) {
  const bool is_wide = (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) | bytes) % 16 == 0;
  if (is_wide) {
    for (uint64_t i = first; i < bytes / 16; i += stride) {
      static_cast<uint4*>(to)[i] = from != nullptr ? static_cast<const uint4*>(from)[i] : uint4{0, 0, 0, 0};
    }
  } else {
    for (uint64_t i = first; i < bytes; i += stride) {
      static_cast<uint8_t*>(to)[i] = from != nullptr ? static_cast<const uint8_t*>(from)[i] : 0;
    }
  }
}

// t, t2, label and embedding of a place, for one role of a slot. Of the whole block.
DDPM_RT_DEVICE void write_ports(const GpuNetwork& network, const GpuSlot& slot, int role, int32_t place, uint32_t row) {
  if (place < 0) return;
  const uint64_t at = static_cast<uint64_t>(place);
  if (threadIdx.x == 0) {
    if (network.t != nullptr) network.t[at] = slot.table[row].t;
    if (network.t2 != nullptr) network.t2[at] = slot.table[row].t2;
    if (network.label != nullptr) network.label[at] = slot.label[role];
  }
  if (network.rows == nullptr || slot.rows[role] == nullptr) return;
  copy_bytes(static_cast<const uint8_t*>(slot.rows[role]) + row * network.rows_bytes,
             static_cast<uint8_t*>(network.rows) + at * network.rows_bytes, network.rows_bytes, threadIdx.x, kBlock);
}

// One block per slot.
__global__ void __launch_bounds__(kBlock) advance_kernel(const __grid_constant__ GpuLane lane) {
  __shared__ GpuSlot slot;
  GpuSlot* const kept = lane.slots + blockIdx.x;
  if (threadIdx.x == 0) slot = *kept;
  __syncthreads();
  if (!(slot.flags & kSlotActive)) return;
  const uint32_t row = slot.row + 1;
  const bool is_finished = row >= slot.row_count;
  if (threadIdx.x == 0) {
    kept->row = row;
    if (slot.table[slot.row].flags & kPush) kept->ring = (slot.ring + 2) % 3;
    if (is_finished) kept->flags = slot.flags & ~static_cast<uint32_t>(kSlotActive);
    for (int role = 0; role < kRoles; ++role) kept->places[role] = is_finished ? kNoPlace : slot.next[role];
  }
  if (is_finished) return;
  for (int role = 0; role < kRoles; ++role) write_ports(lane.network[role == kRoleGuide], slot, role, slot.next[role], row);
}

// One block per install: the slot itself and what its places say.
__global__ void __launch_bounds__(kBlock) install_kernel(const __grid_constant__ GpuLane lane, const GpuInstall* installs) {
  const GpuInstall& install = installs[blockIdx.x];
  const GpuSlot& slot = install.value;
  if (threadIdx.x == 0) {
    lane.slots[install.slot] = slot;
    if (install.apply & kApplyBegin) lane.status[install.slot] = 0;
  }
  if (!(install.apply & kApplyPlace)) return;
  for (int role = 0; role < kRoles; ++role) {
    write_ports(lane.network[role == kRoleGuide], slot, role, slot.places[role], slot.row);
  }
}

// A share of elements per thread, an install per blockIdx.y: x_T, zero registers, first inputs.
template <typename Access>
__global__ void __launch_bounds__(kBlock) begin_kernel(const __grid_constant__ GpuLane lane, const GpuInstall* installs) {
  constexpr bool kIsVector = Access::kIsVector;
  const GpuInstall& install = installs[blockIdx.y];
  const GpuSlot& slot = install.value;
  const uint32_t share = blockIdx.x * kBlock + threadIdx.x, n = lane.channels * lane.pixels;
  if (share >= Access::shares(lane) || install.apply == 0) return;
  const uint64_t base = install.slot * lane.stride;
  const float c_in = slot.table[slot.row].c_in;
  float in[Access::kFours][4];
  DDPM_RT_UNROLL for (int run = 0; run < Access::kFours; ++run) {
    const uint32_t at = Access::canonical(lane, share, run);
    float x[4];
    if (install.apply & kApplyBegin) {
      if (install.start != nullptr) {
        load_canonical<kIsVector>(install.start, at, n, x);
      } else {
        four_normals(slot.seed, at / 4, 0, kStreamInit, x);
      }
      for (int m = 0; m < 4; ++m) x[m] = install.sigma * x[m];
      store_canonical<kIsVector>(lane.x + base, at, n, x);
      const float zero[4] = {};
      float* const registers[5] = {lane.history[0], lane.history[1], lane.history[2], lane.anchor, lane.preview};
      for (float* one : registers) {
        if (one != nullptr) store_canonical<kIsVector>(one + base, at, n, zero);
      }
    } else {
      load_canonical<kIsVector>(lane.x + base, at, n, x);
    }
    for (int m = 0; m < 4; ++m) in[run][m] = c_in * x[m];
  }
  if (!(install.apply & kApplyPlace)) return;
  for (int role = 0; role < kRoles; ++role) {
    const int32_t place = slot.places[role];
    if (place >= 0) store_share<Access>(lane, lane.network[role == kRoleGuide].in, place, share, in);
  }
}

DDPM_RT_DEVICE uint64_t element_bytes(const GpuTensor& tensor) { return tensor.type == kGpuF32 ? 4 : 2; }

// Many blocks per place (blockIdx.y).
__global__ void __launch_bounds__(kBlock) padding_kernel(const __grid_constant__ GpuLane lane, const GpuPadding* padding) {
  const GpuPadding& entry = padding[blockIdx.y];
  const GpuNetwork& network = lane.network[entry.network == 0 ? 0 : 1];
  const uint64_t place = static_cast<uint64_t>(entry.place), thread = blockIdx.x * kBlock + threadIdx.x;
  const uint64_t row = network.in.row * element_bytes(network.in);
  copy_bytes(nullptr, static_cast<uint8_t*>(network.in.data) + place * row, row, thread, gridDim.x * kBlock);
  if (network.rows != nullptr) {
    copy_bytes(nullptr, static_cast<uint8_t*>(network.rows) + place * network.rows_bytes, network.rows_bytes, thread,
               gridDim.x * kBlock);
  }
  if (thread != 0) return;
  if (network.t != nullptr) network.t[place] = 0.0f;
  if (network.t2 != nullptr) network.t2[place] = 0.0f;
  if (network.label != nullptr) network.label[place] = 0;
}

__global__ void __launch_bounds__(kBlock) copy_kernel(const GpuCopy* copies) {
  const GpuCopy& copy = copies[blockIdx.y];
  copy_bytes(copy.from, copy.to, copy.bytes, blockIdx.x * kBlock + threadIdx.x, gridDim.x * kBlock);
}

// A thread per element of the result, a result per blockIdx.y.
__global__ void __launch_bounds__(kBlock) finish_kernel(const __grid_constant__ GpuLane lane, const GpuFinish* items) {
  const GpuFinish& item = items[blockIdx.y];
  const uint32_t i = blockIdx.x * kBlock + threadIdx.x;
  if (i >= lane.channels * lane.pixels) return;
  const float* x = lane.x + item.slot * lane.stride;
  const uint32_t pixel = i / lane.channels, channel = i - pixel * lane.channels;
  const float value = item.format == kFinishFloat ? x[i] : x[channel * lane.pixels + pixel];
  if (nonfinite_bits(value) != 0) atomicOr(&lane.status[item.slot], static_cast<uint32_t>(kStatusNonfinite));
  if (item.format == kFinishFloat) {
    static_cast<float*>(item.out)[i] = value;
  } else {
    static_cast<uint8_t*>(item.out)[i] = quantise(value, item.lo, uint8_scale(item.lo, item.hi), item.format == kFinishTruncated);
  }
}

__global__ void __launch_bounds__(kBlock) report_kernel(const __grid_constant__ GpuLane lane, const GpuFinish* items,
                                                        uint32_t count) {
  const uint32_t i = blockIdx.x * kBlock + threadIdx.x;
  if (i < count && items[i].status != nullptr) *items[i].status = lane.status[items[i].slot];
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_CUDA_LANE_CUH_
