#include "gpu_packets.h"

#include <cstring>

namespace ddpm_rt {
namespace {

constexpr size_t kAlign = 256;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Appends the array's bytes and returns where they begin.
template <typename T>
size_t append(char* to, size_t* used, const std::vector<T>& values) {
  const size_t at = *used, bytes = values.size() * sizeof(T);
  if (bytes > 0) std::memcpy(to + at, values.data(), bytes);
  *used = aligned(at + bytes);
  return at;
}

}  // namespace

GpuPackets::GpuPackets(const DevicePtr& device, size_t slots, size_t places, size_t elements, uint64_t stride)
    : device_(device), slots_(slots), places_(places), elements_(elements), stride_(stride) {
  entry_bytes_ = aligned(slots * sizeof(GpuInstall)) + aligned(places * sizeof(GpuPadding)) + aligned(slots * sizeof(GpuFinish));
  const size_t bytes = entry_bytes_ * kTicks * kUploadsPerTick;
  host_ = PinnedBuffer(device, bytes, "packets");
  device_ring_ = DeviceBuffer(device, bytes, "packets");
  installs.reserve(slots);
  padding.reserve(places);
  finishes.reserve(slots);
}

void GpuPackets::begin_tick() {
  tick_ = (tick_ + 1) % kTicks;
  sent_ = 0;
  starts_ = 0;
  installs.clear();
  padding.clear();
  finishes.clear();
}

void GpuPackets::provide_starts() {
  if (host_starts_) return;
  const size_t bytes = kTicks * slots_ * stride_ * sizeof(float);
  PinnedBuffer host(device_, bytes, "first states");
  device_starts_ = DeviceBuffer(device_, bytes, "first states");
  host_starts_ = std::move(host);
}

const float* GpuPackets::add_start(const float* x) {
  provide_starts();
  const size_t at = (static_cast<size_t>(tick_) * slots_ + starts_++) * stride_;
  std::memcpy(host_starts_.as<float>() + at, x, elements_ * sizeof(float));
  return device_starts_.as<float>() + at;
}

GpuPackets::Sent GpuPackets::send(const DeviceStream& stream) {
  if (sent_ == kUploadsPerTick) throw Error(Code::kInternal, "packets: expected at most 2 in a tick, got more");
  const size_t entry = static_cast<size_t>(tick_ * kUploadsPerTick + sent_++) * entry_bytes_;
  char* const host = host_.as<char>() + entry;
  const char* const to = device_ring_.as<char>() + entry;
  size_t used = 0;
  const size_t at_installs = append(host, &used, installs), at_padding = append(host, &used, padding);
  const size_t at_finishes = append(host, &used, finishes);
  stream.copy(device_ring_.as<char>() + entry, host, used, DeviceCopy::kToDevice);
  if (starts_ > 0) {
    const size_t first = static_cast<size_t>(tick_) * slots_ * stride_;
    stream.copy(device_starts_.as<float>() + first, host_starts_.as<float>() + first, starts_ * stride_ * sizeof(float),
                DeviceCopy::kToDevice);
    starts_ = 0;
  }
  Sent sent{};
  sent.packet.installs = reinterpret_cast<const GpuInstall*>(to + at_installs);
  sent.packet.padding = reinterpret_cast<const GpuPadding*>(to + at_padding);
  sent.packet.install_count = static_cast<uint32_t>(installs.size());
  sent.packet.padding_count = static_cast<uint32_t>(padding.size());
  sent.finishes = reinterpret_cast<const GpuFinish*>(to + at_finishes);
  sent.finish_count = static_cast<uint32_t>(finishes.size());
  installs.clear();
  padding.clear();
  finishes.clear();
  return sent;
}

}  // namespace ddpm_rt
