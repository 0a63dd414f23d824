// A device's network as the Denoiser that the Runner qualifies: its self-test, probes and timings read and write host
// memory. For these alone; ticks go to the DeviceDenoiser itself.
#ifndef DDPM_RT_GPU_PROBE_H_
#define DDPM_RT_GPU_PROBE_H_

#include <map>
#include <memory>
#include <string>

#include "denoiser.h"
#include "gpu_state.h"

namespace ddpm_rt {

class ThroughHost final : public Denoiser {
 public:
  // Takes the lane's lists over for `made` when it is bound. Calls begin at place 0 and put back what lay there.
  ThroughHost(std::unique_ptr<DeviceDenoiser> made, const DevicePtr& device, const DeviceStream& stream, GpuState* state, int places);

  const Limits& limits() const override { return limits_; }
  std::string describe() const override { return made_->describe(); }
  void prepare(int bucket, int streams) override;
  void bind(const Evaluations& evaluations) override;
  void run(const Call* calls, size_t count) override { timed_run(calls, count); }
  double timed_run(const Call* calls, size_t count) override;
  void embed(const float* t, const int64_t* label, size_t n, float* rows) override;

 private:
  struct List {                // one of the network's, and its bytes per place
    void* data;
    size_t row_bytes;
  };
  void upload(const Call& call);
  void download(const Call& call);
  DeviceGraph graph_of(const DeviceCall& call);
  double enqueue(const DeviceCall& call);  // in the form that ticks use; returns its seconds

  std::unique_ptr<DeviceDenoiser> made_;
  const DevicePtr device_;
  const DeviceStream& stream_;
  GpuState* state_;
  const int places_;
  Limits limits_;
  Evaluations host_;
  List inputs_[4];             // in, t, label, rows
  PinnedBuffer staging_;       // for the widest list of a probe
  DeviceBuffer saved_;         // what lay in the first places of all inputs
  DeviceBuffer embedded_;
  DeviceEvent start_, end_;
  std::map<int, DeviceGraph> graphs_;  // by bucket, for timing
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_GPU_PROBE_H_
