// What a network's output means: x0 = p x + q e and eps = r x + s e, from x = a x0 + s_ eps in the network's own space.
//
// | type         | output e                               | source                                                        |
// |--------------|----------------------------------------|---------------------------------------------------------------|
// | eps          | eps                                    | Ho et al. 2006.11239 eq. 4                                    |
// | x0           | x0                                     |                                                               |
// | v            | a eps - sigma x0                       | Salimans & Ho 2202.00512 appendix D                           |
// | flow         | eps - x0                               | Liu et al. 2209.03003, with time from data to noise           |
// | score        | -eps / sigma                           | Song et al. 2011.13456                                        |
// | scaled_score | -eps                                   | sigma times the score: EDM table 1, VE column (c_out = sigma) |
// | energy       | eps / sigma                            | the gradient of an energy, minus the score                    |
// | mean         | E[x_{t-1} | x_t], t one training step  | Ho et al. section 3.2, mu                                     |
// | edm          | F, x0 = c_skip x + c_out F(c_in x)     | Karras et al. 2206.00364 eq. 7 and table 1                    |
// | consistency  | the same with c_skip, c_out that start | Song et al. 2303.01469 eq. 5 and appendix C                   |
// |              | at 1, 0 where sigma = sigma_min        |                                                               |
//
// EDM's VP and iDDPM networks (c_skip 1, c_out -sigma, c_in 1 / sqrt(sigma^2 + 1)) are eps on a vp or discrete schedule.
#include <cmath>

#include "error.h"
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

std::string time_type(const Schedule& schedule, const Prediction& prediction) {
  if (!prediction.time.empty()) return prediction.time;
  if (schedule.is_discrete()) return "index";
  if (is_one_of(prediction.type, {"edm", "consistency"})) return "log_sigma";
  return is_one_of(schedule.kind, {"ve", "edm"}) ? "sigma" : "t";
}

// c_noise of Karras et al. table 1 is ln(sigma) / 4.
double time_scale(const Schedule& schedule, const Prediction& prediction) {
  const bool is_c_noise = prediction.time.empty() && time_type(schedule, prediction) == "log_sigma";
  return prediction.time_scale * (is_c_noise ? 0.25 : 1);
}

// The posterior of the training step t -> t - 1: mu = on_x0 x0 + on_x x (Ho et al. eq. 7).
void mean_output(const Schedule& schedule, const Level& level, double a, double s, Output* out) {
  const int t = static_cast<int>(level.t);
  const double ab = schedule.alpha_bar[static_cast<size_t>(t)], ab_p = t > 0 ? schedule.alpha_bar[static_cast<size_t>(t - 1)] : 1;
  const double on_x0 = std::sqrt(ab_p) * (1 - ab / ab_p) / (1 - ab), on_x = std::sqrt(ab / ab_p) * (1 - ab_p) / (1 - ab);
  *out = {1, -on_x / on_x0, 1 / on_x0, (1 + a * on_x / on_x0) / s, -a / (s * on_x0)};
}

// Karras et al. table 1; a consistency model's c_skip and c_out shift sigma by sigma_min.
void edm_output(const Schedule& schedule, const std::string& type, double sigma, Output* out) {
  const double d = schedule.sigma_data, shift = type == "consistency" ? schedule.sigma_min : 0;
  const double root = std::sqrt(sigma * sigma + d * d), above = sigma - shift;
  const double skip = d * d / (above * above + d * d);
  const double c_out = above * d / (type == "consistency" ? root : std::sqrt(above * above + d * d));
  const double rest = shift == 0 ? sigma / (sigma * sigma + d * d) : (1 - skip) / sigma;  // without 1 - skip's cancellation
  *out = {1 / root, skip, c_out, rest, -c_out / sigma};
}

