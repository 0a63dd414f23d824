// DDPM's ancestral sampling (Ho et al. 2006.11239 algorithm 2, eq. 6 and 7; respaced: Nichol & Dhariwal 2102.09672 eq. 19)
// and DDIM (Song et al. 2010.02502 eq. 12 and 16). DPM-Solver++ of order 1 is DDIM with eta 0, Euler ancestral DDIM in EDM
// space, DDPM with fixed_small and without clipping DDIM with eta 1.
#include <cmath>

#include "solver_parts.h"

namespace ddpm_rt {
namespace {

constexpr double kSmallestVariance = 1e-20;  // diffusers' clamp

// log beta~ and log beta; beta = sigma^2 - (alpha / alpha')^2 sigma'^2 is the variance of the step from `to` back to `from`.
struct LogVariances {
  double small, large;
};
LogVariances log_variances(const Level& from, const Level& to) {
  const double r = decay(from, to), rest = (1 - r) * (1 + r);
  return {2 * std::log(to.sigma) + std::log(rest), 2 * std::log(from.sigma) + std::log(rest)};
}

}  // namespace

Rows compile_ddpm(const Course& course) {
  Rows rows;
  const std::string& variance = course.o.variance;
  const bool is_learned = variance == "learned" || variance == "learned_range";
  for (size_t i = 0; i < course.steps(); ++i) {
    const Level &from = course.levels[i], &to = course.next(i);
    RowF64 row = row_at(course, from);
    posterior_step(from, to, &row);
    LogVariances log_var = log_variances(from, to);
    const bool is_end = to.sigma == 0;
    // diffusers leaves the noise out at t = 0 only: where its last timestep is another one, the picture is noisy.
    const bool adds_noise = !is_end || (course.o.compat == "diffusers" && from.t > 0);
    // guided-diffusion's variance of the last step is that of the step before; a classifier moves the mean by it.
    const bool shifts_end = is_end && i > 0 && course.o.compat == "guided-diffusion";
    if (is_end) log_var.small = shifts_end ? log_variances(course.levels[i - 1], from).small : std::log(kSmallestVariance);
    if (shifts_end && variance == "fixed_large") log_var.large = log_var.small;
    const double log_fixed = variance == "fixed_large" ? log_var.large : log_var.small;
    if (is_learned && (adds_noise || shifts_end)) {
      const bool is_range = variance == "learned_range";
      row.flags = (row.flags & ~static_cast<uint32_t>(kLearnedRange)) | (is_range ? kLearnedRange : kLearnedVar);
      if (is_range) row.log_var_lo = log_var.small, row.log_var_hi = log_var.large;
    }
    if (!adds_noise) {
      row.wx[kZ] = 0;
    } else if (is_learned) {
      row.wx[kZ] = 1;
    } else if (is_end || variance == "fixed_large") {
      row.wx[kZ] = std::exp(log_fixed / 2);
    }
    if (adds_noise || shifts_end) shift_mean(course, is_learned ? 1 : std::exp(log_fixed), &row);
    rows.push_back(row);
  }
  return rows;
}

Rows compile_ddim(const Course& course) {
  Rows rows;
  for (size_t i = 0; i < course.steps(); ++i) {
    RowF64 row = row_at(course, course.levels[i]);
    ddim_step(course, course.levels[i], course.next(i), course.o.eta, &row);
    rows.push_back(row);
  }
  return rows;
}

}  // namespace ddpm_rt
