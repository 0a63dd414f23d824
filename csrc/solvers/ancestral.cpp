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
  for (size_t i = 0; i < course.steps(); ++i) {
    const Level &from = course.levels[i], &to = course.next(i);
    RowF64 row = row_at(course, from);
    posterior_step(from, to, &row);
    const LogVariances log_var = log_variances(from, to);
    const bool is_end = to.sigma == 0;
    // diffusers leaves the noise out at t = 0 only: where its last timestep is another one, the picture is noisy.
    const bool is_noisy_end = is_end && course.o.compat == "diffusers" && from.t > 0;
    const double small = is_end ? std::log(kSmallestVariance) : log_var.small;
    if (!is_end || is_noisy_end) {
      if (course.o.variance == "fixed_large") {
        row.wx[kZ] = std::exp(log_var.large / 2);
      } else if (course.o.variance == "learned" || course.o.variance == "learned_range") {
        const bool is_range = course.o.variance == "learned_range";
        row.flags = (row.flags & ~static_cast<uint32_t>(kLearnedRange)) | (is_range ? kLearnedRange : kLearnedVar);
        row.wx[kZ] = 1;
        if (is_range) row.log_var_lo = small, row.log_var_hi = log_var.large;
      } else if (is_noisy_end) {
        row.wx[kZ] = std::exp(small / 2);
      }
    }
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
