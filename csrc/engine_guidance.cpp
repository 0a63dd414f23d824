// Guidance of a call: the numbers that go into its table, and the network that takes the null label's place.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "capi_structs.h"
#include "engine.h"
#include "lane_network.h"

namespace ddpm_rt {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(Code::kOption, message); }

bool same_levels(const ModelSpec& a, const ModelSpec& b) {
  const Schedule &p = a.schedule, &q = b.schedule;
  const bool same_schedule = p.kind == q.kind && p.alpha_bar == q.alpha_bar && p.beta_min == q.beta_min && p.beta_max == q.beta_max &&
                             p.sigma_min == q.sigma_min && p.sigma_max == q.sigma_max && p.sigma_data == q.sigma_data;
  return same_schedule && a.prediction.type == b.prediction.type && a.prediction.time == b.prediction.time &&
         a.prediction.time_scale == b.prediction.time_scale;
}

bool same_inputs(const ModelSpec& a, const ModelSpec& b) {
  const auto p = a.condition_inputs(), q = b.condition_inputs();
  return std::equal(p.begin(), p.end(), q.begin(), q.end(),
                    [](const ConditionInput& c, const ConditionInput& d) { return c.role == d.role && c.row == d.row; });
}

}  // namespace

void read_guidance(const ddpm_rt_sample_options& options, GuidanceOptions* to) {
  const auto given = [](double value, double* field) {
    if (!std::isnan(value)) *field = value;
  };
  given(options.guidance_rescale, &to->rescale);
  given(options.guidance_interval_lo, &to->interval_lo);
  given(options.guidance_interval_hi, &to->interval_hi);
  given(options.threshold_p, &to->threshold_p);
  given(options.threshold_cap, &to->threshold_cap);
  given(options.classifier_scale, &to->classifier_scale);
}

bool has_guidance(const ddpm_rt_sample_options& options) {
  for (double value : {options.guidance_rescale, options.guidance_interval_lo, options.guidance_interval_hi, options.threshold_p,
                       options.threshold_cap, options.classifier_scale}) {
    if (!std::isnan(value)) return true;
  }
  return false;
}

std::string guidance_key(const GuidanceOptions& g) {
  char text[200];
  std::snprintf(text, sizeof text, "%a,%a,%a,%a,%a,%a", g.rescale, g.interval_lo, g.interval_hi, g.threshold_p, g.threshold_cap,
                g.classifier_scale);
  return text;
}

void Engine::set_guide(const ddpm_rt_sample_options& options, RequestSpec* request) const {
  if (options.negative != nullptr && device_ != nullptr) refuse("negative: expected it unset on a GPU, got labels: not built yet");
  if (options.guide == nullptr) return;
  const Engine& guide = engine_of(options.guide);
  guide.expect_parent();
  if (options.negative != nullptr) refuse("negative: expected it unset with guide, got labels: the guide takes the null label's place");
  if (device_ != nullptr || guide.device_ != nullptr) refuse("guide: expected two engines on the CPU, got one on a GPU: not built yet");
  const ModelSpec& g = guide.spec_;
  if (g.shape != spec_.shape) refuse("guide: expected an engine whose samples have this engine's shape, got another");
  if (!same_levels(g, spec_)) refuse("guide: expected an engine of this schedule, prediction and network time, got another");
  if (!g.conditions.empty() && !same_inputs(g, spec_)) {
    refuse("guide: expected an engine without conditions or with this engine's, got others");
  }
  if (g.num_classes != 0 && g.num_classes != spec_.num_classes) {
    refuse("guide: expected an engine without classes or with " + std::to_string(spec_.num_classes) + ", got " +
           std::to_string(g.num_classes));
  }
  request->guide = guide.source_;
}

}  // namespace ddpm_rt
