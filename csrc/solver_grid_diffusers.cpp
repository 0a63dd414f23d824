// The levels that diffusers' schedulers visit, as their set_timesteps lay them, rounding and all (diffusers 0.42).
#include <algorithm>
#include <cmath>

#include "error.h"
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

enum class Family { kTimesteps, kDpm, kEuler };  // DDPM, DDIM, PNDM; DPM-Solver, UniPC, DEIS; Euler, Heun, LMS

Family family_of(const std::string& sampler) {
  if (sampler == "ddpm" || sampler == "ddim" || sampler == "pndm") return Family::kTimesteps;
  const bool is_dpm = sampler.compare(0, 5, "dpmpp") == 0 || sampler == "unipc" || sampler == "deis";
  return is_dpm ? Family::kDpm : Family::kEuler;
}

// Multiples of a float stride, as numpy.linspace and numpy.arange make them: their halves round where these round.
std::vector<double> spaced(const SolverOptions& o, Family family, int T, int last) {
  const int n = o.steps;
  std::vector<double> times;
  if (o.spacing == "leading") {
    const int stride = family == Family::kDpm ? last / (n + 1) : T / n, first = family == Family::kDpm ? 1 : 0;
    for (int k = n - 1; k >= 0; --k) times.push_back((k + first) * stride + o.steps_offset);
  } else if (o.spacing == "trailing") {
    const double ratio = static_cast<double>(T) / n, delta = (last - ratio) - last;
    for (int k = 0; k < n && last + k * delta > 0; ++k) times.push_back(std::nearbyint(last + k * delta) - 1);
  } else {
    const int points = family == Family::kDpm ? n + 1 : n, end = last - 1;
    const double stride = points > 1 ? static_cast<double>(end) / (points - 1) : 0;
    for (int k = points - 1; k >= points - n; --k) {
      const double t = points > 1 && k == points - 1 ? end : k * stride;
      times.push_back(family == Family::kEuler ? static_cast<double>(static_cast<float>(t)) : std::nearbyint(t));
    }
  }
  return times;
}

// Euler's linspace visits fractional timesteps, whose sigma is interpolated linearly.
Level linear_level(const Schedule& s, double t) {
  const double low = std::floor(t), f = t - low;
  if (f == 0) return level_at(s, t);
  const double a = sigma_rel(level_at(s, low)), b = sigma_rel(level_at(s, low + 1));
  Level level = level_at_sigma(s, a + f * (b - a));
  level.t = t;
  return level;
}

int clipped_length(const Schedule& s, double lambda_min) {
  int T = s.T();
  while (T > 1 && log_snr(level_at(s, T - 1)) < lambda_min) --T;
  return T;
}

std::vector<Level> sigma_levels(const Schedule& s, const SolverOptions& o, const std::vector<Level>& by_time) {
  const bool is_euler = family_of(o.sampler) == Family::kEuler, is_karras = o.grid == "karras";
  const double most = is_euler ? sigma_rel(by_time.front()) : sigma_rel(level_at(s, s.T() - 1));
  const double least = is_euler ? sigma_rel(by_time.back()) : sigma_rel(level_at(s, 0));
  const double from = std::isnan(o.sigma_max) ? most : o.sigma_max, to = std::isnan(o.sigma_min) ? least : o.sigma_min;
  std::string rounding = o.time_rounding;
  if (rounding == "none" && !is_euler) rounding = is_karras ? "nearest" : "down";  // .round(), or the cast to int64 alone
  std::vector<Level> levels;
  for (double sigma : sigma_ramp(from, to, is_karras ? o.rho : HUGE_VAL, o.steps)) {
    Level level = level_at_sigma(s, sigma);
    if (rounding != "none") level.t = rounding == "down" ? std::floor(level.t) : std::nearbyint(level.t);
    levels.push_back(level);
  }
  return levels;
}