Output native_output(const Schedule& schedule, const Prediction& prediction, const Level& level) {
  const double a = level.alpha * level.scale, s = level.sigma * level.scale, norm = a * a + s * s;
  const std::string& type = prediction.type;
  if (a == 0 && !is_one_of(type, {"x0", "v", "flow"})) {
    refuse("prediction: expected x0, v or flow at timestep " + number(level.t) +
           ", where alpha_bar is 0 (zero terminal SNR), got " + type + ": x_t holds no signal there, x0 = (x - eps) / 0. "
           "Use such a network, another schedule, or a grid that does not visit this timestep");
  }
  Output out{};
  if (type == "eps") out = {1, 1 / a, -s / a, 0, 1};
  if (type == "x0") out = {1, 0, 1, 1 / s, -a / s};
  if (type == "v") out = {1, a / norm, -s / norm, s / norm, a / norm};
  if (type == "flow") out = {1, 1 / (a + s), -s / (a + s), 1 / (a + s), a / (a + s)};
  if (type == "score") out = {1, 1 / a, s * s / a, 0, -s};
  if (type == "energy") out = {1, 1 / a, -s * s / a, 0, s};
  if (type == "scaled_score") out = {1, 1 / a, s / a, 0, -1};
  if (type == "mean") mean_output(schedule, level, a, s, &out);
  if (type == "edm" || type == "consistency") edm_output(schedule, type, s, &out);
  return out;
}

}  // namespace

void validate_prediction(const Schedule& schedule, const Prediction& prediction) {
  const std::string& type = prediction.type;
  if (!is_one_of(type, {"eps", "x0", "v", "flow", "score", "scaled_score", "energy", "mean", "edm", "consistency"})) {
    refuse("prediction: expected one of eps, x0, v, flow, score, scaled_score, energy, mean, edm, consistency, got \"" + type +
           "\"");
  }
  if (!is_one_of(prediction.variance, {"fixed", "learned", "learned_range"})) {
    refuse("variance of the network: expected one of fixed, learned, learned_range, got \"" + prediction.variance + "\"");
  }
  if (type == "mean" && !schedule.is_discrete()) {
    refuse("prediction: expected another than mean on a continuous schedule, got mean: there is no previous timestep");
  }
  if (is_one_of(type, {"edm", "consistency"}) && schedule.kind != "edm") {
    refuse("prediction: expected " + type + " with a schedule of kind edm only, got kind " + schedule.kind +
           ": its preconditioning takes x = x0 + sigma eps");
  }
  const std::string time = time_type(schedule, prediction);
  const char* own = schedule.is_discrete() ? "index" : "t";
  if (time != own && !is_one_of(time, {"sigma", "log_sigma", "log_half_sigma"})) {
    refuse("time: expected one of " + std::string(own) + ", sigma, log_sigma, log_half_sigma, got \"" + time + "\"");
  }
  if (!(prediction.time_scale > 0) || !std::isfinite(prediction.time_scale)) {
    refuse("time scale: expected a finite number above 0, got " + number(prediction.time_scale));
  }
}

Output output_at(const Schedule& schedule, const Prediction& prediction, const Level& level) {
  if (prediction.type == "mean" && level.t != std::floor(level.t)) {
    refuse("grid: expected integer timesteps with prediction mean, got " + number(level.t) +
           ": the network knows the step to the previous training timestep only");
  }
  Output out = native_output(schedule, prediction, level);
  out.c_in *= level.scale;
  out.p *= level.scale;
  out.r *= level.scale;
  return out;
}

double network_time(const Schedule& schedule, const Prediction& prediction, const Level& level) {
  const std::string type = time_type(schedule, prediction);
  const double scale = time_scale(schedule, prediction);
  if (type == "index" || type == "t") return scale * level.t;
  const double sigma = sigma_rel(level_at(schedule, level.t));  // not the level's own: t may be rounded
  return scale * (type == "sigma" ? sigma : std::log(type == "log_half_sigma" ? sigma / 2 : sigma));
}

Level level_of_network_time(const Schedule& schedule, const Prediction& prediction, double told) {
  const std::string type = time_type(schedule, prediction);
  const double value = told / time_scale(schedule, prediction);
  if (type == "index" || type == "t") return level_at(schedule, value);
  return level_at_sigma(schedule, type == "sigma" ? value : std::exp(value) * (type == "log_half_sigma" ? 2 : 1));
}

}  // namespace ddpm_rt
