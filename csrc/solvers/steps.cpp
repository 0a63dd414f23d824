// Steps that several solvers share, in any space x = alpha x0 + sigma eps.
//
// | symbol            | meaning                                                                 |
// |-------------------|-------------------------------------------------------------------------|
// | from, to          | levels of the row and of where it leads; ' marks what belongs to `to`   |
// | lambda, h         | log(alpha / sigma); lambda' - lambda, infinite into sigma' = 0          |
#include <algorithm>
#include <cmath>

#include "solver_parts.h"

namespace ddpm_rt {

// With sqrt(1 - e^-2h) for sqrt(1 - ab / ab') sqrt(1 / (1 - ab)): the same number for alpha^2 + sigma^2 = 1, and with
// alpha = 1 it is k-diffusion's sigma_up = eta sqrt(sigma'^2 (sigma^2 - sigma'^2) / sigma^2).
void ddim_step(const Course& course, const Level& from, const Level& to, double eta, RowF64* row) {
  if (to.sigma == 0) {
    row->wx[kX0] += to.alpha;
    return;
  }
  const double r = decay(from, to), share = eta * eta * (1 - r) * (1 + r);  // s^2 / sigma'^2
  row->wx[kX0] += to.alpha;
  add_eps(course, from, to.sigma * std::sqrt(1 - share), row->wx);
  row->wx[kZ] += to.sigma * std::sqrt(share);
}

// The first step of SDE-DPM-Solver++ (Lu et al. 2211.01095 eq. 19) is the same map.
void posterior_step(const Level& from, const Level& to, RowF64* row) {
  if (to.sigma == 0) {  // exact, also from a level without noise: x' = x0
    row->wx[kX0] += to.alpha;
    return;
  }
  const double r = decay(from, to), rest = (1 - r) * (1 + r);
  row->wx[kX0] += to.alpha * rest;
  row->wx[kX] += to.sigma / from.sigma * r;
  row->wx[kZ] += to.sigma * std::sqrt(rest);
}

void exponential_step(const Level& from, const Level& to, double* w) {
  if (to.sigma != 0) w[kX] += to.sigma / from.sigma;
  w[kX0] += to.alpha * (1 - decay(from, to));
}

int multistep_order(const Course& course, size_t i) {
  constexpr int kFewSteps = 15;  // diffusers and the DPM-Solver authors' code lower the order at the end below this
  const SolverOptions& o = course.o;
  const size_t left = course.steps() - i;
  if (course.levels[i + 1].sigma == 0 || (left == 1 && o.euler_at_final == 1)) return 1;
  int order = std::max(1, std::min(o.order, static_cast<int>(i) + 1 - (course.levels[0].alpha == 0)));  // log_snr is finite there
  if (o.lower_order_final == 1 && o.steps < kFewSteps) order = std::min(order, static_cast<int>(left));
  return order;
}

double churn_gamma(const Course& course, size_t i) {
  const SolverOptions& o = course.o;
  if (!(o.s_churn > 0)) return 0;
  const double sigma = course.levels[i].sigma;
  if (!(o.s_tmin <= sigma && sigma <= o.s_tmax)) return 0;
  return std::min(o.s_churn / o.steps, std::sqrt(2.0) - 1);
}

Level churned(const Course& course, size_t i) {
  const double gamma = churn_gamma(course, i);
  const Level& level = course.levels[i];
  if (gamma == 0) return level;
  const double sigma = level.sigma * (1 + gamma);
  const bool is_rounded = course.schedule.is_discrete() && course.o.grid == "edm";
  return is_rounded ? in_state_space(nearest_level(course.schedule, sigma), course.is_unit) : course_level_at_sigma(course, sigma);
}

double churn_std(const Course& course, size_t i) {
  const double hat = churned(course, i).sigma, sigma = course.levels[i].sigma;
  return course.o.s_noise * std::sqrt(std::max(0.0, hat * hat - sigma * sigma));
}

void add_first_churn(const Course& course, Rows* rows) {
  const double std = churn_std(course, 0);
  if (std == 0) return;
  RowF64 row;
  row.flags = kNoEval;
  row.wx[kX] = 1;
  row.wx[kZ] = std;
  rows->push_back(row);
}

}  // namespace ddpm_rt
