// Element maths of the row (step.h): the only copy of the formulas, for every launcher, host and device.
// One line of a formula is one rounding per operation; no function here branches on anything but its own values.
#ifndef DDPM_RT_KERNELS_STEP_MATH_H_
#define DDPM_RT_KERNELS_STEP_MATH_H_

#include "hd.h"

namespace ddpm_rt {

// s_row: the guidance scale s of the request under the row's factor gs (0 outside the guidance interval).
DDPM_RT_HD float row_scale(float scale, float gs) { return 1.0f + (scale - 1.0f) * gs; }

DDPM_RT_HD float guide(float cond, float uncond, float s_row) { return uncond + s_row * (cond - uncond); }

DDPM_RT_HD float guide_second(float e, float cond, float guide_output, float s2) {
  return e + s2 * (cond - guide_output);
}

// One term of a sum that started at +0; the caller leaves out terms of weight 0.
DDPM_RT_HD float add_weighted(float sum, float weight, float operand) { return sum + weight * operand; }

// value where the mask is all ones, +0 where it is 0, whatever value is.
DDPM_RT_HD float masked(float value, uint32_t mask) { return bits_float(float_bits(value) & mask); }

// NaN passes: the comparisons are false.
DDPM_RT_HD float clip(float x0, float lo, float hi) {
  const float raised = lo > x0 ? lo : x0;
  return hi < raised ? hi : raised;
}

// r is the sample's clamp(quantile_p(|x0|), 1, cap). Imagen (2205.11487) section 2.3.
DDPM_RT_HD float threshold(float x0, float r) { return clip(x0, -r, r) / r; }

// Factor of RESCALE, per sample, in float64. Lin et al. (2305.08891) section 3.4. A constant e has nothing to rescale.
DDPM_RT_HD float rescale_factor(double phi, double std_cond, double std_e) {
  return std_e == 0.0 ? 1.0f : static_cast<float>(phi * (std_cond / std_e) + (1.0 - phi));
}

// What NORM makes of the weights of e and z. Song et al. (2011.13456) algorithm 4. Where |e| is 0 there is no step.
struct NormWeights {
  float e, z;
};
DDPM_RT_HD NormWeights norm_weights(float weight_e, float weight_z, float snr, double squares_e, double squares_z) {
  const double r = squares_e == 0.0 ? 0.0 : static_cast<double>(snr) * (sqrt(squares_z) / sqrt(squares_e));
  return {static_cast<float>(static_cast<double>(weight_e) * (r * r)), static_cast<float>(static_cast<double>(weight_z) * r)};
}

// m = 1 takes the known image at this row's noise level; where m is 0 the known image may hold anything.
DDPM_RT_HD float blend(float m, float known, float z_known, float ky, float kz, float x_new) {
  return m == 0.0f ? x_new : m * (ky * known + kz * z_known) + (1.0f - m) * x_new;
}

// The gradient's part of x' under the factor gm. Dhariwal & Nichol (2105.05233) algorithm 1; std is 1 with a fixed variance.
DDPM_RT_HD float add_gradient(float x_new, float gm, float std, float grad) { return x_new + gm * (std * std) * grad; }

// exp for |value| <= 87, saturating beyond; NaN passes. value = k ln2 + r, |r| <= ln2 / 2, exp = 2^k (1 + r + r^2 P(r)).
DDPM_RT_HD float exp_f32(float value) {
  const float bounded = clip(value, -87.0f, 87.0f);
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const float k = shifted - 12582912.0f;
  const float r = (bounded - k * 0.693359375f) - k * -2.1219444e-4f;
  float poly = 1.3950479e-3f;
  poly = poly * r + 8.3688822e-3f;
  poly = poly * r + 4.1666206e-2f;
  poly = poly * r + 1.6666519e-1f;
  poly = poly * r + 5.0e-1f;
  const float scale = bits_float((float_bits(shifted) << 23) + 0x3F800000u);
  return scale * (1.0f + (r + (r * r) * poly));
}

DDPM_RT_HD float learned_std(float v) { return exp_f32(0.5f * v); }

// Nichol & Dhariwal (2102.09672) eq. 15.
DDPM_RT_HD float learned_range_std(float v, float log_var_lo, float log_var_hi) {
  const float f = (v + 1.0f) * 0.5f;
  return exp_f32(0.5f * (f * log_var_hi + (1.0f - f) * log_var_lo));
}

// exp for |value| <= 700, saturating beyond; NaN passes. To 2e-16: the series of exp(r), |r| <= ln2 / 2.
DDPM_RT_HD double exp_f64(double value) {
  const double raised = -700.0 > value ? -700.0 : value;
  const double bounded = 700.0 < raised ? 700.0 : raised;
  const double shifted = bounded * 1.4426950408889634 + 6755399441055744.0;  // 1.5 * 2^52
  const double k = shifted - 6755399441055744.0;
  const double r = (bounded - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  double poly = 1.0 / 6227020800.0;  // 1 / 13!
  poly = poly * r + 1.0 / 479001600.0;
  poly = poly * r + 1.0 / 39916800.0;
  poly = poly * r + 1.0 / 3628800.0;
  poly = poly * r + 1.0 / 362880.0;
  poly = poly * r + 1.0 / 40320.0;
  poly = poly * r + 1.0 / 5040.0;
  poly = poly * r + 1.0 / 720.0;
  poly = poly * r + 1.0 / 120.0;
  poly = poly * r + 1.0 / 24.0;
  poly = poly * r + 1.0 / 6.0;
  poly = poly * r + 0.5;
  return bits_double((double_bits(shifted) << 52) + 0x3FF0000000000000ull) * (1.0 + (r + (r * r) * poly));
}

DDPM_RT_HD double learned_range_log_var(float v, float log_var_lo, float log_var_hi) {
  const double f = (static_cast<double>(v) + 1.0) * 0.5;
  return f * static_cast<double>(log_var_hi) + (1.0 - f) * static_cast<double>(log_var_lo);
}

// One element of KL(q(x_{t-1} | x_t, x0_true) | p), nats; vx x is in both means. Ho et al. (2006.11239) eq. 5.
DDPM_RT_HD double kl_term(float v0, double lq, double lp, float x0_true, float x0) {
  const double gap = static_cast<double>(v0) * (static_cast<double>(x0_true) - static_cast<double>(x0));
  const double d = lq - lp;
  return 0.5 * (((exp_f64(d) - 1.0) - d) + gap * gap * exp_f64(-lp));
}

// 0 for a finite value, else some bit: an "or" over them needs no comparison.
DDPM_RT_HD uint32_t nonfinite_bits(float value) { return float_bits(value - value); }

DDPM_RT_HD float uint8_scale(float lo, float hi) {
  return static_cast<float>(255.0 / (static_cast<double>(hi) - static_cast<double>(lo)));
}

// (x - lo) * scale with scale = 255 / (hi - lo), clamped to [0, 255], NaN -> 0; half to even, or towards zero.
// Adding 2^23 rounds to an integer under the default rounding mode.
DDPM_RT_HD uint8_t quantise(float x, float lo, float scale, bool truncate) {
  const float level = (x - lo) * scale;
  const float bounded = level > 0.0f ? (level < 255.0f ? level : 255.0f) : 0.0f;
  const float rounded = truncate ? bounded : (bounded + 8388608.0f) - 8388608.0f;
  return static_cast<uint8_t>(static_cast<int32_t>(rounded));
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_STEP_MATH_H_
