// step_cpu against a float64 evaluation of the formulas in step.h, on random rows of every flag it executes, and the
// promises of its contract: what has no weight is not read, and no slot or output count changes another's bits.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "check.h"
#include "step.h"
#include "step_case.h"
#include "step_reference.h"

using namespace ddpm_rt;
using namespace step_case;

namespace {

const size_t kSizes[] = {1, 3, 255, 257, 767, 768, 769, 784, 3072};

struct Expected {
  Bounded x, y, h, in, x0;
};

Expected reference(const Case& c, size_t i) {
  const StepRow& row = c.row;
  const auto value = [&](int array) { return exact(c.arrays[array][i]); };
  Bounded operand[8];
  operand[kX] = value(kStateX);
  if (!(row.flags & kNoEval)) {
    Bounded e = c.has[kCond] ? value(kCond) : value(kUncond);
    if (c.has[kCond] && c.has[kUncond]) {
      const double s_row = 1.0 + (static_cast<double>(c.scale) - 1.0) * row.gs;
      e = value(kUncond) + s_row * (value(kCond) + -1.0 * value(kUncond));
      e.magnitude *= 1.0 + std::fabs(c.scale) * std::fabs(row.gs);  // s_row is itself rounded
    }
    if (c.has[kGuide]) e = e + static_cast<double>(c.scale2) * (value(kCond) + -1.0 * value(kGuide));
    operand[kE] = e;
  }
  Bounded x0 = static_cast<double>(row.p) * operand[kX] + static_cast<double>(row.q) * operand[kE];
  if (row.flags & kClip) x0.value = std::min(std::max(x0.value, double{row.clip_lo}), double{row.clip_hi});
  operand[kX0] = x0;
  for (uint32_t k = 0; k < 3; ++k) operand[kH1 + k] = value(kHistory0 + static_cast<int>((c.ring + k) % 3));
  operand[kY] = value(kAnchor);
  operand[kZ] = exact(reference_normal(c, i, kStreamStep));
  operand[kZ].magnitude += 1.0;
  Expected expected;
  for (int k = 0; k < 8; ++k) expected.x = expected.x + static_cast<double>(row.wx[k]) * operand[k];
  for (int k = 0; k < 7; ++k) expected.y = expected.y + static_cast<double>(row.wy[k]) * operand[k];
  for (int k = 0; k < 3; ++k) expected.h = expected.h + static_cast<double>(row.wh[k]) * operand[k];
  expected.in = static_cast<double>(c.next.c_in) * expected.x;
  expected.x0 = x0;
  return expected;
}

void test_random_rows() {
  double worst = 0.0;
  bool untouched = true;
  const auto compare = [&](float got, Bounded want) {
    const double share = std::fabs(got - want.value) / (8.0 * 0x1p-24 * want.magnitude + 1e-30);
    worst = std::max(worst, std::isfinite(got) ? share : 1e9);
  };
  for (uint64_t trial = 0; trial < 600; ++trial) {
    Random random(trial);
    const Case before(&random, kSizes[trial % 9]);
    Case after = before;
    const StepSlot slot = after.slot();
    uint8_t bad = 0;
    step_cpu(&slot, 1, after.elements, &bad);
    CHECK(bad == 0);
    const uint32_t flags = before.row.flags;
    const int pushed = kHistory0 + static_cast<int>((before.ring + 2) % 3);
    for (size_t i = 0; i < before.elements; ++i) {
      const Expected want = reference(before, i);
      compare(after.arrays[kStateX][i], want.x);
      if (flags & kKeep) compare(after.arrays[kAnchor][i], want.y);
      if (flags & kPush) compare(after.arrays[pushed][i], want.h);
      if (before.has[kX0Out]) compare(after.arrays[kX0Out][i], want.x0);
      for (int k = kIn0; k <= kIn2; ++k) {
        if (before.has[k] && !(flags & kLast)) compare(after.arrays[k][i], want.in);
      }
    }
    for (int a = 0; a < kArrays; ++a) {
      const bool is_output = a == kStateX || (a == kAnchor && flags & kKeep) || (a == pushed && flags & kPush) ||
                             (a >= kIn0 && a <= kIn2 && before.has[a] && !(flags & kLast)) ||
                             (a == kX0Out && before.has[a]);
      if (!is_output) untouched = untouched && before.arrays[a] == after.arrays[a];
    }
  }
  std::printf("step against float64: worst share of the tolerance %.2f\n", worst);
  CHECK(worst <= 1.0);
  CHECK(untouched);
}

// Every operand without a weight is NaN, or absent: nothing may change.
void test_zero_weight_is_not_read() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  bool same = true;
  for (uint64_t trial = 0; trial < 600; ++trial) {
    Random random(10000 + trial);
    Case clean(&random, kSizes[trial % 9]);
    if (trial % 2 == 0) clean.has[kX0Out] = false;
    const StepRow& row = clean.row;
    const bool keeps = row.flags & kKeep, pushes = row.flags & kPush;
    const auto is_read = [&](int k) {
      return row.wx[k] != 0.0f || (keeps && k < 7 && row.wy[k] != 0.0f) || (pushes && k < 3 && row.wh[k] != 0.0f);
    };
    const bool reads_x0 = is_read(kX0) || clean.has[kX0Out];
    Case poisoned = clean;
    const auto poison = [&](int array) { std::fill(poisoned.arrays[array].begin(), poisoned.arrays[array].end(), nan); };
    if (!is_read(kX) && !(reads_x0 && row.p != 0.0f)) poison(kStateX);
    if (row.flags & kNoEval) {
      poison(kCond);
      poison(kUncond);
      poison(kGuide);
    }
    for (uint32_t k = 0; k < 3; ++k) {
      const int array = kHistory0 + static_cast<int>((clean.ring + k) % 3);
      if (!is_read(kH1 + static_cast<int>(k))) poison(array);
    }
    if (!is_read(kY)) poison(kAnchor);
    const bool e_unread = !is_read(kE) && !(reads_x0 && row.q != 0.0f) && !(row.flags & kNoEval);
    if (e_unread) poison(clean.has[kCond] ? kCond : kUncond);
    const StepSlot slots[2] = {clean.slot(), poisoned.slot()};
    uint8_t bad[2] = {0, 0};
    step_cpu(slots, 2, clean.elements, bad);
    CHECK(bad[0] == 0 && bad[1] == (e_unread ? 1 : 0));
    const auto equal = [&](int a) {
      return memcmp(clean.arrays[a].data(), poisoned.arrays[a].data(), clean.elements * sizeof(float)) == 0;
    };
    same = same && equal(kStateX) && equal(kIn0) && equal(kIn1) && equal(kIn2) && equal(kX0Out);
    if (keeps) same = same && equal(kAnchor);
    if (pushes) same = same && equal(kHistory0 + static_cast<int>((clean.ring + 2) % 3));
  }
  CHECK(same);
}

