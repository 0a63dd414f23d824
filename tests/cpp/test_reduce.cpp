// The sums and order statistics of reduce.h against their own text, written out, and against sorting.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "reduce.h"
#include "step_case.h"

using namespace ddpm_rt;
using step_case::Random;

namespace {

const size_t kSizes[] = {1, 2, 3, 255, 256, 257, 4095, 4096, 4097, 8192, 12288, 50001};

// The text of reduce.h, term by term.
double stated_sum(const std::vector<double>& terms) {
  double total = 0.0;
  for (size_t chunk = 0; chunk < terms.size(); chunk += 4096) {
    std::vector<double> lanes(256, 0.0);
    for (size_t l = 0; l < 256; ++l) {
      for (size_t i = chunk + l; i < std::min(chunk + 4096, terms.size()); i += 256) lanes[l] += terms[i];
    }
    for (size_t width : {128, 64, 32, 16, 8, 4, 2, 1}) {
      for (size_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    }
    total += lanes[0];
  }
  return total;
}

void test_sum_is_the_stated_tree() {
  Random random(1);
  for (size_t n : kSizes) {
    std::vector<double> terms(n);
    for (double& t : terms) t = static_cast<double>(random.uniform()) * std::pow(2.0, static_cast<int>(random.below(40)) - 20);
    TreeSum once, in_parts;
    once.add(n, [&](size_t i) { return terms[i]; });
    for (size_t first = 0; first < n; first += 768) {
      in_parts.add(std::min<size_t>(768, n - first), [&](size_t i) { return terms[first + i]; });
    }
    const double expected = stated_sum(terms);
    CHECK(once.finish() == expected);
    CHECK(in_parts.finish() == expected);
  }
  TreeSum nothing;
  CHECK(nothing.finish() == 0.0);
}

double deviation(const std::vector<float>& values) {
  Spread spread;
  spread.add(values.data(), values.size());
  return spread.deviation(values.size());
}

void test_standard_deviation() {
  Random random(2);
  double worst = 0.0;
  for (size_t n : kSizes) {
    for (float offset : {0.0f, 3.0f, 1e4f}) {
      std::vector<float> values(n);
      for (float& v : values) v = random.uniform() + offset;
      values[0] += offset == 3.0f ? 1e6f : 0.0f;  // the shift is the sample's worst outlier
      long double mean = 0.0L, squares = 0.0L;
      for (float v : values) mean += v / static_cast<long double>(n);
      for (float v : values) squares += (v - mean) * (v - mean) / static_cast<long double>(n);
      const double expected = static_cast<double>(std::sqrt(squares));
      if (n > 1) worst = std::max(worst, std::fabs(deviation(values) / expected - 1.0));
      std::fill(values.begin(), values.end(), 0.1f + offset);
      CHECK(deviation(values) == 0.0);
    }
  }
  std::printf("standard deviation: worst relative error %.3g\n", worst);
  CHECK(worst <= 1e-9);
  CHECK(std::isnan(deviation({1.0f, std::numeric_limits<float>::quiet_NaN(), 2.0f})));
}

float selected(const std::vector<float>& values, float p, float cap) {
  Selection selection{};
  for (int pass = 0; pass < kSelectPasses && !selection.is_done; ++pass) {
    Histogram histogram{};
    histogram.next_above = kNoBits;
    for (size_t first = 0; first < values.size(); first += 100) {
      count_values(&values[first], std::min<size_t>(100, values.size() - first), selection.prefix, pass, &histogram);
    }
    select_from(histogram, pass, p, cap, static_cast<uint32_t>(values.size()), &selection);
  }
  CHECK(selection.is_done);
  return selection.r;
}

float sorted(std::vector<float> values, float p, float cap) {
  for (float& v : values) v = std::fabs(v);
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  const double at = static_cast<double>(p) * static_cast<double>(n - 1);
  const size_t k = static_cast<size_t>(at);
  const double f = at - static_cast<double>(k), lo = values[k], hi = values[std::min(k + 1, n - 1)];
  const float q = f == 0.0 ? values[k] : static_cast<float>(lo + f * (hi - lo));
  return std::min(std::max(q, 1.0f), cap);
}

void test_threshold_is_the_sorted_one() {
  Random random(3);
  bool same = true;
  size_t above = 0;
  for (uint32_t trial = 0; trial < 3000; ++trial) {
    std::vector<float> values(1 + random.below(trial % 10 == 0 ? 9000 : 40));
    const uint32_t kind = random.below(6);
    for (float& v : values) {
      v = random.uniform();                                                  // around 1
      if (kind == 1) v *= 0.5f;                                              // all at most 1
      if (kind == 2) v = (random.coin() ? 1.0f : -1.0f) * (1.5f + std::fabs(v));  // all above
      if (kind == 3) v = static_cast<float>(static_cast<int>(v * 2.0f));     // ties, zeros of both signs
      if (kind == 4) v = v * std::pow(2.0f, static_cast<float>(random.below(250)) - 125.0f);
      if (kind == 5) v = bits_float(float_bits(1.25f) + random.below(3));    // neighbours in the last digit
    }
    for (float p : {0.0f, 0.3f, 0.5f, 0.9f, 0.95f, 0.995f, 1.0f}) {
      for (float cap : {0.5f, 1.0f, 1.25f, 1e30f}) {
        const float expected = sorted(values, p, cap), got = selected(values, p, cap);
        same = same && got == expected;
        above += expected > 1.0f;
      }
    }
  }
  CHECK(same);
  CHECK(above > 10000);
}

void test_threshold_of_a_large_sample() {
  Random random(4);
  std::vector<float> values(3 * 512 * 512);
  for (float& v : values) v = random.uniform() * 0.8f;
  for (float p : {0.5f, 0.95f, 0.995f}) CHECK(selected(values, p, 100.0f) == sorted(values, p, 100.0f));
}

void test_threshold_of_what_is_not_a_number() {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(selected({0.5f, 3.0f, inf, 2.0f}, 0.5f, 10.0f) == 2.5f);
  CHECK(selected({0.5f, 3.0f, -inf, 2.0f}, 1.0f, 10.0f) == 10.0f);
  CHECK(selected({0.5f, 3.0f, inf, inf}, 0.75f, 10.0f) == 10.0f);
  CHECK(selected({nan, 0.5f, 4.0f, 2.0f}, 0.34f, 10.0f) > 2.0f);  // NaN sorts last
  CHECK(std::isnan(selected({nan, 0.5f}, 1.0f, 10.0f)));
  CHECK(selected({3.0f, 2.0f}, nan, 10.0f) == 2.0f && selected({3.0f, 2.0f}, -1.0f, 10.0f) == 2.0f);
  CHECK(selected({3.0f, 2.0f}, 7.0f, 10.0f) == 3.0f);
}

}  // namespace

int main() {
  test_sum_is_the_stated_tree();
  test_standard_deviation();
  test_threshold_is_the_sorted_one();
  test_threshold_of_a_large_sample();
  test_threshold_of_what_is_not_a_number();
  return finish();
}
