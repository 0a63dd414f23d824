// The loop on a device: one thread, one stream, the resident rows of all requests.
//
// The host keeps a mirror of every slot and counts rows, rings and places itself; it never reads the device to decide. A
// tick is queued as [packet] -> networks -> step -> advance -> [results]; networks, step and advance are one graph per call
// list. At most two ticks are in flight: the older one is looked at (never waited for inside the driver) before a third is
// queued, and what it finished is delivered then.
#ifndef DDPM_RT_GPU_LANE_H_
#define DDPM_RT_GPU_LANE_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gpu_flight.h"
#include "gpu_graphs.h"
#include "gpu_packets.h"
#include "gpu_state.h"
#include "gpu_tables.h"
#include "lane_base.h"
#include "runner.h"

namespace ddpm_rt {

// One way to run the network. The first whose self-test passes is kept.
struct DeviceCandidate {
  std::string precision;
  std::function<std::unique_ptr<DeviceDenoiser>(const DevicePtr&, const DeviceStream&)> make;
};

struct DeviceLaneOptions {
  int max_batch = 0;       // 0: chosen by the device's memory
  bool batch_invariant = false;
  bool captures = true;    // false: every tick is launched piece by piece
  std::string cache_dir, digest;
  LogFn log;
};

class DeviceLane final : public LaneBase {
 public:
  // `plan` null: no self-test. Throws what the first candidate throws.
  DeviceLane(const ModelSpec& spec, const Plan* plan, const DevicePtr& device, std::vector<DeviceCandidate> candidates,
          DeviceLaneOptions options)
      : DeviceLane(DeviceScope(*device), spec, plan, device, std::move(candidates), std::move(options)) {}
  ~DeviceLane() override { stop(); }

  std::string report() const override { return runner_.report(); }
  int max_batch() const { return static_cast<int>(slots_.size()); }

 private:
  static constexpr int kFlights = GpuPackets::kTicks;
  static constexpr int kWanted = -2;   // a place that is still to be given
  enum Role { kCond = 0, kUncond = 1, kOwnRoles = 2 };

  struct Slot {                        // the mirror
    std::shared_ptr<Request> request;  // null: free
    std::shared_ptr<const DeviceTable> table;
    std::shared_ptr<const DeviceBuffer> rows[kOwnRoles];
    const StepRow* row = nullptr;
    int64_t image = 0, label = 0;
    uint64_t seed = 0;
    float scale = 1, sigma = 1;
    uint32_t ring = 0;
    const float* start = nullptr;      // in host memory, until it is sent
    int places[kOwnRoles] = {kNoPlace, kNoPlace};
    bool begins = false, moves = false;  // x_T, or an input, is to be made by the next packet
    bool is_sent = true;               // the device's slot is as it must be
    const StepRow* first_row() const { return table->table->rows.data(); }
    const StepRow* end() const { return first_row() + table->table->rows.size(); }
  };
  struct Place {
    int slot = -1, role = 0;
  };

  DeviceLane(const DeviceScope& opening, const ModelSpec& spec, const Plan* plan, const DevicePtr& device,
          std::vector<DeviceCandidate> candidates, DeviceLaneOptions options);

  // gpu_lane.cpp: the tick
  void on_start() override;
  void tick() override;
  bool has_work() const override { return !resident_.empty() || in_flight_ > 0; }
  void on_idle() override { runner_.save_costs(); }
  void fail_all(Code code, const std::string& message) override;
  void launch(GpuFlight* flight);
  void retire();                       // the oldest flight: looks until it has landed, then delivers
  void come_to_rest() const;           // waits for the device, whatever it answers
  void wait_for(const DeviceEvent& event) const;
  double expected_ticks() const;

  // gpu_lane_members.cpp: who is resident, and where its evaluations lie
  void open_runner();
  void drop_finished();
  void admit();
  void begin(Slot* slot, const std::shared_ptr<Request>& request);
  void provide_results(size_t bytes);
  void provide_previews();
  void release(int index);
  void assign_places();
  void take_place(int index, int role, int place);
  void close_holes();
  void reset_device_state();

  // gpu_lane_launch.cpp: what one tick queues
  void fill_packet(GpuFlight* flight);
  void add_installs();
  GpuInstall install_of(int index);
  void add_result(int index, GpuFlight* flight);
  void plan_calls(GpuFlight* flight);
  bool launch_graph();
  void capture(TickGraph* entry);
  void queue_calls();
  bool try_call(const DeviceCall& call, Error* error);
  void withdraw_failed();
  void queue_step_and_advance();
  void queue_previews(GpuFlight* flight);
  void advance_mirror(GpuFlight* flight);
  void log(int level, const std::string& message) const;

  const ModelSpec& spec_;
  const DevicePtr device_;
  const DeviceLaneOptions options_;
  const DeviceStream stream_, side_;
  const size_t N_;
  std::vector<Slot> slots_;
  std::vector<Place> places_;          // who holds a place; [0, m_) have holders
  GpuState state_;
  Runner runner_;
  GpuPackets packets_;
  GpuTables tables_;
  GpuGraphs graphs_;

  std::vector<int> free_, resident_;   // resident: in order of admission
  int m_ = 0, high_water_ = 0;         // places of this tick; places that may hold more than zeros
  std::vector<DeviceCall> calls_;
  GraphKey key_;
  uint32_t needs_ = 0;
  bool is_open_ = false, is_changed_ = false;
  int ticks_at_this_membership_ = 0;

  GpuFlight flights_[kFlights];
  int oldest_ = 0, in_flight_ = 0;
  GpuFlight* launching_ = nullptr;
  size_t result_bytes_ = 0;            // of all residents' images, each tick at most
  double landed_ = 0;                  // when the last flight was retired
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_GPU_LANE_H_
