#include "gpu_kernels.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "request.h"

namespace ddpm_rt {
namespace {

// Outputs of two calls of a network as the one packed list that the kernels read: its base, its row, and the places at which
// each call's samples begin. A row is the greatest length that divides both the sample and the distance of the two.
struct PackedOutputs {
  uintptr_t base = 0;
  uint64_t row = 0, places = 0;  // places: of one sample
  uint64_t cond = 0, uncond = 0;
};

PackedOutputs packed(const void* cond, const void* uncond, uint64_t elements, size_t count, size_t bytes) {
  const uintptr_t c = reinterpret_cast<uintptr_t>(cond), u = reinterpret_cast<uintptr_t>(uncond);
  PackedOutputs list;
  list.base = cond == nullptr ? u : uncond == nullptr ? c : std::min(c, u);
  const uint64_t apart = cond == nullptr || uncond == nullptr ? 0 : std::max(c, u) - list.base;
  if (apart % bytes != 0) throw Error(Code::kOption, "eps_uncond: expected the alignment of its elements, got another");
  list.row = std::gcd(elements, apart / bytes);
  list.places = elements / list.row;
  if (cond != nullptr) list.cond = (c - list.base) / bytes / list.row;
  if (uncond != nullptr) list.uncond = (u - list.base) / bytes / list.row;
  if (std::max(list.cond, list.uncond) + count * list.places > 0x7FFFFFFF) {
    throw Error(Code::kOption, "eps_uncond: expected memory less than 2^31 rows of " + std::to_string(list.row) +
                                   " elements from eps, got it further: let both be parts of one tensor");
  }
  return list;
}

}  // namespace

DeviceKernels::~DeviceKernels() {
  try {
    const DeviceScope scope(*device_);
    workspaces_.clear();
  } catch (const Error&) {  // the driver is gone, and its memory with it
  }
}

DeviceKernels::Workspace& DeviceKernels::workspace_of(void* stream) {
  for (auto it = workspaces_.begin(); it != workspaces_.end(); ++it) {
    if (it->stream != stream) continue;
    workspaces_.splice(workspaces_.begin(), workspaces_, it);
    return workspaces_.front();
  }
  if (workspaces_.size() == kMostStreams) workspaces_.pop_back();
  Workspace made;
  made.stream = stream;
  for (Packet& packet : made.packets) packet.copied = DeviceEvent(device_, false);
  workspaces_.push_front(std::move(made));
  return workspaces_.front();
}

void* DeviceKernels::packet_of(Workspace& workspace, size_t bytes) {
  if (workspace.packet.bytes() < bytes) workspace.packet = DeviceBuffer(device_, 2 * bytes, "a packet of the kernels");
  return workspace.packet.as<void>();
}

void* DeviceKernels::send(Workspace& workspace, const void* data, size_t bytes) {
  Packet& packet = workspace.packets[workspace.next];
  workspace.next = (workspace.next + 1) % kPackets;
  if (packet.host) packet.copied.synchronize();
  if (packet.host.bytes() < bytes) packet.host = PinnedBuffer(device_, 2 * bytes, "a packet of the kernels");
  std::memcpy(packet.host.as<char>(), data, bytes);
  const DeviceApi& api = device_->api();
  void* to = packet_of(workspace, bytes);
  device_->check(api.copy(to, packet.host.as<char>(), bytes, DeviceCopy::kToDevice, workspace.stream), "copy of a packet");
  device_->check(api.record_event(packet.copied.get(), workspace.stream), "record_event");
  return to;
}

void* DeviceKernels::scratch_of(Workspace& workspace, uint32_t count, uint64_t elements) {
  if (workspace.scratch && workspace.scratch_count == count && workspace.scratch_elements == elements) {
    return workspace.scratch.as<void>();
  }
  const uint64_t bytes = device_->api().scratch_bytes(count, elements);
  if (workspace.scratch.bytes() < bytes) workspace.scratch = DeviceBuffer(device_, bytes, "the kernels' sums");
  device_->check(device_->api().fill(workspace.scratch.as<void>(), 0, bytes, workspace.stream), "fill");
  workspace.scratch_count = count;
  workspace.scratch_elements = elements;
  return workspace.scratch.as<void>();
}

void DeviceKernels::step(const DeviceStep& step) {
  const ddpm_rt_device_step_call& call = step.call;
  const ddpm_rt_step_operands& rare = step.operands;
  const auto count = static_cast<uint32_t>(call.count);
  const uint64_t elements = call.channels * call.pixels;
  const auto type = static_cast<GpuType>(call.eps_type);
  const GpuLayout layout = call.channels_last != 0 ? kGpuNhwc : kGpuNchw;
  const auto channels = static_cast<uint32_t>(call.channels);
  const bool has_e = !(step.row.flags & kNoEval), has_guide = has_e && rare.guide != nullptr;
  const auto scale = static_cast<float>(call.scale);
  // As the engine: one network alone where s_row is exactly 1 or 0.
  Evaluated need = evaluated(step.row, scale, true);
  if (call.eps_uncond == nullptr) need.uncond = false;
  if (call.eps_uncond == nullptr || rare.guide != nullptr) need.cond = has_e;
  const bool is_cond = has_e && need.cond, is_uncond = has_e && need.uncond;

  const PackedOutputs list = packed(is_cond ? call.eps : nullptr, is_uncond ? call.eps_uncond : nullptr, elements, call.count,
                                    bytes_of(type));
  const uint64_t first = is_cond ? list.cond : list.uncond;  // place of the first sample's first evaluation
  // An output that lies apart, as a list whose places are those of the evaluation it belongs to.
  const auto beside = [&](const void* data) {
    const uintptr_t moved = reinterpret_cast<uintptr_t>(data) - first * list.row * bytes_of(type);
    return GpuTensor{data != nullptr ? reinterpret_cast<void*>(moved) : nullptr, type, layout, channels, list.row};
  };
  GpuLane lane{};
  lane.slot_count = count;
  lane.channels = channels;
  lane.pixels = static_cast<uint32_t>(call.pixels);
  lane.stride = elements;
  lane.x = call.x;
  for (size_t k = 0; call.history != nullptr && k < 3; ++k) lane.history[k] = call.history + k * call.count * elements;
  lane.anchor = call.anchor;
  lane.preview = call.x0;
  lane.network[0].in = {call.in, kGpuF32, kGpuNchw, channels, elements};
  if (has_e) lane.network[0].out = {reinterpret_cast<void*>(list.base), type, layout, channels, list.row};
  lane.network[0].variance = beside(rare.variance);
  lane.network[0].grad = beside(rare.grad);
  if (has_guide) lane.network[1].out = {const_cast<float*>(rare.guide), type, layout, channels, elements};

  const uint32_t needs = gpu_needs(step.row, is_cond && is_uncond, has_guide, lane.preview != nullptr);
  const bool has_in = call.in != nullptr && step.has_next;
  std::vector<char> data(2 * sizeof(StepRow) + count * sizeof(GpuSlot));
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceScope scope(*device_);
  Workspace& workspace = workspace_of(call.stream);
  char* const at = static_cast<char*>(packet_of(workspace, data.size()));  // where send will copy it
  std::memcpy(data.data(), &step.row, sizeof step.row);
  std::memcpy(data.data() + sizeof(StepRow), &step.next, sizeof step.next);
  for (uint32_t i = 0; i < count; ++i) {
    GpuSlot slot{};
    slot.table = reinterpret_cast<const StepRow*>(at);
    slot.row_count = step.has_next ? 2 : 1;
    slot.ring = call.ring;
    slot.flags = kSlotActive | (lane.preview != nullptr ? kSlotPreview : 0u);
    slot.seed = call.seeds != nullptr ? call.seeds[i] : 0;
    slot.scale = scale;
    slot.scale2 = static_cast<float>(rare.scale2);
    for (int role = 0; role < kRoles; ++role) slot.places[role] = slot.next[role] = kNoPlace;
    if (is_cond) slot.places[kRoleCond] = static_cast<int32_t>(list.cond + i * list.places);
    if (is_uncond) slot.places[kRoleUncond] = static_cast<int32_t>(list.uncond + i * list.places);
    if (has_guide) slot.places[kRoleGuide] = static_cast<int32_t>(i);
    if (has_in) slot.next[kRoleCond] = static_cast<int32_t>(i);
    const auto part = [&](const float* all) { return all != nullptr ? all + i * elements : nullptr; };
    slot.known = part(rare.known);
    slot.mask = part(rare.mask);
    slot.x0_true = part(rare.x0_true);
    slot.kl = rare.kl != nullptr ? rare.kl + i : nullptr;
    std::memcpy(data.data() + 2 * sizeof(StepRow) + i * sizeof(GpuSlot), &slot, sizeof slot);
  }
  send(workspace, data.data(), data.size());
  lane.slots = reinterpret_cast<GpuSlot*>(at + 2 * sizeof(StepRow));
  if (workspace.status.bytes() < count * sizeof(uint32_t)) {
    workspace.status = DeviceBuffer(device_, 2 * count * sizeof(uint32_t), "the kernels' status");
  }
  lane.status = workspace.status.as<uint32_t>();  // nobody reads it
  if (needs & kNeedReductions) lane.scratch = scratch_of(workspace, count, elements);
  if (call.source != nullptr && call.source != call.x) {
    const size_t bytes = count * elements * sizeof(float);
    device_->check(device_->api().copy(call.x, call.source, bytes, DeviceCopy::kOnDevice, call.stream), "copy of source");
  }
  device_->check(device_->api().step(lane, needs, call.stream), "step");
}

void DeviceKernels::cfg_combine(const void* cond, const void* uncond, const float* scale, float phi, GpuType type,
                                uint32_t count, uint64_t elements, void* out, void* stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceScope scope(*device_);
  Workspace& workspace = workspace_of(stream);
  const auto* scales = static_cast<const float*>(send(workspace, scale, count * sizeof(float)));
  void* scratch = phi != 0.0f ? scratch_of(workspace, count, elements) : nullptr;
  device_->check(device_->api().cfg_combine(cond, uncond, scales, phi, type, count, elements, out, scratch, stream),
                 "cfg_combine");
}

}  // namespace ddpm_rt
