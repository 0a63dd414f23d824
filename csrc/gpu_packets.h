// What the host sends: changes of membership and requests for results, in one copy from a pinned ring.
#ifndef DDPM_RT_GPU_PACKETS_H_
#define DDPM_RT_GPU_PACKETS_H_

#include <vector>

#include "device.h"

namespace ddpm_rt {

class GpuPackets {
 public:
  static constexpr int kTicks = 2;           // in flight: a tick's part of the ring is free when it begins
  static constexpr int kUploadsPerTick = 2;

  GpuPackets(const DevicePtr& device, size_t slots, size_t places, size_t elements, uint64_t stride);

  // One tick's contents. What the ring held of the tick kTicks before must have been read.
  void begin_tick();
  std::vector<GpuInstall> installs;
  std::vector<GpuPadding> padding;
  std::vector<GpuFinish> finishes;
  // Where in device memory this state [N] will be when the packet has arrived. Allocates the first time.
  const float* add_start(const float* x);

  // Sends what was added and clears it. One copy, and one more where there are starts.
  struct Sent {
    GpuPacket packet;
    const GpuFinish* finishes;
    uint32_t finish_count;
  };
  Sent send(const DeviceStream& stream);

 private:
  void provide_starts();

  DevicePtr device_;
  const size_t slots_, places_, elements_;
  const uint64_t stride_;
  size_t entry_bytes_;
  PinnedBuffer host_, host_starts_;
  DeviceBuffer device_ring_, device_starts_;
  int tick_ = 0, sent_ = 0;
  size_t starts_ = 0;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_GPU_PACKETS_H_
