// What guidance writes into the rows: rescale, interval, dynamic threshold, a classifier's gradient. The scale itself belongs to
// the request.
#include <cmath>

#include "error.h"
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

double native_sigma(const Level& at) { return at.sigma * at.scale; }

void resolve_threshold(const SamplerInfo& sampler, SolverOptions* o) {
  const GuidanceOptions& g = o->guidance;
  if (std::isnan(g.threshold_p) != std::isnan(g.threshold_cap)) {
    refuse("threshold: expected (p, cap), got one of the two");
  }
  if (!(g.threshold_p > 0 && g.threshold_p <= 1)) {
    refuse("threshold: expected p above 0 and at most 1, the share of |x0| below it, got " + number(g.threshold_p));
  }
  const bool is_diffusers = o->compat == "diffusers";  // its sample_max_value may be any number
  if (!(g.threshold_cap >= (is_diffusers ? 0 : 1)) || !(g.threshold_cap > 0) || std::isinf(g.threshold_cap)) {
    refuse("threshold: expected a finite cap of 1 or more" + std::string(is_diffusers ? " (above 0 with compat diffusers)" : "") +
           ", got " + number(g.threshold_cap) + ": x0 is divided by its quantile where that lies between 1 and the cap");
  }
  if (o->clip_lo != -1 || o->clip_hi != 1) {
    refuse("threshold: expected it unset for data in [" + number(o->clip_lo) + ", " + number(o->clip_hi) +
           "], got a value: dynamic thresholding is defined for [-1, 1]");
  }
  if (sampler.clips.empty()) {
    refuse("threshold: expected it unset with sampler " + sampler.name +
           ", got a value: it steps in the network's own eps, so a thresholded x0 would change nothing");
  }
  if (o->clip == "none") o->clip = sampler.clips.back();  // rederive
}

}  // namespace

void resolve_guidance(const Prediction& prediction, const SamplerInfo& sampler, SolverOptions* o) {
  const GuidanceOptions& g = o->guidance;
  if (!std::isnan(g.threshold_p) || !std::isnan(g.threshold_cap)) resolve_threshold(sampler, o);
  if (!(g.rescale >= 0 && g.rescale <= 1)) refuse("guidance_rescale: expected a number in [0, 1], got " + number(g.rescale));
  if (std::isnan(g.interval_lo) != std::isnan(g.interval_hi) || (!std::isnan(g.interval_lo) && !(0 <= g.interval_lo && g.interval_lo < g.interval_hi))) {
    refuse("guidance_interval: expected (lo, hi) with 0 <= lo < hi, levels sigma / alpha, got (" + number(g.interval_lo) + ", " +
           number(g.interval_hi) + ")");
  }
  if (!std::isfinite(g.classifier_scale)) refuse("classifier_scale: expected a finite number, got " + number(g.classifier_scale));
  if (g.classifier_scale != 0 && prediction.type == "mean") {
    refuse("classifier_scale: expected 0 with prediction mean, got " + number(g.classifier_scale) +
           ": the gradient is added to eps or to DDPM's mean");
  }
}

void guide_row(const Course& course, const Level& at, RowF64* row) {
  const GuidanceOptions& g = course.o.guidance;
  if (!std::isnan(g.interval_lo)) {
    const double sigma = sigma_rel(at);
    row->gs = sigma > g.interval_lo && sigma <= g.interval_hi ? 1 : 0;
  }
  if (g.rescale > 0) {
    row->flags |= kRescale;
    row->phi = g.rescale;
  }
  if (!std::isnan(g.threshold_p)) {
    row->flags = (row->flags & ~static_cast<uint32_t>(kClip)) | kThreshold;
    row->threshold_p = g.threshold_p;
    row->threshold_cap = g.threshold_cap;
  }
  // Algorithm 2: eps - sigma s grad log p(y | x), with eps = r x + s_e e for any output e. ddpm's own is algorithm 1.
  if (g.classifier_scale != 0 && course.o.sampler != "ddpm") {
    row->flags |= kGrad;
    row->ge = -native_sigma(at) * g.classifier_scale / output_at(course.schedule, course.prediction, at).s;
  }
}

void shift_mean(const Course& course, double variance, RowF64* row) {
  const double s = course.o.guidance.classifier_scale;
  if (s * variance == 0) return;
  row->flags |= kGrad;
  row->gm = s * variance;
}

}  // namespace ddpm_rt
