// Euler and Heun with churn: Karras et al. 2206.00364 algorithm 2, in EDM space, or along a flow schedule's own sigma. Without
// churn Euler is DDIM with eta 0. The churn of an interval is drawn before its evaluation, so it is the noise of the row before.
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

// w += weight * dx/dsigma
void add_derivative(const Course& course, const Level& at, double weight, double* w) {
  add_eps(course, at, weight, w);
  w[kX0] += weight * course.slope();
}

}  // namespace

Rows compile_heun(const Course& course) {
  const bool is_heun = course.o.sampler == "heun";
  // diffusers' Euler evaluates before it adds the churn: eps belongs to sigma, the step to the churned sigma.
  const bool is_late = course.o.compat == "diffusers";
  Rows rows;
  if (!is_late) add_first_churn(course, &rows);
  for (size_t i = 0; i < course.steps(); ++i) {
    const Level &from = is_late ? course.levels[i] : churned(course, i), &to = course.levels[i + 1];
    RowF64 row = row_at(course, from);
    if (is_heun && to.sigma > 0) {
      const double step = to.sigma - from.sigma;
      row.wx[kX] = row.wy[kX] = 1;
      add_derivative(course, from, step, row.wx);
      add_derivative(course, from, step / 2, row.wy);
      row.flags |= kKeep;
      rows.push_back(row);
      row = row_at(course, to);
      row.wx[kY] = 1;
      add_derivative(course, to, step / 2, row.wx);
    } else if (is_late && churn_gamma(course, i) > 0) {
      row.wx[kX] = 1;
      row.wx[kZ] = churn_std(course, i);
      add_eps(course, from, to.sigma - churned(course, i).sigma, row.wx);
    } else {
      ddim_step(course, from, to, 0, &row);
    }
    if (!is_late && i + 1 < course.steps()) row.wx[kZ] += churn_std(course, i + 1);
    rows.push_back(row);
  }
  return rows;
}

}  // namespace ddpm_rt
