// One thread, one network (and those that guide it), the resident rows of all requests: the loop itself.
//
// A tick: drop what was cancelled, admit, run the packed evaluations, one step over all slots that also writes the next
// packed inputs, call back, deliver what is finished. Requests share ticks; each row has its own table, step, scale,
// label and seed.
#ifndef DDPM_RT_LANE_H_
#define DDPM_RT_LANE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lane_base.h"
#include "lane_network.h"
#include "step.h"

namespace ddpm_rt {

// Flags whose operands every lane has, and those that a network's output gives: a table with another one is refused where it
// is accepted.
constexpr uint32_t kLaneFlags = kPush | kKeep | kClip | kThreshold | kRescale | kNorm | kNoEval | kLast;
uint32_t lane_flags(const ModelSpec& spec);

class Lane final : public LaneBase {
 public:
  explicit Lane(std::shared_ptr<const NetworkSource> source);
  ~Lane() override { stop(); }

  std::string report() const override { return own_.runner.report(); }

 private:
  struct Slot {
    std::shared_ptr<Request> request;
    int64_t image = 0;
    const StepRow* row = nullptr;
    const StepRow* end = nullptr;
    uint64_t seed = 0;
    int64_t label = 0, negative = 0;  // negative: in the null label's place
    float scale = 1;
    uint32_t ring = 0;
    int evaluations = 0;                    // rows with one that are behind it
    bool bad = false;
    LaneNetwork* uncond_network = nullptr;  // the own one, or a guide
    Place cond, uncond;
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
  void on_idle() override;
  void fail_all(Code code, const std::string& message) override;
  void drop_finished();
  void admit();
  void begin(int slot, std::shared_ptr<Request> request);
  LaneNetwork* guide(const RequestSpec& spec);  // the network that the request is guided by, opened where it is new
  void place(Slot* slot);       // gives the slot's next evaluations the next places of their lists
  void finish_packing();        // t, label, embedding, owner of every place; zero padding behind
  void run_networks();
  void fail(const LaneNetwork& network);
  double run_seconds() const;
  double embed_seconds() const;
  void read_outputs(const Slot& slot, StepSlot* step) const;
  void step();
  void watch();
  void call_back();
  void deliver();
  double expected_ticks() const;
  template <typename F>
  void for_each_network(F&& f) {
    f(own_);
    for (const auto& guide : guides_) f(*guide);
  }

  static constexpr size_t kMostGuides = 4;  // kept open while nothing uses them

  const int max_batch_;
  LaneNetwork own_;
  std::vector<std::unique_ptr<LaneNetwork>> guides_;  // least recently begun first
  const ModelSpec& spec_;
  const size_t N_;

  std::vector<Slot> slots_;
  std::vector<int> free_, resident_;  // resident: in packed order
  bool is_changed_ = false;           // membership, since the runner was asked last
  int ticks_at_this_membership_ = 0;
  std::vector<float> states_, histories_, anchors_, previews_;
  std::vector<StepSlot> steps_;
  std::vector<uint8_t> bad_;
  std::vector<Watched> watched_;
  std::vector<std::pair<const float*, float*>> kept_;  // predictions that a callback sees and a request keeps
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_LANE_H_
