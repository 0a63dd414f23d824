// The step and guidance kernels by themselves on a device, for a loop of the host's own: its memory, its stream.
//
// A call puts one small packet (rows, slots, scales) and the kernels on the caller's stream and returns; it waits only where a
// fifth call on a stream finds the first one's packet not yet copied. Memory for packets and reductions is kept per stream.
#ifndef DDPM_RT_GPU_KERNELS_H_
#define DDPM_RT_GPU_KERNELS_H_

#include <list>
#include <mutex>
#include <utility>

#include "ddpm_rt/ddpm_rt.h"
#include "device.h"
#include "step.h"

namespace ddpm_rt {

// A device_step_call after its checks: rows and operands by value.
struct DeviceStep {
  ddpm_rt_device_step_call call;
  ddpm_rt_step_operands operands;
  StepRow row, next;
  bool has_next;
};

class DeviceKernels {
 public:
  explicit DeviceKernels(DevicePtr device) : device_(std::move(device)) {}
  ~DeviceKernels();
  void step(const DeviceStep& step);
  // scale: [count], of the host. type: of cond, uncond and out.
  void cfg_combine(const void* cond, const void* uncond, const float* scale, float phi, GpuType type, uint32_t count,
                   uint64_t elements, void* out, void* stream);

 private:
  static constexpr size_t kPackets = 4, kMostStreams = 16;
  struct Packet {
    PinnedBuffer host;
    DeviceEvent copied;
  };
  struct Workspace {  // of one stream: what is on it runs in order, so one device copy of each serves all its calls
    void* stream = nullptr;
    Packet packets[kPackets];
    size_t next = 0;
    DeviceBuffer packet, status, scratch;
    uint32_t scratch_count = 0;
    uint64_t scratch_elements = 0;
  };
  Workspace& workspace_of(void* stream);
  void* packet_of(Workspace& workspace, size_t bytes);               // where the next send of as many bytes goes
  void* send(Workspace& workspace, const void* data, size_t bytes);  // the device's copy
  void* scratch_of(Workspace& workspace, uint32_t count, uint64_t elements);

  DevicePtr device_;
  std::mutex mutex_;
  std::list<Workspace> workspaces_;  // latest first
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_GPU_KERNELS_H_
