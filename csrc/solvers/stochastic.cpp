// Samplers that put the noise back: consistency sampling (LCM), annealed Langevin dynamics, predictor-corrector.
#include <cmath>

#include "solver_parts.h"

namespace ddpm_rt {
namespace {

// score = share * (network's output), for the outputs that are proportional to it; resolve() lets no other reach pc.
double score_share(const Course& course, const Level& at) {
  const std::string& type = course.prediction.type;
  const double sigma = at.sigma * at.scale;
  return type == "score" ? 1 : type == "energy" ? -1 : type == "scaled_score" ? 1 / sigma : -1 / sigma;
}

}  // namespace

// Latent consistency (Luo et al. 2310.04378 algorithm 3, f of eq. 9 as published: sigma_data 0.5, t scaled) and multistep
// consistency sampling (Song et al. 2303.01469 algorithm 1), where the noise tops sigma_min up to sigma'.
Rows compile_lcm(const Course& course) {
  constexpr double kSigmaData = 0.5;
  const bool is_consistency = course.prediction.type == "consistency";
  Rows rows;
  for (size_t i = 0; i < course.steps(); ++i) {
    const Level &from = course.levels[i], &to = course.levels[i + 1];
    RowF64 row = row_at(course, from);
    double skip = 0, out = 1;
    if (course.o.timestep_scaling > 0) {
      const double t = from.t * course.o.timestep_scaling, square = t * t + kSigmaData * kSigmaData;
      skip = kSigmaData * kSigmaData / square;
      out = t / std::sqrt(square);
    }
    const bool is_end = i + 1 == course.steps();
    const double alpha = is_end ? 1 : to.alpha, least = is_consistency ? course.schedule.sigma_min : 0;
    row.wx[kX] = alpha * skip;
    row.wx[kX0] = alpha * out;
    if (!is_end) row.wx[kZ] = std::sqrt(std::fmax(0, to.sigma * to.sigma - least * least));
    rows.push_back(row);
  }
  return rows;
}

// Step size step_lr (sigma / sigma_last)^2 = a. ncsn: Song & Ermon 1907.05600 algorithm 1, x += a / 2 score + sqrt(a) z;
// ncsnv2: Song & Ermon 2006.09011 algorithm 1 and both published codes, x += a score + sqrt(2 a) z.
Rows compile_langevin(const Course& course) {
  const Level& last = course.levels[course.steps() - 1];
  Rows rows;
  for (size_t i = 0; i < course.steps(); ++i) {
    const Level& at = course.levels[i];
    const double ratio = at.sigma / last.sigma, a = course.o.step_lr * ratio * ratio;
    const double on_score = course.o.step_size == "ncsn" ? a / 2 : a;
    for (int k = 0; k < course.o.inner_steps; ++k) {
      RowF64 row = row_at(course, at);
      row.wx[kX] = 1;
      add_eps(course, at, -on_score / at.sigma, row.wx);
      row.wx[kZ] = std::sqrt(2 * on_score);
      rows.push_back(row);
    }
  }
  if (course.o.denoise == 1) {  // x + sigma^2 score
    RowF64 row = row_at(course, last);
    row.wx[kX0] = 1;
    rows.push_back(row);
  }
  return rows;
}

// Song et al. 2011.13456: at each level Langevin corrector steps (algorithm 4 and 5) of size 2 a r^2, r = snr |z| / |score| by
// each sample's own norms, then the reverse diffusion predictor (appendix E), whose last step adds no noise.
//   k = alpha / alpha', G^2 = sigma^2 - k^2 sigma'^2:  x' = (2 - k) x + G^2 score + G z.  a = k^2, which is 1 for VE.
Rows compile_pc(const Course& course) {
  Rows rows;
  for (size_t i = 0; i < course.steps(); ++i) {
    const Level &from = course.levels[i], &to = course.levels[i + 1];
    const double share = score_share(course, from), k = from.alpha / to.alpha;
    for (int c = 0; c < course.o.inner_steps; ++c) {
      RowF64 row = row_at(course, from);
      row.flags |= kNorm;
      row.snr = course.o.snr / std::fabs(share);
      row.wx[kX] = 1;
      row.wx[kE] = 2 * k * k * share;
      row.wx[kZ] = 2 * k;
      rows.push_back(row);
    }
    const double variance = from.sigma * from.sigma - k * k * to.sigma * to.sigma;
    RowF64 row = row_at(course, from);
    row.wx[kX] = 2 - k;
    row.wx[kE] = variance * share;
    if (i + 1 < course.steps()) row.wx[kZ] = std::sqrt(variance);
    rows.push_back(row);
  }
  return rows;
}

}  // namespace ddpm_rt
