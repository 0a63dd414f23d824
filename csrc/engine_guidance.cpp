// Guidance of a call: what goes into its table, and labels in place of the null label.
#include <cmath>

#include "engine.h"

namespace ddpm_rt {

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

}  // namespace ddpm_rt
