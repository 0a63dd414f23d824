// The levels a sampler visits, in the network's own space.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "error.h"
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kRangeSlack = 1e-9;

// The largest timestep with log(alpha / sigma) >= lambda_min, at least 1 where there is one.
int last_clear_timestep(const Schedule& s, double lambda_min) {
  int t = s.T() - 1;
  while (t > 1 && log_snr(level_at(s, t)) < lambda_min) --t;
  return t;
}

std::vector<Level> at_times(const Schedule& s, const std::vector<int>& times, int offset) {
  std::vector<Level> levels;
  for (int t : times) levels.push_back(level_at(s, t + offset));
  return levels;
}

std::vector<Level> discrete_levels(const Schedule& s, const SolverOptions& o) {
  const std::vector<int> counts = section_counts(o.grid);
  if (!counts.empty()) {
    if (o.grid.compare(0, 4, "ddim") == 0) return at_times(s, ddim_timesteps(s.T(), counts[0]), 0);
    std::vector<int> times = section_timesteps(s.T(), counts, o.compat == "guided-diffusion");
    if (o.grid == "fast27" && times.size() > 1 && times[1] < s.T() - 3) times[0] = s.T() - 3;  // GLIDE's own exchange
    return at_times(s, times, 0);
  }
  if (o.grid == "lcm") return at_times(s, lcm_timesteps(s.T(), o.original_steps, o.steps), 0);
  if (o.grid == "uniform") {
    const int last = last_clear_timestep(s, o.lambda_min);
    return at_times(s, timesteps(o.grid, last + 1, o.steps), 0);
  }
  if (o.grid == "linspace" && o.compat == "k-diffusion") {  // fractional: DiscreteSchedule.get_sigmas
    std::vector<Level> levels;
    for (int i = 0; i < o.steps; ++i) {
      levels.push_back(level_at(s, o.steps == 1 ? s.T() - 1 : (s.T() - 1) * (1 - static_cast<double>(i) / (o.steps - 1))));
    }
    return levels;
  }
  const std::vector<int> times = timesteps(o.grid, s.T(), o.steps);
  if (times.front() + o.steps_offset >= s.T()) {
    refuse("steps_offset: expected at most " + std::to_string(s.T() - 1 - times.front()) + " with these steps, got " +
           std::to_string(o.steps_offset));
  }
  return at_times(s, times, o.steps_offset);
}

// Evenly in the schedule's own time: linspace visits both ends, uniform leaves the last one to be the end of sampling.
std::vector<Level> continuous_levels(const Schedule& s, const SolverOptions& o) {
  const bool is_uniform = o.grid == "uniform", is_zero = o.final_sigma == "zero";
  const bool starts_clean = s.kind == "vp" || s.kind == "sub_vp" || s.kind == "flow";  // sigma is 0 at t = 0
  if (is_uniform && is_zero && !starts_clean) {
    refuse("final_sigma: expected sigma_min with grid uniform on a schedule of kind " + s.kind +
           ", got zero: its time does not reach it; use grid linspace or karras");
  }
  const double from = first_time(s), to = is_uniform && is_zero ? 0 : last_time(s);
  const int intervals = is_uniform ? o.steps : std::max(1, o.steps - 1);
  std::vector<Level> levels;
  for (int i = 0; i < o.steps; ++i) {
    const double t = from + (to - from) * i / intervals;
    levels.push_back(level_at(s, s.kind == "flow" ? o.shift * t / (1 + (o.shift - 1) * t) : t));
  }
  return levels;
}

Level visited_at_sigma(const Schedule& s, double sigma, const SolverOptions& o) {
  if (o.grid == "edm" && s.is_discrete()) return nearest_level(s, sigma);
  Level level = level_at_sigma(s, sigma);
  if (o.time_rounding == "nearest") level.t = std::nearbyint(level.t);
  if (o.time_rounding == "down") level.t = std::floor(level.t);
  return level;
}

std::vector<Level> sigma_levels(const Schedule& s, const SolverOptions& o) {
  constexpr double kEdmMax = 80, kEdmMin = 0.002;  // EDM table 1
  const double most = sigma_rel(level_at(s, first_time(s))), least = sigma_rel(level_at(s, last_time(s)));
  const bool is_edm = o.grid == "edm";
  const double from = !std::isnan(o.sigma_max) ? o.sigma_max : is_edm ? std::min(kEdmMax, most) : most;
  const double to = !std::isnan(o.sigma_min) ? o.sigma_min : is_edm ? std::max(kEdmMin, least) : least;
  if (!(from <= most * (1 + kRangeSlack)) || std::isinf(from)) {
    refuse("sigma_max: expected a finite number of at most " + number(most) + ", what the schedule has, got " + number(from));
  }
  if (!(to >= least * (1 - kRangeSlack)) || !(to > 0) || !(to < from)) {
    refuse("sigma_min: expected at least " + number(least) + ", what the schedule has, above 0 and less than sigma_max = " +
           number(from) + ", got " + number(to));
  }
  const bool has_end = o.grid == "logsnr";  // one more point, which is where sampling ends
  const double rho = o.grid == "karras" || is_edm ? o.rho : kInf;
  std::vector<Level> levels;
  for (double sigma : sigma_ramp(from, to, rho, o.steps + (has_end ? 1 : 0))) levels.push_back(visited_at_sigma(s, sigma, o));
  return levels;
}