void test_null_operands() {
  Random random(5);
  Case c(&random, 100);
  c.row.flags = kNoEval | kLast;
  for (int a = kCond; a < kArrays; ++a) c.has[a] = false;
  std::fill(c.row.wx, c.row.wx + 8, 0.0f);
  c.row.wx[kX] = 2.0f;
  const Case before = c;
  const StepSlot slot = c.slot();
  uint8_t bad = 0;
  step_cpu(&slot, 1, 100, &bad);
  bool doubled = true;
  for (size_t i = 0; i < 100; ++i) doubled = doubled && c.arrays[kStateX][i] == 2.0f * before.arrays[kStateX][i];
  CHECK(doubled && bad == 0);
  step_cpu(&slot, 0, 100, &bad);
  step_cpu(&slot, 1, 0, &bad);
  CHECK(c.arrays[kStateX][0] == 2.0f * before.arrays[kStateX][0]);
}

void test_nan_passes_clip_and_is_reported() {
  const float specials[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()};
  for (float special : specials) {
    for (size_t where : {size_t{0}, size_t{5}, size_t{767}, size_t{768}, size_t{783}}) {
      Random random(where + 77);
      std::vector<Case> cases(3, Case(&random, 784));
      std::vector<StepSlot> slots;
      for (Case& c : cases) {
        c.row.flags = kClip;
        c.row.p = 1.0f;
        c.row.q = -0.5f;
        std::fill(c.row.wx, c.row.wx + 8, 0.0f);
        c.row.wx[kX0] = 1.0f;
        c.has[kCond] = true;
        c.has[kUncond] = c.has[kGuide] = false;
        c.has[kIn0] = c.has[kX0Out] = true;
        slots.push_back(c.slot());
      }
      cases[1].arrays[kCond][where] = special;
      uint8_t bad[3] = {0, 0, 1};  // the third was bad before: never cleared
      step_cpu(slots.data(), 3, 784, bad);
      CHECK(bad[0] == 0 && bad[1] == 1 && bad[2] == 1);
      CHECK(std::isnan(special) == std::isnan(cases[1].arrays[kX0Out][where]));
      CHECK(cases[0].same_bits(cases[2]));
      cases[1].arrays[kCond][where] = cases[0].arrays[kCond][where];
      for (int a : {kStateX, kIn0, kIn1, kIn2, kX0Out}) cases[1].arrays[a][where] = cases[0].arrays[a][where];
      CHECK(cases[0].same_bits(cases[1]));
    }
  }
}

