// DPM-Solver++ (Lu et al. 2211.01095): multistep 2M and 3M (algorithm 2, appendix B), their SDE forms (appendix B.4, with
// k-diffusion's eta), and singlestep 2S (algorithm 1) with k-diffusion's ancestral noise.
//
// | symbol     | meaning                                                                       |
// |------------|-------------------------------------------------------------------------------|
// | m0, m1, m2 | x0 predictions of this row and of the rows before                             |
// | r0, r1     | (lambda_0 - lambda_1) / h, (lambda_1 - lambda_2) / h                          |
// | D1, D2     | divided differences of m in units of h                                        |
// | g          | h (1 + eta): what the exponentials see                                        |
// | phi2, phi3 | (e^-g - 1) / g + 1, phi2 / g - 1/2                                            |
#include <algorithm>
#include <cmath>

#include "solver_parts.h"

namespace ddpm_rt {
namespace {

// phi2, and phi3 below, by their series where the closed form would cancel.
double phi2(double g) {
  if (g > 0.5) return std::expm1(-g) / g + 1;
  double term = g / 2, sum = 0;
  for (int k = 3; k < 20; ++k) sum += term, term *= -g / k;
  return sum;
}

double phi3(double g) {
  if (g > 0.5) return phi2(g) / g - 0.5;
  double term = -g / 6, sum = 0;
  for (int k = 4; k < 20; ++k) sum += term, term *= -g / k;
  return sum;
}

void multistep_row(const Course& course, size_t i, int order, RowF64* row) {
  const SolverOptions& o = course.o;
  const Level &from = course.levels[i], &to = course.levels[i + 1];
  if (to.sigma == 0) {
    row->wx[kX0] = to.alpha;
    return;
  }
  const auto lambda = [&](size_t k) { return log_snr(course.levels[k]); };
  const double r = decay(from, to), h = -std::log(r), g = h * (1 + o.eta), on_m0 = to.alpha * (1 - std::pow(r, 1 + o.eta));
  row->wx[kX] = to.sigma / from.sigma * std::pow(r, o.eta);
  row->wx[kX0] = on_m0;
  if (o.eta > 0) row->wx[kZ] = to.sigma * std::sqrt(1 - std::pow(r, 2 * o.eta));
  if (order == 1) return;
  if (h == 0) {  // a repeated last level, with compat diffusers
    if (order == 2) return;
    refuse("final_sigma: expected zero with compat diffusers, sampler dpmpp_3m and a sigma grid, got sigma_min: the last level is "
           "there already and its scheduler divides by their distance");
  }
  const double r0 = (lambda(i) - lambda(i - 1)) / h;
  if (order == 2) {
    const double on_D1 = (o.solver_type == "heun" ? to.alpha * phi2(g) : on_m0 / 2) / r0;
    row->wx[kX0] += on_D1;
    row->wx[kH1] -= on_D1;
    return;
  }
  const double r1 = (lambda(i - 1) - lambda(i - 2)) / h;
  // D1 = D1_0 + r0 / (r0 + r1) (D1_0 - D1_1), D2 = (D1_0 - D1_1) / (r0 + r1), D1_0 = (m0 - m1) / r0, D1_1 = (m1 - m2) / r1
  const double on_D1 = to.alpha * phi2(g);
  // The parabola's u^2 has the weight D2, whose integral is -2 phi3. The authors' code, diffusers and k-diffusion have -phi3, and
  // with it order 2; diffusers' SDE step moreover -1/2 where the expansion has +1/2.
  const double on_D2 = to.alpha * (o.compat.empty() ? -2 * phi3(g) : -phi3(g) - (o.compat == "diffusers" && o.eta > 0 ? 1 : 0));
  const double on_difference = (on_D1 * r0 + on_D2) / (r0 + r1);
  const double on_D1_0 = (on_D1 + on_difference) / r0, on_D1_1 = -on_difference / r1;
  row->wx[kX0] += on_D1_0;
  row->wx[kH1] += on_D1_1 - on_D1_0;
  row->wx[kH2] -= on_D1_1;
}

// Two rows from `from` by way of `middle` to `down`, and `noise` z on top.
void add_pair(const Course& course, const Level& from, const Level& middle, const Level& down, double noise, Rows* rows) {
  const double h = log_snr(down) - log_snr(from), r = (log_snr(middle) - log_snr(from)) / h;
  const double on_D1 = course.o.solver_type == "heun" ? down.alpha * phi2(h) : -down.alpha * std::expm1(-h) / 2;
  RowF64 first = row_at(course, from), second = row_at(course, middle);
  exponential_step(from, middle, first.wx);
  first.flags |= kKeep;
  exponential_step(from, down, first.wy);
  first.wy[kX0] -= on_D1 / r;
  second.wx[kY] = 1;
  second.wx[kX0] = on_D1 / r;
  second.wx[kZ] = noise;
  rows->push_back(first);
  rows->push_back(second);
}

void add_single(const Course& course, size_t i, Rows* rows) {
  RowF64 row = row_at(course, course.levels[i]);
  exponential_step(course.levels[i], course.levels[i + 1], row.wx);
  rows->push_back(row);
}

// diffusers takes the middle of a pair from the grid: orders 1, 2, 1, 2, ..., with order 1 at the end.
Rows diffusers_singlestep(const Course& course) {
  const size_t n = course.steps();
  const bool ends_low = course.o.lower_order_final == 1 || n % 2 == 1 || course.levels[n].sigma == 0;
  const size_t pairs = ends_low ? (n % 2 == 1 ? n / 2 : n / 2 - 1) : n / 2;
  Rows rows;
  for (size_t k = 0; k < pairs; ++k) {
    add_pair(course, course.levels[2 * k], course.levels[2 * k + 1], course.levels[2 * k + 2], 0, &rows);
  }
  for (size_t i = 2 * pairs; i < n; ++i) add_single(course, i, &rows);
  return rows;
}

}  // namespace

Rows compile_dpmpp_multistep(const Course& course) {
  Rows rows;
  for (size_t i = 0; i < course.steps(); ++i) {
    RowF64 row = row_at(course, course.levels[i]);
    multistep_row(course, i, multistep_order(course, i), &row);
    if (i + 1 < course.steps()) {
      row.flags |= kPush;
      row.wh[kX0] = 1;
    }
    rows.push_back(row);
  }
  return rows;
}

Rows compile_dpmpp_singlestep(const Course& course) {
  if (course.o.compat == "diffusers") return diffusers_singlestep(course);
  Rows rows;
  for (size_t i = 0; i < course.steps(); ++i) {
    const Level &from = course.levels[i], &to = course.levels[i + 1];
    if (to.sigma == 0) {
      add_single(course, i, &rows);
      continue;
    }
    if (from.alpha == 0) {  // no middle between pure noise and anything
      RowF64 row = row_at(course, from);
      ddim_step(course, from, to, course.o.eta, &row);
      rows.push_back(row);
      continue;
    }
    const double r = decay(from, to), noise = course.o.eta * to.sigma * std::sqrt((1 - r) * (1 + r));
    Level down = to;
    down.sigma = std::sqrt(std::max(0.0, to.sigma * to.sigma - noise * noise));
    const double middle = (log_snr(from) + log_snr(down)) / 2;
    add_pair(course, from, course_level_at_sigma(course, std::exp(-middle)), down, noise, &rows);
  }
  return rows;
}

}  // namespace ddpm_rt
