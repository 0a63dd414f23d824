// The element maths by itself, guidance with rescale, and the way to uint8, against float64.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "step.h"
#include "step_math.h"

using namespace ddpm_rt;

namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInf = std::numeric_limits<float>::infinity();

void test_exp() {
  double worst = 0.0;
  for (int i = -860000; i <= 860000; ++i) {
    const float v = static_cast<float>(i) * 1e-4f;
    worst = std::max(worst, std::fabs(exp_f32(v) / std::exp(static_cast<double>(v)) - 1.0));
  }
  std::printf("exp_f32: worst relative error %.3g\n", worst);
  CHECK(worst <= 2e-7);
  CHECK(exp_f32(0.0f) == 1.0f);
  CHECK(std::isnan(exp_f32(kNan)));
  CHECK(exp_f32(kInf) == exp_f32(87.0f) && exp_f32(-kInf) == exp_f32(-87.0f));
  CHECK_NEAR(learned_std(std::log(0.04f)), 0.2, 1e-7);
  const double lo = std::log(1e-4), hi = std::log(0.02);
  for (double v : {-1.0, -0.3, 0.0, 0.8, 1.0}) {
    const double f = (v + 1.0) / 2.0, expected = std::exp(0.5 * (f * hi + (1.0 - f) * lo));
    const float got = learned_range_std(static_cast<float>(v), static_cast<float>(lo), static_cast<float>(hi));
    CHECK_NEAR(got / expected, 1.0, 1e-6);
  }
}

void test_elements() {
  CHECK(clip(0.25f, -1.0f, 1.0f) == 0.25f && clip(-3.0f, -1.0f, 1.0f) == -1.0f && clip(3.0f, -1.0f, 1.0f) == 1.0f);
  CHECK(clip(kInf, -1.0f, 1.0f) == 1.0f && clip(-kInf, -1.0f, 1.0f) == -1.0f && std::isnan(clip(kNan, -1.0f, 1.0f)));
  CHECK(std::isnan(clip(kNan, -kInf, kInf)) && clip(kInf, -kInf, kInf) == kInf);
  CHECK(threshold(3.0f, 2.0f) == 1.0f && threshold(-1.0f, 2.0f) == -0.5f && std::isnan(threshold(kNan, 2.0f)));
  CHECK(guide(3.0f, 1.0f, 0.0f) == 1.0f && guide(3.0f, 1.0f, 1.0f) == 3.0f && guide(3.0f, 1.0f, 2.5f) == 6.0f);
  CHECK(row_scale(7.0f, 1.0f) == 7.0f && row_scale(7.0f, 0.0f) == 1.0f);
  CHECK(guide_second(1.0f, 3.0f, 1.0f, 0.5f) == 2.0f);
  CHECK(blend(1.0f, 2.0f, 4.0f, 0.5f, 0.25f, 99.0f) == 2.0f && blend(0.0f, 2.0f, 4.0f, 0.5f, 0.25f, 99.0f) == 99.0f);
  CHECK(blend(0.5f, 2.0f, 4.0f, 0.5f, 0.25f, 4.0f) == 3.0f);
  CHECK(float_bits(masked(kNan, 0u)) == 0u && masked(-2.0f, ~0u) == -2.0f);
  for (float v : {0.0f, -0.0f, 1e-45f, -1e-45f, 3.4028235e38f, -3.4028235e38f}) CHECK(nonfinite_bits(v) == 0);
  for (float v : {kInf, -kInf, kNan, -kNan}) CHECK(nonfinite_bits(v) != 0);
}

double std_of(const float* v, size_t n) {
  double mean = 0.0, square = 0.0;
  for (size_t i = 0; i < n; ++i) mean += v[i] / static_cast<double>(n);
  for (size_t i = 0; i < n; ++i) square += (v[i] - mean) * (v[i] - mean) / static_cast<double>(n);
  return std::sqrt(square);
}

