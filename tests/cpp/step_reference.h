// Arithmetic of the float64 references that the step is held against.
#ifndef DDPM_RT_TESTS_STEP_REFERENCE_H_
#define DDPM_RT_TESTS_STEP_REFERENCE_H_

#include <cmath>

#include "step_case.h"

namespace step_case {

// A value and the sum of the magnitudes that rounding acts on.
struct Bounded {
  double value = 0.0, magnitude = 0.0;
};

inline Bounded operator+(Bounded a, Bounded b) { return {a.value + b.value, a.magnitude + b.magnitude}; }
inline Bounded operator*(double w, Bounded a) { return {w * a.value, std::fabs(w) * a.magnitude}; }
inline Bounded exact(double v) { return {v, std::fabs(v)}; }

inline double reference_normal(const Case& c, size_t i, uint32_t stream) {
  uint32_t w[4];
  ddpm_rt::philox_words(c.seed, static_cast<uint32_t>(i / 4), c.row.noise_index, stream, w);
  const uint32_t a = w[i % 4 / 2 * 2], b = w[i % 4 / 2 * 2 + 1];
  const float u = static_cast<float>(a) * 0x1p-32f + 0x1p-33f;  // float32 by definition: near 1 it decides r
  const double r = std::sqrt(-2.0 * std::log(static_cast<double>(u)));
  const double angle = 2.0 * 3.14159265358979323846 * b * 0x1p-32;
  return i % 2 == 0 ? r * std::cos(angle) : r * std::sin(angle);
}

}  // namespace step_case

#endif  // DDPM_RT_TESTS_STEP_REFERENCE_H_
