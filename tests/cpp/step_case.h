// Random slots for the step tests: every flag and weight that step_cpu executes, from integers only, so that each
// machine builds the same case.
#ifndef DDPM_RT_TESTS_STEP_CASE_H_
#define DDPM_RT_TESTS_STEP_CASE_H_

#include <cmath>
#include <cstring>
#include <vector>

#include "step.h"

namespace step_case {

using ddpm_rt::StepRow;
using ddpm_rt::StepSlot;

struct Random {
  uint64_t state;

  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint32_t next() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    return static_cast<uint32_t>((z ^ (z >> 27)) >> 32);
  }
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>((static_cast<uint64_t>(next()) * bound) >> 32); }
  bool coin() { return below(2) == 1; }
  float uniform() { return static_cast<float>(static_cast<int32_t>(next()) >> 8) * 0x1p-22f; }  // [-2, 2), exact
  float weight() { return below(3) == 0 ? 0.0f : uniform(); }
};

enum Rare { kVariance, kGradient, kKnown, kMask, kTruth, kRare };  // operands of the rare flags
enum Array { kStateX, kCond, kUncond, kGuide, kHistory0, kHistory1, kHistory2, kAnchor, kIn0, kIn1, kIn2, kX0Out, kArrays };

// One slot with its memory; `slot()` points into it. Outputs start as `kUnwritten`.
struct Case {
  static constexpr float kUnwritten = 12345.0f;
  size_t elements;
  StepRow row{}, next{};
  uint64_t seed;
  float scale, scale2;
  uint32_t ring;
  bool has[kArrays];
  std::vector<float> arrays[kArrays];
  std::vector<float> rare[kRare];
  double kl = kUnwritten;

  Case(Random* random, size_t elements_in) : elements(elements_in) {
    using namespace ddpm_rt;
    if (random->coin()) row.flags |= kPush;
    if (random->coin()) row.flags |= kKeep;
    if (random->coin()) row.flags |= kClip;
    if (random->below(4) == 0) row.flags |= kLast;
    if (random->below(6) == 0) row.flags |= kNoEval;
    row.gs = random->coin() ? 1.0f : random->uniform();
    row.noise_index = random->next();
    row.p = random->weight();
    row.q = random->weight();
    row.clip_lo = -1.0f;
    row.clip_hi = 0.75f;
    for (float& w : row.wx) w = random->weight();
    for (float& w : row.wy) w = random->weight();
    for (float& w : row.wh) w = random->weight();
    if (row.flags & kNoEval) row.q = row.wx[kE] = row.wy[kE] = row.wh[kE] = 0.0f;
    next.c_in = random->coin() ? 1.0f : random->uniform();
    seed = (static_cast<uint64_t>(random->next()) << 32) | random->next();
    scale = random->uniform() * 4.0f;
    scale2 = random->uniform();
    ring = random->below(3);
    const uint32_t evaluations = random->below(4);  // cond, uncond, both, both and the guide
    for (bool& h : has) h = true;
    has[kCond] = evaluations != 1;
    has[kUncond] = evaluations != 0;
    has[kGuide] = evaluations == 3;
    has[kIn1] = random->coin();
    has[kIn2] = random->below(4) == 0;
    has[kX0Out] = random->coin();
    for (int a = 0; a < kArrays; ++a) {
      arrays[a].resize(elements);
      for (float& v : arrays[a]) v = a >= kIn0 ? kUnwritten : random->uniform();
    }
  }

  // Each rare flag with one chance in three, and all their operands.
  void add_rare_flags(Random* random) {
    using namespace ddpm_rt;
    constexpr uint32_t kRareFlags[] = {kThreshold, kRescale, kLearnedVar, kLearnedRange, kGrad, kBlend, kNorm, kVlb};
    for (uint32_t flag : kRareFlags) {
      if (random->below(3) == 0) row.flags |= flag;
    }
    constexpr float kQuantiles[] = {0.0f, 0.25f, 0.5f, 0.9f, 0.995f, 1.0f};
    constexpr float kCaps[] = {0.75f, 1.0f, 1.5f, 100.0f};
    row.threshold_p = kQuantiles[random->below(6)];
    row.threshold_cap = kCaps[random->below(4)];
    row.phi = static_cast<float>(random->below(1025)) * 0x1p-10f;
    row.ge = random->weight();
    row.gm = random->weight();
    row.snr = 0.16f;
    row.log_var_lo = random->uniform() - 4.0f;
    row.log_var_hi = random->uniform() - 1.0f;
    row.ky = random->weight();
    row.kz = random->weight();
    row.vx = random->uniform();
    row.v0 = random->uniform();
    row.lq = random->uniform() - 2.0f;
    row.lp = random->uniform() - 2.0f;
    for (std::vector<float>& array : rare) {
      array.resize(elements);
      for (float& v : array) v = random->uniform();
    }
    for (float& m : rare[kMask]) m = random->below(3) == 0 ? 0.0f : std::fabs(m) * 0.5f;
  }

  float* at(int array) { return has[array] ? arrays[array].data() : nullptr; }

  StepSlot slot() {
    StepSlot s{};
    s.row = &row;
    s.next = row.flags & ddpm_rt::kLast ? nullptr : &next;
    s.seed = seed;
    s.scale = scale;
    s.scale2 = scale2;
    s.x = at(kStateX);
    s.cond = at(kCond);
    s.uncond = at(kUncond);
    s.guide = at(kGuide);
    for (int k = 0; k < 3; ++k) s.history[k] = at(kHistory0 + k);
    s.ring = ring;
    s.anchor = at(kAnchor);
    for (int k = 0; k < 3; ++k) s.in[k] = at(kIn0 + k);
    s.x0_out = at(kX0Out);
    const auto rare_at = [this](int array) { return rare[array].empty() ? nullptr : rare[array].data(); };
    s.variance = rare_at(kVariance);
    s.grad = rare_at(kGradient);
    s.known = rare_at(kKnown);
    s.mask = rare_at(kMask);
    s.x0_true = rare_at(kTruth);
    s.kl = &kl;
    return s;
  }

  bool same_bits(const Case& other) const {
    for (int a = 0; a < kArrays; ++a) {
      if (memcmp(arrays[a].data(), other.arrays[a].data(), elements * sizeof(float)) != 0) return false;
    }
    return memcmp(&kl, &other.kl, sizeof kl) == 0;
  }
};

}  // namespace step_case

#endif  // DDPM_RT_TESTS_STEP_CASE_H_
