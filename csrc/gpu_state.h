// What a lane keeps in device memory: registers of its slots, and the packed lists of its network.
#ifndef DDPM_RT_GPU_STATE_H_
#define DDPM_RT_GPU_STATE_H_

#include <cstdint>

#include "device.h"
#include "device_denoiser.h"
#include "solver.h"

namespace ddpm_rt {

class GpuState {
 public:
  // shape: of a sample. Allocates the registers every table uses.
  GpuState(const DevicePtr& device, const DeviceStream& stream, const std::vector<int64_t>& shape, int slots);
  ~GpuState();
  GpuState(const GpuState&) = delete;
  GpuState& operator=(const GpuState&) = delete;

  // Bytes of device memory that `slots` slots and their evaluations take, registers of every kind counted.
  static uint64_t bytes_for(size_t elements, int slots, int overhang);

  // Lists of `places` rows for this network, zeroed; earlier ones are gone. Allocates.
  void adopt(DeviceDenoiser* denoiser, int places);
  // Registers that this table needs beside x. Allocates where they are missing, and then returns true: graphs that were
  // captured before hold the lane as it was.
  bool provide(const Table& table, uint32_t needs, bool has_preview);

  const GpuLane& lane() const { return lane_; }
  DeviceDenoiser& denoiser() const { return *denoiser_; }
  int places() const { return places_; }
  size_t elements() const { return elements_; }
  float* preview(int slot) const { return lane_.preview + static_cast<uint64_t>(slot) * lane_.stride; }

 private:
  bool provide_register(DeviceBuffer* buffer, float** field, const char* what);

  DevicePtr device_;
  const DeviceStream& stream_;
  size_t elements_;
  int places_ = 0;
  GpuLane lane_{};
  DeviceDenoiser* denoiser_ = nullptr;
  DeviceBuffer slots_, status_, x_, history_[3], anchor_, preview_, scratch_;
  DeviceBuffer in_, out_, t_, label_, rows_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_GPU_STATE_H_
