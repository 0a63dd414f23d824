// Solvers that extrapolate eps by a polynomial and integrate it: LMS, in sigma (linear multistep, k-diffusion's order 1 to 4),
// and DEIS, in log rho (Zhang & Chen 2204.13902, tAB-DEIS in the rho of section 3.3: rho = sigma / alpha).
#include <array>
#include <cmath>

#include "error.h"
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

constexpr size_t kMostOrder = 4;
using Coefficients = std::array<double, kMostOrder>;

// Coefficients of prod over k != j of (u - node_k) / (node_j - node_k), lowest power first.
Coefficients lagrange(const double* nodes, size_t order, size_t j) {
  Coefficients c{1};
  size_t degree = 0;
  for (size_t k = 0; k < order; ++k) {
    if (k == j) continue;
    const double scale = 1 / (nodes[j] - nodes[k]);
    ++degree;
    for (size_t power = degree; power > 0; --power) c[power] = (c[power - 1] - (power < degree ? nodes[k] * c[power] : 0)) * scale;
    c[0] *= -nodes[k] * scale;
  }
  return c;
}

// Integral of u^power over [0, end]; of u^power e^u with is_log.
double moment(double end, size_t power, bool is_log) {
  if (!is_log) return std::pow(end, static_cast<double>(power + 1)) / static_cast<double>(power + 1);
  // The series in u: no cancellation for steps below 1; the closed form above.
  if (std::fabs(end) < 1) {
    double term = std::pow(end, static_cast<double>(power + 1)), sum = 0;
    for (int k = 0; k < 40; ++k) {
      sum += term / static_cast<double>(power + 1 + static_cast<size_t>(k));
      term *= end / (k + 1);
    }
    return sum;
  }
  double value = std::expm1(end);
  for (size_t k = 1; k <= power; ++k) value = std::pow(end, static_cast<double>(k)) * std::exp(end) - static_cast<double>(k) * value;
  return value;
}

// The curve that is extrapolated: eps + slope x0, the older points in the ring.
struct Curve {
  const Course& course;
  size_t i;
  double slope;

  void add(double weight, double* w) const {
    add_eps(course, course.levels[i], weight, w);
    w[kX0] += weight * slope;
  }
  void push(RowF64* row) const {
    if (i + 1 == course.steps()) return;
    row->flags |= kPush;
    add(1, row->wh);
  }
};

// w += factor times the integral of the polynomial through `order` points at `nodes`, over [0, end].
void add_integral(const Curve& curve, size_t order, const double* nodes, double end, bool is_log, double factor, double* w) {
  for (size_t j = 0; j < order; ++j) {
    const Coefficients c = lagrange(nodes, order, j);
    double weight = 0;
    for (size_t power = 0; power < order; ++power) weight += c[power] * moment(end, power, is_log);
    if (j == 0) curve.add(factor * weight, w);
    else w[kH1 + j - 1] += factor * weight;
  }
}

}  // namespace

Rows compile_lms(const Course& course) {
  Rows rows;
  for (size_t i = 0; i < course.steps(); ++i) {
    const size_t order = std::min(static_cast<size_t>(course.o.order), i + 1);
    const Curve curve{course, i, course.slope()};
    const double at = course.levels[i].sigma;
    double nodes[kMostOrder];
    for (size_t j = 0; j < order; ++j) nodes[j] = course.levels[i - j].sigma - at;
    RowF64 row = row_at(course, course.levels[i]);
    if (order == 1 && course.levels[i + 1].sigma == 0) {
      row.wx[kX0] = course.levels[i + 1].alpha;  // exactly x0
    } else {
      row.wx[kX] = 1;
      add_integral(curve, order, nodes, course.levels[i + 1].sigma - at, false, 1, row.wx);
    }
    curve.push(&row);
    rows.push_back(row);
  }
  return rows;
}

Rows compile_deis(const Course& course) {
  Rows rows;
  for (size_t i = 0; i < course.steps(); ++i) {
    const Level &from = course.levels[i], &to = course.levels[i + 1];
    const size_t order = static_cast<size_t>(multistep_order(course, i));
    const Curve curve{course, i, 0};
    RowF64 row = row_at(course, from);
    if (order == 1) {
      ddim_step(course, from, to, 0, &row);
    } else {
      double nodes[kMostOrder];
      for (size_t j = 0; j < order; ++j) nodes[j] = log_snr(from) - log_snr(course.levels[i - j]);  // log rho - log rho_i
      row.wx[kX] = to.alpha / from.alpha;
      add_integral(curve, order, nodes, log_snr(from) - log_snr(to), true, to.alpha * from.sigma / from.alpha, row.wx);
    }
    curve.push(&row);
    rows.push_back(row);
  }
  return rows;
}

}  // namespace ddpm_rt
