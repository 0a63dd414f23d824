// UniPC (Zhao et al. 2302.04867), data prediction: UniP-p (eq. 12) after UniC-p (eq. 9), which needs no evaluation of its own.
//
// | symbol   | meaning                                                                          |
// |----------|----------------------------------------------------------------------------------|
// | y        | the corrected state of the row before                                            |
// | m_k      | x0 predictions: of this row (k = 0), and h1, h2, h3 of the rows before           |
// | hh, B    | -h; B(h) = hh (bh1) or e^hh - 1 (bh2)                                            |
// | r_k      | (lambda of m_k - lambda of the base) / h                                         |
// | rho, b   | R rho = b with R_jk = r_k^(j-1), b_j = j! phi_{j+1}(hh) hh / B: eq. 5 and theorem 3.1 |
#include <algorithm>
#include <cmath>

#include "solver_parts.h"

namespace ddpm_rt {
namespace {

constexpr int kMostOrder = 3;

// sum over m >= 1 of hh^m / (m + k)!: what is left of (e^hh - 1) / hh after k terms, divided by hh^(k-1).
double tail(double hh, int k) {
  double term = 1;
  for (int j = 2; j <= k; ++j) term /= j;
  double sum = 0;
  for (int m = 1; m < 200 && std::fabs(term) > 1e-18 * std::fabs(sum); ++m) sum += term *= hh / (m + k);
  return sum;
}

double closed_tail(double hh, int k) {
  double value = std::expm1(hh) / hh - 1, factorial = 1;
  for (int j = 2; j <= k; ++j) value = value / hh - 1 / (factorial *= j);
  return value;
}

// Gauss with pivoting, n <= 3.
void solve(double (*R)[kMostOrder], double* b, int n) {
  for (int c = 0; c < n; ++c) {
    int pivot = c;
    for (int j = c + 1; j < n; ++j) {
      if (std::fabs(R[j][c]) > std::fabs(R[pivot][c])) pivot = j;
    }
    std::swap_ranges(R[c], R[c] + n, R[pivot]);
    std::swap(b[c], b[pivot]);
    for (int j = c + 1; j < n; ++j) {
      const double f = R[j][c] / R[c][c];
      for (int k = c; k < n; ++k) R[j][k] -= f * R[c][k];
      b[j] -= f * b[c];
    }
  }
  for (int c = n - 1; c >= 0; --c) {
    for (int k = c + 1; k < n; ++k) b[c] -= R[c][k] * b[k];
    b[c] /= R[c][c];
  }
}

// One update from the level `base` to `base + 1`. r[0 .. n): where the differences to m at the base are taken.
struct Update {
  double on_x, on_m;               // sigma' / sigma, -alpha' (e^hh - 1)
  double on_difference[kMostOrder];  // of (m_k - m) each
};
Update update(const Course& course, size_t base, const double* r, int n, bool is_simple) {
  const Level &from = course.levels[base], &to = course.levels[base + 1];
  const double h = log_snr(to) - log_snr(from), hh = -h;
  Update u{to.sigma / from.sigma, to.alpha * (1 - decay(from, to)), {}};
  if (h == 0) return u;
  const double B = course.o.solver_type == "bh1" ? hh : std::expm1(hh);
  double rho[kMostOrder] = {0.5}, R[kMostOrder][kMostOrder];
  if (!is_simple) {
    double factorial = 1;
    for (int j = 0; j < n; ++j) {
      for (int k = 0; k < n; ++k) R[j][k] = std::pow(r[k], j);
      rho[j] = (std::fabs(hh) < 2 ? tail(hh, j + 1) : closed_tail(hh, j + 1)) * factorial / B;
      factorial *= j + 2;
    }
    solve(R, rho, n);
  }
  for (int k = 0; k < n; ++k) u.on_difference[k] = -to.alpha * B * rho[k] / r[k];
  return u;
}

}  // namespace

Rows compile_unipc(const Course& course) {
  const auto lambda = [&](size_t k) { return log_snr(course.levels[k]); };
  const size_t n = course.steps();
  Rows rows;
  int order = 0;  // of the predictor that led here, and so of the corrector
  for (size_t i = 0; i < n; ++i) {
    RowF64 row = row_at(course, course.levels[i]);
    double corrected[7] = {1};  // x as it came, in the first row
    if (i > 0 && course.levels[i - 1].alpha > 0) {  // from pure noise there is nothing to correct by
      const double h = lambda(i) - lambda(i - 1);
      double r[kMostOrder];
      for (int k = 1; k < order; ++k) r[k - 1] = (lambda(i - 1 - static_cast<size_t>(k)) - lambda(i - 1)) / h;
      r[order - 1] = 1;
      const Update u = update(course, i - 1, r, order, order == 1);
      corrected[kX] = 0;
      corrected[kY] = u.on_x;
      corrected[kH1] = u.on_m;
      for (int k = 0; k < order; ++k) {
        corrected[k + 1 < order ? kH2 + k : kX0] += u.on_difference[k];
        corrected[kH1] -= u.on_difference[k];
      }
    }
    order = std::max(1, std::min(course.o.order, static_cast<int>(i) + 1 - (course.levels[0].alpha == 0)));
    if (course.o.lower_order_final == 1) order = std::min(order, static_cast<int>(n - i));
    if (course.levels[i + 1].sigma == 0) order = 1;
    if (course.levels[i + 1].sigma == 0) {
      row.wx[kX0] = course.levels[i + 1].alpha;
    } else {
      const double h = lambda(i + 1) - lambda(i);
      double r[kMostOrder];
      for (int k = 1; k < order; ++k) r[k - 1] = (lambda(i - static_cast<size_t>(k)) - lambda(i)) / h;
      const Update u = update(course, i, r, order - 1, order == 2);
      for (int w = 0; w < 7; ++w) row.wx[w] = u.on_x * corrected[w];
      row.wx[kX0] += u.on_m;
      for (int k = 0; k + 1 < order; ++k) {
        row.wx[kH1 + k] += u.on_difference[k];
        row.wx[kX0] -= u.on_difference[k];
      }
    }
    if (i + 1 < n) {
      row.flags |= kPush | kKeep;
      row.wh[kX0] = 1;
      std::copy(corrected, corrected + 7, row.wy);
    }
    rows.push_back(row);
  }
  return rows;
}

}  // namespace ddpm_rt