std::vector<Level> listed_levels(const Schedule& s, const SolverOptions& o) {
  std::vector<Level> levels;
  const double most = sigma_rel(level_at(s, first_time(s))), least = sigma_rel(level_at(s, last_time(s)));
  for (double t : o.timesteps) {
    const bool is_known = s.is_discrete() ? t >= 0 && t <= s.T() - 1 : t > 0 && t <= first_time(s);
    if (!is_known) {
      refuse("timesteps: expected times from " + number(last_time(s)) + " to " + number(first_time(s)) + ", got " + number(t));
    }
    levels.push_back(level_at(s, t));
  }
  for (double sigma : o.sigmas) {
    if (!(sigma > 0 && sigma >= least * (1 - kRangeSlack) && sigma <= most * (1 + kRangeSlack))) {
      refuse("sigmas: expected levels from " + number(least) + " to " + number(most) + ", got " + number(sigma));
    }
    levels.push_back(visited_at_sigma(s, sigma, o));
  }
  return levels;
}

// Each level less noisy than the one before. A schedule whose first timesteps hold no noise at all is left to the samplers
// that need no logarithm of it.
void check_order(const std::vector<Level>& levels, const SolverOptions& o) {
  const bool may_stay = o.compat == "edm";  // its rounded levels may be equal: steps of length 0
  const bool takes_clean = o.sampler == "ddpm" || o.sampler == "ddim";
  for (size_t i = 1; i < levels.size(); ++i) {
    const double before = sigma_rel(levels[i - 1]), here = sigma_rel(levels[i]);
    if (here < before || (takes_clean && before == 0) || (may_stay && here == before)) continue;
    const bool is_end = i + 1 == levels.size();
    refuse("grid: expected strictly decreasing noise, got sigma / alpha " + number(here) + " after " + number(before) +
           (is_end ? " at the end: the last visited level is already what final_sigma = " + o.final_sigma + " asks for"
                   : " at " + std::to_string(i) + ": fewer steps, or another grid"));
  }
}

}  // namespace

Level nearest_level(const Schedule& s, double sigma) {
  const int low = static_cast<int>(level_at_sigma(s, sigma).t), high = std::min(low + 1, s.T() - 1);
  const double below = sigma - sigma_rel(level_at(s, low)), above = sigma_rel(level_at(s, high)) - sigma;
  return level_at(s, below <= above ? low : high);
}

std::vector<int> section_counts(const std::string& grid) {
  if (grid == "fast27") return {10, 10, 3, 2, 2};
  std::string text = grid.compare(0, 4, "ddim") == 0 ? grid.substr(4) : grid;
  if (text.empty() || text.find_first_not_of("0123456789,") != std::string::npos) return {};
  if (text != grid && text.find(',') != std::string::npos) return {};
  std::vector<int> counts;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    if (comma == at || comma - at > 6) return {};
    counts.push_back(std::atoi(text.substr(at, comma - at).c_str()));
    at = comma + 1;
  }
  return counts;
}

std::vector<double> sigma_ramp(double from, double to, double rho, int n) {
  std::vector<double> sigmas;
  for (int i = 0; i < n; ++i) {
    const double f = n == 1 ? 0 : static_cast<double>(i) / (n - 1);
    double sigma = std::exp(std::log(from) + f * (std::log(to) - std::log(from)));
    if (!std::isinf(rho)) {
      const double high = std::pow(from, 1 / rho), low = std::pow(to, 1 / rho);
      sigma = std::pow(high + f * (low - high), rho);
    }
    sigmas.push_back(i == 0 ? from : i + 1 == n ? to : sigma);
  }
  return sigmas;
}

Grid make_grid(const Schedule& s, const SolverOptions& o) {
  Grid grid;
  bool is_sigma_grid = false;
  for (const GridInfo& info : grids()) is_sigma_grid = is_sigma_grid || (info.name == o.grid && info.is_sigma_grid);
  grid.levels = o.grid == "list" ? listed_levels(s, o)
                : is_sigma_grid  ? sigma_levels(s, o)
                : s.is_discrete() ? discrete_levels(s, o)
                                  : continuous_levels(s, o);
  const bool has_end = o.grid == "logsnr" && o.final_sigma == "sigma_min";
  if (o.grid == "logsnr" && !has_end) grid.levels.pop_back();
  const size_t visited = static_cast<size_t>(o.steps);
  if (!has_end) grid.levels.push_back(o.final_sigma == "zero" ? Level{1, 0, 0} : level_at(s, last_time(s)));
  check_order(grid.levels, o);
  if (grid.levels.size() != visited + 1) throw Error(Code::kInternal, "grid: expected one level more than steps, got another count");
  return grid;
}

}  // namespace ddpm_rt