void test_combine() {
  for (size_t n : {1, 3, 15, 16, 17, 255, 784, 3073}) {
    constexpr size_t kCount = 3;
    std::vector<float> cond(kCount * n), uncond(kCount * n), out(kCount * n + 1, 77.0f);
    fill_normals(1, 0, 0, 0, cond.size(), cond.data());
    fill_normals(2, 0, 0, 0, uncond.size(), uncond.data());
    for (float& v : cond) v += 0.5f;
    const float scale[kCount] = {0.0f, 3.0f, 7.5f};
    for (float phi : {0.0f, 0.7f, 1.0f}) {
      cfg_combine_cpu(cond.data(), uncond.data(), scale, phi, kCount, n, out.data());
      double worst = 0.0;
      for (size_t s = 0; s < kCount; ++s) {
        const float *c = &cond[s * n], *u = &uncond[s * n];
        std::vector<float> e(n);
        for (size_t i = 0; i < n; ++i) e[i] = u[i] + scale[s] * (c[i] - u[i]);
        const double ratio = n > 1 ? std_of(c, n) / std_of(e.data(), n) : 1.0;
        for (size_t i = 0; i < n; ++i) {
          const double expected = phi * (e[i] * ratio) + (1.0 - phi) * e[i];
          worst = std::max(worst, std::fabs(out[s * n + i] - expected) / (std::fabs(expected) + 1e-3));
        }
      }
      CHECK(worst <= 3e-7);
      CHECK(out.back() == 77.0f);
      std::vector<float> in_place = cond;
      cfg_combine_cpu(in_place.data(), uncond.data(), scale, phi, kCount, n, in_place.data());
      CHECK(std::equal(in_place.begin(), in_place.end(), out.begin()));
      in_place = uncond;
      cfg_combine_cpu(cond.data(), in_place.data(), scale, phi, kCount, n, in_place.data());
      CHECK(std::equal(in_place.begin(), in_place.end(), out.begin()));
    }
  }
  const float constant[4] = {2.0f, 2.0f, 2.0f, 2.0f}, one = 1.0f;  // std(e) = 0: nothing to rescale
  float out[4];
  cfg_combine_cpu(constant, constant, &one, 0.7f, 1, 4, out);
  CHECK(out[0] == 2.0f && out[3] == 2.0f);
  cfg_combine_cpu(constant, constant, &one, 0.7f, 1, 0, out);
  cfg_combine_cpu(constant, constant, &one, 0.7f, 0, 4, out);
}

void test_uint8() {
  const float values[] = {-1.0f, 1.0f, 0.0f, -2.0f, 2.0f, kNan, kInf, -kInf, 1.6f / 127.5f - 1.0f, 0.999f};
  const uint8_t rounded[] = {0, 255, 128, 0, 255, 0, 255, 0, 2, 255}, truncated[] = {0, 255, 127, 0, 255, 0, 255, 0, 1, 254};
  uint8_t out[10];
  to_uint8_nhwc(values, 1, 10, -1.0f, 1.0f, false, out);
  for (int i = 0; i < 10; ++i) CHECK(out[i] == rounded[i]);
  to_uint8_nhwc(values, 1, 10, -1.0f, 1.0f, true, out);
  for (int i = 0; i < 10; ++i) CHECK(out[i] == truncated[i]);

  std::vector<float> levels(256);  // exact halves in [0, 255]: to even
  for (int i = 0; i < 256; ++i) levels[i] = static_cast<float>(i) - 0.5f;
  std::vector<uint8_t> even(256);
  to_uint8_nhwc(levels.data(), 1, 256, 0.0f, 255.0f, false, even.data());
  bool is_even = true;
  for (int i = 1; i < 256; ++i) is_even = is_even && even[i] == std::nearbyint(i - 0.5);
  CHECK(is_even);

  constexpr size_t kPixels = 77;
  std::vector<float> planes(3 * kPixels);
  std::vector<uint8_t> pixels(3 * kPixels);
  for (size_t i = 0; i < planes.size(); ++i) planes[i] = static_cast<float>(i) / 255.0f;
  to_uint8_nhwc(planes.data(), 3, kPixels, 0.0f, 1.0f, false, pixels.data());
  bool in_place = true;
  for (size_t c = 0; c < 3; ++c) {
    for (size_t i = 0; i < kPixels; ++i) in_place = in_place && pixels[3 * i + c] == c * kPixels + i;
  }
  CHECK(in_place);
}

}  // namespace

int main() {
  test_exp();
  test_elements();
  test_combine();
  test_uint8();
  return finish();
}
