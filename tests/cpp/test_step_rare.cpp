// The rare flags of step.h (THRESHOLD to VLB) on random rows against a float64 evaluation of their formulas, and what
// their contract says of operands without a weight, of neighbours and of what is not a number.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "check.h"
#include "step.h"
#include "step_case.h"
#include "step_reference.h"

using namespace ddpm_rt;
using namespace step_case;

namespace {

const size_t kSizes[] = {1, 3, 255, 257, 767, 768, 769, 4096, 5001};

Case rare_case(Random* random, size_t elements) {
  Case c(random, elements);
  c.add_rare_flags(random);
  return c;
}

bool has(const Case& c, StepFlag flag) { return (c.row.flags & flag) != 0; }

struct Reference {
  std::vector<Bounded> x, y, h, in, x0;
  double kl = 0.0, kl_magnitude = 0.0;
};

double greatest(const std::vector<Bounded>& values) {
  double most = 0.0;
  for (const Bounded& v : values) most = std::max(most, v.magnitude);
  return most;
}

double deviation(const std::vector<Bounded>& values) {
  double mean = 0.0, squares = 0.0;
  for (const Bounded& v : values) mean += v.value / static_cast<double>(values.size());
  for (const Bounded& v : values) squares += (v.value - mean) * (v.value - mean) / static_cast<double>(values.size());
  return std::sqrt(squares);
}

double norm(const std::vector<Bounded>& values) {
  double squares = 0.0;
  for (const Bounded& v : values) squares += v.value * v.value;
  return std::sqrt(squares);
}

double quantile(const std::vector<Bounded>& values, double p) {
  std::vector<double> sorted;
  for (const Bounded& v : values) sorted.push_back(std::fabs(v.value));
  std::sort(sorted.begin(), sorted.end());
  const double at = p * static_cast<double>(sorted.size() - 1);
  const size_t k = static_cast<size_t>(at);
  return sorted[k] + (at - static_cast<double>(k)) * (sorted[std::min(k + 1, sorted.size() - 1)] - sorted[k]);
}

// A factor that was itself computed from values with errors: relative error `relative` in units of the rounding.
void scale(std::vector<Bounded>* values, double factor, double relative) {
  for (Bounded& v : *values) v = {factor * v.value, std::fabs(factor) * (v.magnitude + std::fabs(v.value) * relative)};
}

std::vector<Bounded> guided(const Case& c) {
  std::vector<Bounded> e(c.elements);
  for (size_t i = 0; i < c.elements; ++i) {
    const auto value = [&](int array) { return exact(c.arrays[array][i]); };
    e[i] = c.has[kCond] ? value(kCond) : value(kUncond);
    if (c.has[kCond] && c.has[kUncond]) {
      const double s_row = 1.0 + (static_cast<double>(c.scale) - 1.0) * c.row.gs;
      e[i] = value(kUncond) + s_row * (value(kCond) + -1.0 * value(kUncond));
      e[i].magnitude *= 1.0 + std::fabs(c.scale) * std::fabs(c.row.gs);
    }
    if (c.has[kGuide]) e[i] = e[i] + static_cast<double>(c.scale2) * (value(kCond) + -1.0 * value(kGuide));
  }
  if (has(c, kRescale) && c.has[kCond] && c.elements > 1) {
    std::vector<Bounded> cond(c.elements);
    for (size_t i = 0; i < c.elements; ++i) cond[i] = exact(c.arrays[kCond][i]);
    const double phi = c.row.phi, spread = deviation(e);
    scale(&e, phi * (deviation(cond) / spread) + (1.0 - phi), greatest(e) / spread);
  }
  if (has(c, kGrad)) {
    for (size_t i = 0; i < c.elements; ++i) e[i] = e[i] + static_cast<double>(c.row.ge) * exact(c.rare[kGradient][i]);
  }
  return e;
}

Reference reference(const Case& c) {
  const StepRow& row = c.row;
  const size_t n = c.elements;
  const bool has_e = !has(c, kNoEval);
  const bool is_learned = has_e && (has(c, kLearnedVar) || has(c, kLearnedRange));
  std::vector<Bounded> operand[8];
  for (std::vector<Bounded>& o : operand) o.resize(n);
  if (has_e) operand[kE] = guided(c);
  std::vector<double> log_var(n, row.lp);
  std::vector<Bounded> std_dev(n, exact(1.0)), z(n);
  for (size_t i = 0; i < n; ++i) {
    operand[kX][i] = exact(c.arrays[kStateX][i]);
    for (uint32_t k = 0; k < 3; ++k) operand[kH1 + k][i] = exact(c.arrays[kHistory0 + (c.ring + k) % 3][i]);
    operand[kY][i] = exact(c.arrays[kAnchor][i]);
    z[i] = exact(reference_normal(c, i, kStreamStep));
    z[i].magnitude += 1.0;
    operand[kZ][i] = z[i];
    if (is_learned) {
      const double v = c.rare[kVariance][i], f = (v + 1.0) / 2.0;
      const double lo = row.log_var_lo, hi = row.log_var_hi;
      log_var[i] = !has(c, kLearnedVar) ? f * hi + (1.0 - f) * lo : v;
      const double d = std::exp(log_var[i] / 2.0);
      std_dev[i] = {d, d * (4.0 + 2.0 * (std::fabs(lo) + std::fabs(hi)))};  // exp carries its argument's error
      operand[kZ][i] = {d * z[i].value, d * z[i].magnitude + std::fabs(z[i].value) * std_dev[i].magnitude};
    }
    operand[kX0][i] = static_cast<double>(row.p) * operand[kX][i] + static_cast<double>(row.q) * operand[kE][i];
  }
  if (has(c, kThreshold)) {
    const double r = std::min(std::max(quantile(operand[kX0], row.threshold_p), 1.0), double{row.threshold_cap});
    const double most = greatest(operand[kX0]);  // an order statistic is off by no more than the worst element
    for (Bounded& v : operand[kX0]) v = {std::min(std::max(v.value, -r), r) / r, (v.magnitude + most) / r};
  } else if (has(c, kClip)) {
    for (Bounded& v : operand[kX0]) v.value = std::min(std::max(v.value, double{row.clip_lo}), double{row.clip_hi});
  }
  double weight[8];
  std::copy(row.wx, row.wx + 8, weight);
  double relative = 0.0;
  if (has(c, kNorm) && has_e) {
    const double r = double{row.snr} * norm(z) / norm(operand[kE]);
    weight[kE] *= r * r;
    weight[kZ] *= r;
    relative = 2.0 * std::sqrt(static_cast<double>(n)) * (greatest(operand[kE]) / norm(operand[kE]) + greatest(z) / norm(z));
  }
  Reference want;
  for (size_t i = 0; i < n; ++i) {
    Bounded x;
    for (int k = 0; k < 8; ++k) {
      Bounded term = weight[k] * operand[k][i];
      if (k == kE || k == kZ) term.magnitude += std::fabs(term.value) * relative;
      x = x + term;
    }
    if (has(c, kGrad)) {
      const Bounded moved = static_cast<double>(row.gm) * exact(c.rare[kGradient][i]);
      const double d = std_dev[i].value;
      x = x + Bounded{d * d * moved.value, d * (d + 2.0 * std_dev[i].magnitude) * moved.magnitude};
    }
    if (has(c, kBlend)) {
      Bounded known_noise = exact(reference_normal(c, i, kStreamKnown));
      known_noise.magnitude += 1.0;
      const double m = c.rare[kMask][i];
      x = m * (double{row.ky} * exact(c.rare[kKnown][i]) + double{row.kz} * known_noise) + (1.0 - m) * x;
    }
    want.x.push_back(x);
    want.in.push_back(static_cast<double>(c.next.c_in) * x);
    Bounded y, h;
    for (int k = 0; k < 7; ++k) y = y + static_cast<double>(row.wy[k]) * operand[k][i];
    for (int k = 0; k < 3; ++k) h = h + static_cast<double>(row.wh[k]) * operand[k][i];
    want.y.push_back(y);
    want.h.push_back(h);
    const double lq = row.lq, lp = log_var[i], gap = double{row.v0} * (c.rare[kTruth][i] - operand[kX0][i].value);
    want.kl += 0.5 * (lp - lq + std::exp(lq - lp) - 1.0 + gap * gap * std::exp(-lp)) / static_cast<double>(n);
    const double gap_error = std::fabs(row.v0) * operand[kX0][i].magnitude;
    want.kl_magnitude += std::exp(-lp) * (std::fabs(gap) + gap_error * 1e-6) * gap_error / static_cast<double>(n);
  }
  want.x0 = operand[kX0];
  return want;
}

void test_random_rows() {
  double worst = 0.0, worst_kl = 0.0;
  for (uint64_t trial = 0; trial < 900; ++trial) {
    Random random(trial);
    const Case before = rare_case(&random, kSizes[trial % 9]);
    Case after = before;
    const StepSlot slot = after.slot();
    uint8_t bad = 0;
    step_cpu(&slot, 1, after.elements, &bad);
    CHECK(bad == 0);
    const Reference want = reference(before);
    double worst_here = 0.0;
    const auto compare = [&](int array, const std::vector<Bounded>& expected) {
      for (size_t i = 0; i < before.elements; ++i) {
        const float got = after.arrays[array][i];
        const double share = std::fabs(got - expected[i].value) / (8.0 * 0x1p-24 * expected[i].magnitude + 1e-30);
        worst_here = std::max(worst_here, std::isfinite(got) ? share : 1e9);
      }
    };
    compare(kStateX, want.x);
    if (has(before, kKeep)) compare(kAnchor, want.y);
    if (has(before, kPush)) compare(kHistory0 + static_cast<int>((before.ring + 2) % 3), want.h);
    if (before.has[kX0Out]) compare(kX0Out, want.x0);
    if (!has(before, kLast)) compare(kIn0, want.in);
    if (worst_here > 1.0) std::printf("flags %#x: share %.3g\n", before.row.flags, worst_here);
    worst = std::max(worst, worst_here);
    if (has(before, kVlb)) {
      const double off = std::fabs(after.kl - want.kl);
      worst_kl = std::max(worst_kl, off / (8.0 * 0x1p-24 * want.kl_magnitude + 1e-13 * (1.0 + std::fabs(want.kl))));
    } else {
      CHECK(after.kl == Case::kUnwritten);
    }
    CHECK(before.rare[kGradient] == after.rare[kGradient] && before.rare[kMask] == after.rare[kMask]);
  }
  std::printf("rare flags against float64: worst share of the tolerance %.2f, of the KL's %.2f\n", worst, worst_kl);
  CHECK(worst <= 1.0);
  CHECK(worst_kl <= 1.0);
}

bool same_outputs(const Case& a, const Case& b) {
  for (int array : {kStateX, kIn0, kIn1, kIn2, kX0Out}) {
    if (memcmp(a.arrays[array].data(), b.arrays[array].data(), a.elements * sizeof(float)) != 0) return false;
  }
  return memcmp(&a.kl, &b.kl, sizeof a.kl) == 0;
}

// What no weight reads is NaN, or absent: nothing may change.
void test_zero_weight_is_not_read() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  bool same = true;
  int poisonings = 0;
  for (uint64_t trial = 0; trial < 900; ++trial) {
    Random random(20000 + trial);
    Case clean = rare_case(&random, kSizes[trial % 9]);
    StepRow& row = clean.row;
    Case poisoned = clean;
    const auto poison = [&](int array) {
      std::fill(poisoned.rare[array].begin(), poisoned.rare[array].end(), nan);
      if (trial % 2 == 0) poisoned.rare[array].clear();
      ++poisonings;
    };
    const bool has_e = !(row.flags & kNoEval);
    const bool moves_x = (row.flags & kGrad) && row.gm != 0.0f;
    if (!moves_x && !((row.flags & kGrad) && has_e && row.ge != 0.0f)) poison(kGradient);
    const bool is_learned = has_e && (row.flags & (kLearnedVar | kLearnedRange));
    if (!is_learned || (row.wx[kZ] == 0.0f && !moves_x && !(row.flags & kVlb))) poison(kVariance);
    if (!(row.flags & kBlend)) poison(kMask);
    if (!(row.flags & kBlend) || row.ky == 0.0f) poison(kKnown);
    if (!(row.flags & kVlb)) poison(kTruth);
    if (!poisoned.rare[kKnown].empty() && !poisoned.rare[kMask].empty()) {
      for (size_t i = 0; i < clean.elements; ++i) {
        if (clean.rare[kMask][i] == 0.0f) poisoned.rare[kKnown][i] = nan;
      }
    }
    const StepSlot slots[2] = {clean.slot(), poisoned.slot()};
    uint8_t bad[2] = {0, 0};
    step_cpu(slots, 2, clean.elements, bad);
    CHECK(bad[0] == 0 && bad[1] == 0);
    same = same && same_outputs(clean, poisoned);
  }
  CHECK(same);
  CHECK(poisonings > 1000);
}

