// One thread, one network, the resident rows of all requests: the loop itself.
//
// A tick: drop what was cancelled, admit, run the packed evaluations, one step over all slots that also writes the next
// packed inputs, call back, deliver what is finished. Requests share ticks; each row has its own table, step, scale,
// label and seed.
#ifndef DDPM_RT_LANE_H_
#define DDPM_RT_LANE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lane_base.h"
#include "runner.h"
#include "step.h"

namespace ddpm_rt {

// Flags whose operands a lane has: a table with another one is refused where it is accepted.
constexpr uint32_t kLaneFlags = kPush | kKeep | kClip | kThreshold | kRescale | kNorm | kNoEval | kLast;

class Lane final : public LaneBase {
 public:
  Lane(const ModelSpec& spec, const Plan* plan, std::vector<Candidate> candidates, RunnerOptions options);
  ~Lane() override { stop(); }

  std::string report() const override { return runner_.report(); }

 private:
  static constexpr int kNone = -1;
  struct Slot {
    std::shared_ptr<Request> request;
    int64_t image = 0;
    const StepRow* row = nullptr;
    const StepRow* end = nullptr;
    uint64_t seed = 0;
    int64_t label = 0;
    float scale = 1;
    uint32_t ring = 0;
    bool bad = false;
    int cond = kNone, uncond = kNone;  // places in the packed list
    float* x = nullptr;
    float* history[3] = {};
    float* anchor = nullptr;
  };

  struct Watched {              // a request with a callback, and its rows of the previews
    Request* request;
    size_t first, end;
  };

  void on_start() override;
  void tick() override;
  bool has_work() const override { return !resident_.empty(); }
  void on_idle() override { runner_.save_costs(); }
  void fail_all(Code code, const std::string& message) override;
  void drop_finished();
  void admit();
  void begin(int slot, std::shared_ptr<Request> request);
  void place(Slot* slot);       // gives the slot's next evaluations the next places of the list
  void finish_packing();        // t, label, embedding, owner of every place; zero padding behind
  void fail(const std::vector<Runner::Failure>& failures);
  void step();
  void watch();
  void call_back();
  void deliver();
  double expected_ticks() const;

  const ModelSpec& spec_;
  const RunnerOptions options_;
  Runner runner_;
  const Limits limits_;
  const size_t N_;

  std::vector<Slot> slots_;
  std::vector<int> free_, resident_;  // resident: in packed order
  int m_ = 0, high_water_ = 0;        // places used by the next run; places that hold more than zeros
  bool is_changed_ = false;           // membership, since the runner was asked last
  int ticks_at_this_membership_ = 0;
  std::vector<float> states_, histories_, anchors_, previews_;
  std::vector<StepSlot> steps_;
  std::vector<uint8_t> bad_;
  std::vector<const void*> owners_;
  std::vector<Runner::Failure> failures_;
  std::vector<Watched> watched_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_LANE_H_
