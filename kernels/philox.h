// Random numbers, version 1: noise is a function of (seed, noise index, stream, element) and of nothing else.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
//   key      k0 = low 32 bits of the seed, k1 = high 32 bits
//   counter  c0 = block = flat element index / 4, c1 = noise index, c2 = stream, c3 = 0
//   round    (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0));  k0 += W0, k1 += W1
//            M0 = D2511F53, M1 = CD9E8D57, W0 = 9E3779B9, W1 = BB67AE85; ten rounds, the key is bumped between them
// Elements 4b .. 4b+3 are pair(w0, w1).first, .second, pair(w2, w3).first, .second of block b's words.
//
// pair(a, b) is Box-Muller, all in float32 with + - * sqrt only, each operation rounded once:
//   u = float(a) 2^-32 + 2^-33, r = sqrt(-2 log u)           u in [2^-33, 1]: |normal| <= 6.764
//   j = (b + 2^29) >> 30, x = float(int32(b - (j << 30))) 2^-31     angle = pi (j / 2 + x), |x| <= 1/4
//   first = r cos, second = r sin; the quadrant j only swaps and negates, exactly
// The polynomials below are minimax fits, evaluated in the order written. They are part of version 1: a changed bit is
// a new version.
#ifndef DDPM_RT_KERNELS_PHILOX_H_
#define DDPM_RT_KERNELS_PHILOX_H_

#include "hd.h"

namespace ddpm_rt {

struct Words {
  uint32_t w0, w1, w2, w3;
};

DDPM_RT_HD Words philox_round(Words c, uint32_t k0, uint32_t k1) {
  const uint32_t hi0 = static_cast<uint32_t>((uint64_t{0xD2511F53u} * c.w0) >> 32);
  const uint32_t hi1 = static_cast<uint32_t>((uint64_t{0xCD9E8D57u} * c.w2) >> 32);
  return {hi1 ^ c.w1 ^ k0, 0xCD9E8D57u * c.w2, hi0 ^ c.w3 ^ k1, 0xD2511F53u * c.w0};
}

// Rounds are written out: a loop here would keep compilers from vectorising the loop over blocks.
DDPM_RT_HD Words philox4x32_10(Words c, uint32_t k0, uint32_t k1) {
  constexpr uint32_t kW0 = 0x9E3779B9u, kW1 = 0xBB67AE85u;
  c = philox_round(c, k0, k1);
  c = philox_round(c, k0 + 1 * kW0, k1 + 1 * kW1);
  c = philox_round(c, k0 + 2 * kW0, k1 + 2 * kW1);
  c = philox_round(c, k0 + 3 * kW0, k1 + 3 * kW1);
  c = philox_round(c, k0 + 4 * kW0, k1 + 4 * kW1);
  c = philox_round(c, k0 + 5 * kW0, k1 + 5 * kW1);
  c = philox_round(c, k0 + 6 * kW0, k1 + 6 * kW1);
  c = philox_round(c, k0 + 7 * kW0, k1 + 7 * kW1);
  c = philox_round(c, k0 + 8 * kW0, k1 + 8 * kW1);
  return philox_round(c, k0 + 9 * kW0, k1 + 9 * kW1);
}

DDPM_RT_HD Words noise_words(uint64_t seed, uint32_t block, uint32_t noise_index, uint32_t stream) {
  return philox4x32_10({block, noise_index, stream, 0}, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Natural logarithm of a positive, normal, finite float, to about 1 ulp, in three parts:
// value = 2^k m, m in [sqrt(1/2), sqrt(2)), f = m - 1 exactly: log = k ln2 + (f - f^2/2 + f^3 P(f)).
DDPM_RT_HD void log_split(float value, float* f, float* k) {
  const uint32_t bits = float_bits(value);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3F3504F3u) >> 23;
  *f = bits_float(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  *k = static_cast<float>(exponent);
}

DDPM_RT_HD float log_poly(float f) {
  const float f2 = f * f;
  const float p01 = 3.3333331e-1f - 2.5000820e-1f * f;
  const float p23 = 2.0001227e-1f - 1.6623357e-1f * f;
  const float p45 = 1.4201759e-1f - 1.3160183e-1f * f;
  const float p67 = 1.2761575e-1f - 7.634494e-2f * f;
  return (p01 + p23 * f2) + (p45 + p67 * f2) * (f2 * f2);
}

DDPM_RT_HD float log_join(float f, float k, float poly) {
  const float f2 = f * f;
  const float tail = (f * f2) * poly + (k * -2.1219444e-4f - 0.5f * f2);
  return k * 0.693359375f + (f + tail);  // ln2 in two parts; k times the first is exact
}

// sin(pi x) and cos(pi x) for |x| <= 1/4.
DDPM_RT_HD float sinpi_f32(float x) {
  const float y = x * x;
  float poly = -5.8901221e-1f;
  poly = poly * y + 2.5497611f;
  poly = poly * y - 5.1677077f;
  const float tail = poly * y - 8.7422777e-8f;  // pi in two parts
  return x * 3.1415927f + x * tail;
}

DDPM_RT_HD float cospi_f32(float x) {
  const float y = x * x;
  float poly = 2.3136423e-1f;
  poly = poly * y - 1.3350506f;
  poly = poly * y + 4.0587076f;
  poly = poly * y - 4.9348022f;
  return 1.0f + poly * y;
}

// u. Without an unsigned conversion, which SSE2 and AVX2 lack: both halves of a are exact, their sum rounds once and is
// float(a) 2^-32.
DDPM_RT_HD float unit_float(uint32_t a) {
  return (static_cast<float>(static_cast<int32_t>(a >> 16)) * 1.52587890625e-5f +
          static_cast<float>(static_cast<int32_t>(a & 0xFFFFu)) * 2.3283064365386963e-10f) +
         1.1641532182693481e-10f;
}

// x: what is left of the angle, in half turns, once the quadrant is taken out.
DDPM_RT_HD float half_turns(uint32_t b) {
  const uint32_t within = (b + 0x20000000u) & 0x3FFFFFFFu;
  return static_cast<float>(static_cast<int32_t>(within - 0x20000000u)) * 4.6566128730773926e-10f;
}

DDPM_RT_HD float radius(float log_u) { return sqrt_rn(-2.0f * log_u); }

// (r cos, r sin) of the whole angle, from sine and cosine of x: odd quadrants exchange them, the signs follow j's bits.
DDPM_RT_HD void turn(uint32_t b, float r, float sine, float cosine, float* first, float* second) {
  const uint32_t j = b + 0x20000000u;  // the quadrant is its top two bits
  const uint32_t s = float_bits(sine), c = float_bits(cosine);
  const uint32_t swap = (s ^ c) & static_cast<uint32_t>(static_cast<int32_t>(j << 1) >> 31);
  *first = r * bits_float((c ^ swap) ^ ((j ^ (j << 1)) & 0x80000000u));
  *second = r * bits_float((s ^ swap) ^ (j & 0x80000000u));
}

DDPM_RT_HD void normal_pair(uint32_t a, uint32_t b, float* first, float* second) {
  float f, k;
  log_split(unit_float(a), &f, &k);
  const float r = radius(log_join(f, k, log_poly(f)));
  const float x = half_turns(b);
  turn(b, r, sinpi_f32(x), cospi_f32(x), first, second);
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_PHILOX_H_