// ScoreSdeVeScheduler: the network is told sigma at times from 1 to 1e-5, the step uses levels evenly spaced in log sigma.
Grid variance_exploding(const Schedule& s, const SolverOptions& o) {
  constexpr double kLastTime = 1e-5;
  Grid grid;
  const std::vector<double> sigmas = sigma_ramp(s.sigma_max, s.sigma_min, HUGE_VAL, o.steps);
  for (int i = 0; i < o.steps; ++i) {
    const double f = o.steps == 1 ? 0 : static_cast<double>(i) / (o.steps - 1);
    grid.levels.push_back({1, sigmas[static_cast<size_t>(i)], 1 + f * (kLastTime - 1)});
  }
  grid.levels.push_back({1, 0, 0});
  return grid;
}

// FlowMatchEulerDiscreteScheduler (whose ends are shifted twice), and use_flow_sigmas of the others.
Grid flow(const Schedule& s, const SolverOptions& o) {
  constexpr double kBelowOne = 1e-6;
  const double T = std::round(1 / s.t_min);
  const auto shifted = [&](double t) { return o.shift * t / (1 + (o.shift - 1) * t); };
  Grid grid;
  for (int i = 0; i < o.steps; ++i) {
    const double f = static_cast<double>(i) / o.steps;
    double t, told;
    if (o.sampler == "euler") {
      const double last = shifted(s.t_min);
      t = told = shifted(o.steps == 1 ? 1 : 1 + (last - 1) * i / (o.steps - 1));
    } else {
      t = o.sampler == "unipc" ? shifted(1 + (s.t_min - 1) * f) : shifted((1 - s.t_min) * (1 - f));
      if (o.sampler == "unipc" && std::fabs(t - 1) < kBelowOne) t -= kBelowOne;
      told = std::floor(t * T) / T;
    }
    Level level = level_at(s, t);
    level.t = told;
    grid.levels.push_back(level);
  }
  const bool repeats = o.final_sigma == "sigma_min";
  grid.levels.push_back(repeats ? grid.levels.back() : Level{1, 0, 0});
  return grid;
}

}  // namespace

Grid make_diffusers_grid(const Schedule& s, const SolverOptions& o) {
  if (s.kind == "flow") return flow(s, o);
  if (s.kind == "ve") return variance_exploding(s, o);
  if (o.grid == "list" || o.grid == "lcm") return make_grid(s, o);
  const Family family = family_of(o.sampler);
  const int T = s.T();
  if (o.steps > T) {
    refuse("steps: expected 1 to " + std::to_string(T) + " (the schedule's timesteps), got " + std::to_string(o.steps));
  }
  const bool is_clipped = o.sampler.compare(0, 5, "dpmpp") == 0;
  const std::vector<double> times = spaced(o, family, T, is_clipped ? clipped_length(s, o.lambda_min) : T);
  if (times.size() != static_cast<size_t>(o.steps) || times.front() > T - 1 || times.back() < 0) {
    refuse("steps: expected another number with this spacing, offset and lambda_min, got " + std::to_string(o.steps) +
           ": diffusers' own scheduler leaves the schedule's timesteps with it");
  }
  Grid grid;
  for (double t : times) grid.levels.push_back(linear_level(s, t));
  const bool is_sigma_grid = o.grid == "karras" || o.grid == "exponential";
  if (is_sigma_grid) grid.levels = sigma_levels(s, o, grid.levels);
  for (size_t i = 1; i < grid.levels.size(); ++i) {
    if (sigma_rel(grid.levels[i]) < sigma_rel(grid.levels[i - 1])) continue;
    refuse("steps: expected fewer, got " + std::to_string(o.steps) + ": two timesteps are the same and diffusers divides by their distance");
  }
  // The end of a sigma grid is its last level again in UniPC and DEIS: a step that stays.
  const bool repeats = is_sigma_grid && o.final_sigma == "sigma_min" && (o.sampler == "unipc" || o.sampler == "deis");
  grid.levels.push_back(repeats ? grid.levels.back() : o.final_sigma == "zero" ? Level{1, 0, 0} : level_at(s, 0));
  if (o.sampler == "ddim" || o.sampler == "pndm") {
    for (double t : times) grid.to.push_back(t - T / o.steps >= 0 ? level_at(s, t - T / o.steps) : grid.levels.back());
  }
  return grid;
}

}  // namespace ddpm_rt