// Alone, among strangers, or with other output pointers: one slot's bits are its own.
void test_isolation() {
  for (size_t elements : kSizes) {
    Random random(elements);
    std::vector<Case> together;
    for (int s = 0; s < 7; ++s) together.emplace_back(&random, elements);
    std::vector<Case> alone = together, lean = together;
    std::vector<StepSlot> slots;
    for (Case& c : together) slots.push_back(c.slot());
    std::vector<uint8_t> bad(7, 0);
    step_cpu(slots.data(), 7, elements, bad.data());
    bool same = true, same_lean = true;
    for (int s = 0; s < 7; ++s) {
      const StepSlot one = alone[s].slot();
      step_cpu(&one, 1, elements, bad.data());
      same = same && alone[s].same_bits(together[s]);
      lean[s].has[kIn0] = lean[s].has[kIn1] = lean[s].has[kX0Out] = false;
      const StepSlot few = lean[s].slot();
      step_cpu(&few, 1, elements, bad.data());
      for (int a = kStateX; a <= kAnchor; ++a) {
        same_lean = same_lean &&
                    memcmp(lean[s].arrays[a].data(), together[s].arrays[a].data(), elements * sizeof(float)) == 0;
      }
    }
    CHECK(same);
    CHECK(same_lean);
  }
}

// The noise of a row is fill_normals of the same key, bit for bit, and a sum's zero is +0.
void test_noise_and_zero() {
  Random random(3);
  for (size_t elements : kSizes) {
    Case c(&random, elements);
    c.row.flags = kNoEval;
    c.row.p = c.row.q = 0.0f;
    std::fill(c.row.wx, c.row.wx + 8, 0.0f);
    c.row.wx[kZ] = 1.0f;
    std::vector<float> normals(elements);
    fill_normals(c.seed, c.row.noise_index, kStreamStep, 0, elements, normals.data());
    const StepSlot slot = c.slot();
    uint8_t bad = 0;
    step_cpu(&slot, 1, elements, &bad);
    CHECK(c.arrays[kStateX] == normals);
    c.row.wx[kZ] = 0.0f;
    c.row.wx[kX] = -1.0f;
    std::fill(c.arrays[kStateX].begin(), c.arrays[kStateX].end(), 0.0f);
    step_cpu(&slot, 1, elements, &bad);
    CHECK(!std::signbit(c.arrays[kStateX][elements - 1]));
  }
}

}  // namespace

int main() {
  test_random_rows();
  test_zero_weight_is_not_read();
  test_null_operands();
  test_nan_passes_clip_and_is_reported();
  test_isolation();
  test_noise_and_zero();
  return finish();
}
