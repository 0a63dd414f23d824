// Random numbers version 1: published vectors of the generator, the normals against the same definition in float64,
// their distribution, and bits that must never change.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "philox.h"
#include "step.h"

using namespace ddpm_rt;

namespace {

// Random123, kat_vectors: philox4x32, 10 rounds.
void test_published_vectors() {
  const struct {
    uint32_t counter[4], key[2], words[4];
  } vectors[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const auto& v : vectors) {
    const Words w = philox4x32_10({v.counter[0], v.counter[1], v.counter[2], v.counter[3]}, v.key[0], v.key[1]);
    CHECK(w.w0 == v.words[0] && w.w1 == v.words[1] && w.w2 == v.words[2] && w.w3 == v.words[3]);
  }
}

void test_word_order() {
  const uint64_t seed = 0x0123456789abcdefull;
  const Words expected = philox4x32_10({11, 22, 3, 0}, 0x89abcdefu, 0x01234567u);
  uint32_t words[4];
  philox_words(seed, 11, 22, 3, words);
  CHECK(words[0] == expected.w0 && words[1] == expected.w1 && words[2] == expected.w2 && words[3] == expected.w3);
}

// The definition of philox.h with libm in float64; u and x are float32 by definition, exact otherwise.
void reference_pair(uint32_t a, uint32_t b, double* first, double* second) {
  const float u = static_cast<float>(a) * 0x1p-32f + 0x1p-33f;
  const uint32_t j = (b + (1u << 29)) >> 30;
  const double x = static_cast<double>(static_cast<float>(static_cast<int32_t>(b - (j << 30)))) * 0x1p-31;
  const double r = std::sqrt(-2.0 * std::log(static_cast<double>(u)));
  const double angle = 3.141592653589793238 * (j * 0.5 + x);
  *first = r * std::cos(angle);
  *second = r * std::sin(angle);
}

void test_pair(uint32_t a, uint32_t b, double* worst) {
  float first, second;
  double first_ref, second_ref;
  normal_pair(a, b, &first, &second);
  reference_pair(a, b, &first_ref, &second_ref);
  // cos and sin of a float64 angle near their zeros are off by the angle's own rounding: hence the absolute floor.
  const auto compare = [worst](double got, double want) {
    *worst = std::max(*worst, (std::fabs(got - want) - 1e-14) / std::max(std::fabs(want), 1e-30));
  };
  compare(first, first_ref);
  compare(second, second_ref);
}

void test_against_float64() {
  double worst = 0.0;
  const uint32_t corners[] = {0,          1,          2,          0x1fffffff, 0x20000000, 0x20000001, 0x3fffffff,
                              0x40000000, 0x5fffffff, 0x60000000, 0x7fffffff, 0x80000000, 0x9fffffff, 0xa0000000,
                              0xbfffffff, 0xc0000000, 0xdfffffff, 0xe0000000, 0xfffffffe, 0xffffffff};
  for (uint32_t a : corners) {
    for (uint32_t b : corners) test_pair(a, b, &worst);
  }
  for (uint32_t i = 0; i < 250000; ++i) {
    uint32_t w[4];
    philox_words(99, i, 0, 0, w);
    test_pair(w[0], w[1], &worst);
    test_pair(w[2], w[3], &worst);
    test_pair(0xffffffffu - (w[0] >> 12), w[3], &worst);  // u near 1, where the logarithm nearly cancels
    test_pair(w[1] >> 16, w[2], &worst);                  // the far tail
  }
  std::printf("normals against float64: worst relative difference %.3g\n", worst);
  CHECK(worst <= 2.5e-7);
}

void test_fill_is_the_definition() {
  const uint64_t seed = 0xfeedfacecafebeefull;
  std::vector<float> all(5000), part(5000);
  fill_normals(seed, 9, kStreamInit, 0, all.size(), all.data());
  bool matches = true;
  for (uint32_t block = 0; block < all.size() / 4; ++block) {
    uint32_t w[4];
    float n[4];
    philox_words(seed, block, 9, kStreamInit, w);
    normal_pair(w[0], w[1], &n[0], &n[1]);
    normal_pair(w[2], w[3], &n[2], &n[3]);
    matches = matches && memcmp(n, &all[4 * block], sizeof n) == 0;
  }
  CHECK(matches);
  for (size_t first : {0, 1, 2, 3, 4, 5, 63, 255, 256, 767, 768, 769, 1000}) {
    for (size_t count : {0, 1, 2, 3, 4, 5, 63, 64, 65, 255, 257, 768, 769, 2304}) {
      std::fill(part.begin(), part.end(), -99.0f);
      fill_normals(seed, 9, kStreamInit, first, count, part.data());
      CHECK(memcmp(part.data(), &all[first], count * sizeof(float)) == 0);
      CHECK(part[count] == -99.0f);
    }
  }
  std::vector<float> far(8), farther(4);
  const size_t end = (size_t{1} << 34) - 8;  // the last blocks that a counter word can number
  fill_normals(seed, 9, kStreamInit, end, 8, far.data());
  fill_normals(seed, 9, kStreamInit, end + 4, 4, farther.data());
  CHECK(memcmp(&far[4], farther.data(), 4 * sizeof(float)) == 0);
}

void test_arguments_separate() {
  const auto draw = [](uint64_t seed, uint32_t index, uint32_t stream) {
    std::vector<float> n(256);
    fill_normals(seed, index, stream, 0, n.size(), n.data());
    return n;
  };
  const std::vector<float> base = draw(1, 2, 1);
  for (const auto& other : {draw(2, 2, 1), draw(1 + (uint64_t{1} << 32), 2, 1), draw(1, 3, 1), draw(1, 2, 0)}) {
    double correlation = 0.0;
    for (size_t i = 0; i < base.size(); ++i) correlation += base[i] * other[i] / static_cast<double>(base.size());
    CHECK(base != other);
    CHECK_NEAR(correlation, 0.0, 5.0 / 16.0);  // five standard errors
  }
}

void test_distribution() {
  constexpr size_t kCount = 1000000;
  std::vector<float> n(kCount);
  fill_normals(2024, 0, kStreamStep, 0, kCount, n.data());
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, lag = 0;
  for (size_t i = 0; i < kCount; ++i) {
    const double v = n[i];
    m1 += v / kCount;
    m2 += v * v / kCount;
    m3 += v * v * v / kCount;
    m4 += v * v * v * v / kCount;
    if (i > 0) lag += v * n[i - 1] / kCount;
  }
  const double se = 1.0 / std::sqrt(static_cast<double>(kCount));  // bounds: four standard errors of each moment
  CHECK_NEAR(m1, 0.0, 4 * se);
  CHECK_NEAR(m2, 1.0, 4 * std::sqrt(2.0) * se);
  CHECK_NEAR(m3, 0.0, 4 * std::sqrt(15.0) * se);
  CHECK_NEAR(m4, 3.0, 4 * std::sqrt(96.0) * se);
  CHECK_NEAR(lag, 0.0, 4 * se);
  std::sort(n.begin(), n.end());
  double ks = 0.0;
  for (size_t i = 0; i < kCount; ++i) {
    const double cdf = 0.5 * std::erfc(-n[i] / std::sqrt(2.0));
    ks = std::max({ks, cdf - static_cast<double>(i) / kCount, (i + 1.0) / kCount - cdf});
  }
  std::printf("Kolmogorov-Smirnov sqrt(n) D = %.3f\n", ks / se);
  CHECK(ks / se < 1.63);  // 1 % level
}

uint64_t fnv1a(const void* data, size_t size) {
  const unsigned char* bytes = static_cast<const unsigned char*>(data);
  uint64_t hash = 0xcbf29ce484222325ull;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3ull;
  return hash;
}

// Version 1 for ever: if one of these fails on any machine, seeds no longer mean what users wrote down.
void test_golden() {
  const float seed0[8] = {0x1.fb7662p-1f,  -0x1.d96d6p-1f, -0x1.3c373ep-1f, -0x1.eda364p-2f,
                          -0x1.3aa6a6p-3f, 0x1.7254dp-3f, 0x1.a9d92ep-1f,  0x1.945b44p-3f};
  float n[8];
  fill_normals(0, 0, kStreamInit, 0, 8, n);
  for (int i = 0; i < 8; ++i) {
    if (n[i] != seed0[i]) std::printf("normal %d of seed 0: expected %a, got %a\n", i, seed0[i], n[i]);
  }
  CHECK(memcmp(n, seed0, sizeof n) == 0);
  std::vector<float> many(1 << 18);
  fill_normals(0x0123456789abcdefull, 7, kStreamStep, 0, many.size(), many.data());
  const uint64_t hash = fnv1a(many.data(), many.size() * sizeof(float));
  if (hash != 0x043fe6836da02f9full) std::printf("hash of 2^18 normals: got 0x%016llx\n", static_cast<unsigned long long>(hash));
  CHECK(hash == 0x043fe6836da02f9full);
}

}  // namespace

int main() {
  test_published_vectors();
  test_word_order();
  test_against_float64();
  test_fill_is_the_definition();
  test_arguments_separate();
  test_distribution();
  test_golden();
  return finish();
}