// A batch of rows of all kinds, a stranger of NaN among them: each has the bits that it has alone.
void test_isolation() {
  for (size_t elements : kSizes) {
    Random random(elements);
    std::vector<Case> together;
    for (int s = 0; s < 8; ++s) together.push_back(s % 3 == 0 ? Case(&random, elements) : rare_case(&random, elements));
    for (std::vector<float>& array : together[4].arrays) std::fill(array.begin(), array.end(), std::nanf(""));
    std::vector<Case> alone = together;
    std::vector<StepSlot> slots;
    for (Case& c : together) slots.push_back(c.slot());
    std::vector<uint8_t> bad(8, 0);
    step_cpu(slots.data(), 8, elements, bad.data());
    bool same = true;
    for (int s = 0; s < 8; ++s) {
      if (s == 4) continue;
      const StepSlot one = alone[s].slot();
      uint8_t bad_one = 0;
      step_cpu(&one, 1, elements, &bad_one);
      same = same && alone[s].same_bits(together[s]) && bad_one == 0 && bad[s] == 0;
    }
    CHECK(same);
  }
}

void test_what_is_not_finite_is_reported() {
  const float inf = std::numeric_limits<float>::infinity();
  for (int array : {kVariance, kGradient, kKnown}) {
    Random random(9);
    Case c = rare_case(&random, 784);
    c.row.flags = kLearnedVar | kGrad | kBlend;
    c.row.ge = 0.0f;
    c.row.gm = c.row.ky = c.row.kz = c.row.wx[kZ] = 1.0f;
    c.rare[kMask].assign(784, 0.5f);
    c.rare[array][700] = array == kVariance ? std::nanf("") : inf;
    const StepSlot slot = c.slot();
    uint8_t bad = 0;
    step_cpu(&slot, 1, 784, &bad);
    CHECK(bad == 1);
  }
}

