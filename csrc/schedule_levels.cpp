// The levels of each noise model (schedule.h has the table), and the way back from a level to its time.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "error.h"
#include "schedule.h"

namespace ddpm_rt {
namespace {

std::string number(double v) {
  char text[40];
  snprintf(text, sizeof text, "%.17g", v);
  return text;
}

void expect(bool holds, const char* field, const char* expected, double got) {
  if (!holds) throw Error(Code::kOption, std::string("schedule.") + field + ": expected " + expected + ", got " + number(got));
}

double integer_sigma(const Schedule& s, int t) {
  const double ab = s.alpha_bar[static_cast<size_t>(t)];
  return ab == 0 ? std::numeric_limits<double>::infinity() : std::sqrt((1 - ab) / ab);
}

Level from_sigma_rel(double sigma, double t) {
  const double root = std::sqrt(1 + sigma * sigma);
  return {1 / root, sigma / root, t};
}

// t of log alpha = -t^2 (b1 - b0) / 4 - t b0 / 2, without cancellation.
double vp_time(const Schedule& s, double log_alpha) {
  const double slope = s.beta_max - s.beta_min, target = -2 * log_alpha;
  return 2 * target / (s.beta_min + std::sqrt(s.beta_min * s.beta_min + 2 * slope * target));
}

}  // namespace

void validate_schedule(const Schedule& s) {
  const bool is_vp = s.kind == "vp" || s.kind == "sub_vp", is_sigma = s.kind == "ve" || s.kind == "edm";
  if (!is_vp && !is_sigma && s.kind != "flow") {
    throw Error(Code::kOption, "schedule.kind: expected one of discrete, vp, sub_vp, ve, flow, edm, got \"" + s.kind + "\"");
  }
  if (is_vp) {
    expect(s.beta_min > 0 && std::isfinite(s.beta_min), "beta_min", "a number above 0", s.beta_min);
    expect(s.beta_max >= s.beta_min && std::isfinite(s.beta_max), "beta_max", "at least beta_min", s.beta_max);
  }
  if (is_sigma) {
    expect(s.sigma_min > 0, "sigma_min", "a number above 0", s.sigma_min);
    expect(s.sigma_max > s.sigma_min && s.sigma_max <= 1e18, "sigma_max", "a number above sigma_min", s.sigma_max);
  } else {
    expect(s.t_min > 0 && s.t_min < 1, "t_min", "a number above 0 and below 1", s.t_min);
  }
  expect(s.sigma_data > 0 && std::isfinite(s.sigma_data), "sigma_data", "a number above 0", s.sigma_data);
}

double first_time(const Schedule& s) { return s.is_discrete() ? s.T() - 1 : s.kind == "edm" ? s.sigma_max : 1; }

double last_time(const Schedule& s) {
  return s.is_discrete() || s.kind == "ve" ? 0 : s.kind == "edm" ? s.sigma_min : s.t_min;
}

double sigma_rel(const Level& level) {
  return level.alpha == 0 ? std::numeric_limits<double>::infinity() : level.sigma / level.alpha;
}

Level level_at(const Schedule& s, double t) {
  if (s.is_discrete()) {
    const int low = std::min(std::max(static_cast<int>(std::floor(t)), 0), s.T() - 1);
    if (t == low || low + 1 >= s.T()) {
      const double ab = s.alpha_bar[static_cast<size_t>(low)];
      return {std::sqrt(ab), std::sqrt(1 - ab), t};
    }
    const double a = std::log(integer_sigma(s, low)), b = std::log(integer_sigma(s, low + 1));
    if (std::isinf(a) || std::isinf(b)) return from_sigma_rel(integer_sigma(s, std::isinf(a) ? low + 1 : low), t);
    return from_sigma_rel(std::exp(a + (t - low) * (b - a)), t);
  }
  if (s.kind == "flow") return {1 - t, t, t};
  if (s.kind == "edm") return {1, t, t};
  if (s.kind == "ve") return {1, s.sigma_min * std::pow(s.sigma_max / s.sigma_min, t), t};
  const double log_alpha = -t * t * (s.beta_max - s.beta_min) / 4 - t * s.beta_min / 2;
  const double variance = -std::expm1(2 * log_alpha);
  return {std::exp(log_alpha), s.kind == "sub_vp" ? variance : std::sqrt(variance), t};
}

Level level_at_sigma(const Schedule& s, double sigma) {
  if (s.kind == "edm") return {1, sigma, sigma};
  if (s.kind == "ve") return {1, sigma, std::log(sigma / s.sigma_min) / std::log(s.sigma_max / s.sigma_min)};
  if (s.kind == "flow") return {1 / (1 + sigma), sigma / (1 + sigma), sigma / (1 + sigma)};
  if (s.kind == "vp") return from_sigma_rel(sigma, vp_time(s, -0.5 * std::log1p(sigma * sigma)));
  if (s.kind == "sub_vp") {  // alpha^2 + sigma alpha - 1 = 0
    const double alpha = 2 / (sigma + std::sqrt(sigma * sigma + 4));
    return {alpha, sigma * alpha, vp_time(s, std::log(alpha))};
  }
  const int last = s.T() - 1;
  int low = 0, high = last;  // sigma is non-decreasing in t
  if (last == 0 || sigma <= integer_sigma(s, 0)) return from_sigma_rel(sigma, 0);
  if (sigma >= integer_sigma(s, last)) return from_sigma_rel(sigma, last);
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (integer_sigma(s, middle) <= sigma ? low : high) = middle;
  }
  const double a = std::log(integer_sigma(s, low)), b = std::log(integer_sigma(s, high));
  if (std::isinf(a) || std::isinf(b)) return from_sigma_rel(sigma, std::isinf(a) ? high : low);
  return from_sigma_rel(sigma, low + (std::log(sigma) - a) / (b - a));
}

}  // namespace ddpm_rt
