// The networks of a lane: the model's own, and those that guide it. Each has the list of evaluations it runs next.
#ifndef DDPM_RT_LANE_NETWORK_H_
#define DDPM_RT_LANE_NETWORK_H_

#include <memory>
#include <utility>
#include <vector>

#include "runner.h"

namespace ddpm_rt {

// All that it takes to run an engine's network a second time, in another engine's lane. Candidates point into it.
struct NetworkSource {
  ModelSpec spec;
  std::shared_ptr<const Plan> plan;  // null: a callable
  std::vector<Candidate> candidates;
  RunnerOptions options;
};

struct LaneNetwork {
  // max_batch: of the lane.
  LaneNetwork(std::shared_ptr<const NetworkSource> from, int max_batch)
      : source(std::move(from)),
        spec(source->spec),
        runner(spec, source->plan.get(), source->candidates, with_max_batch(source->options, max_batch)),
        limits(runner.limits()),
        owners(runner.evaluations().capacity, nullptr) {}

  float* input(int place) const { return runner.evaluations().x + static_cast<size_t>(place) * limits.in_elements; }
  const float* output(int place) const { return runner.evaluations().out + static_cast<size_t>(place) * limits.out_elements; }

  static RunnerOptions with_max_batch(RunnerOptions options, int max_batch) {
    options.max_batch = max_batch;
    return options;
  }

  const std::shared_ptr<const NetworkSource> source;
  const ModelSpec& spec;
  Runner runner;
  const Limits limits;
  int m = 0, high_water = 0;         // places used by the next run; places that hold more than zeros
  std::vector<const void*> owners;   // the request of every place
  std::vector<Runner::Failure> failures;
};

// Where a slot's evaluation is packed.
struct Place {
  LaneNetwork* network = nullptr;  // null: not evaluated
  int at = 0;
  explicit operator bool() const { return network != nullptr; }
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_LANE_NETWORK_H_