// e = 0 gives NORM no direction; a constant e has nothing to rescale; a flag without its operand does nothing.
void test_degenerate_rows() {
  Random random(11);
  Case c = rare_case(&random, 300);
  c.row.flags = kNorm | kRescale;
  c.row.snr = 1.0f;
  std::fill(c.row.wx, c.row.wx + 8, 0.0f);
  c.row.wx[kX] = c.row.wx[kE] = c.row.wx[kZ] = 1.0f;
  c.has[kCond] = true;
  c.has[kUncond] = c.has[kGuide] = false;
  std::fill(c.arrays[kCond].begin(), c.arrays[kCond].end(), 0.0f);
  const std::vector<float> x = c.arrays[kStateX];
  StepSlot slot = c.slot();
  uint8_t bad = 0;
  step_cpu(&slot, 1, 300, &bad);
  CHECK(c.arrays[kStateX] == x && bad == 0);
  step_cpu(&slot, 1, 0, &bad);

  Case plain = rare_case(&random, 300);
  plain.row.flags = 0;
  Case lacking = plain;
  lacking.row.flags = kLearnedVar | kGrad | kBlend | kVlb;
  for (std::vector<float>& array : lacking.rare) array.clear();
  const StepSlot slots[2] = {plain.slot(), lacking.slot()};
  uint8_t bads[2] = {0, 0};
  step_cpu(slots, 2, 300, bads);
  CHECK(same_outputs(plain, lacking));
}

}  // namespace

int main() {
  test_random_rows();
  test_zero_weight_is_not_read();
  test_isolation();
  test_what_is_not_finite_is_reported();
  test_degenerate_rows();
  return finish();
}
