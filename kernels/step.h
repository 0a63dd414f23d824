// The sampler step as data: one StepRow per network evaluation of one sample, and the launchers that execute it.
//
// Every solver is compiled to rows on the host, in float64 (csrc/solver.h). The executors know no solver by name.
//
//   x   state x_t           e   guided network output       x0  prediction of the clean sample
//   h1..h3  history, newest first (a ring)    y  anchor    z  standard normal noise of this row
//
// One row does, for every element, in this order:
//   e   = u + s_row (c - u) + s2 (c - g),  s_row = 1 + (s - 1) gs        guidance; RESCALE, GRAD act on e
//   x0  = p x + q e                                                      THRESHOLD or CLIP act on x0
//   x'  = sum of wx over {x, e, x0, h1, h2, h3, y, z}                    BLEND acts on x'
//   y'  = sum of wy over {x, e, x0, h1, h2, h3, y}      if KEEP
//   h  <- sum of wh over {x, e, x0}                     if PUSH
//   in  = next.c_in * x'                                unless LAST
//
// A weight of exactly 0 means that its operand is not read: 0 * stale NaN would leak one request into another.
// Sums start at +0 and add `weight * operand` in the order written, each product and sum rounded to float32, never
// contracted: every executor, on every device, gives a row the same bits (of a NaN, that it is one).
//
// Where the flags leave a question open
//   order       RESCALE (std over the guided e), ge grad, then |e| of NORM, x0, THRESHOLD, VLB, x', gm grad, BLEND
//   reductions  reduce.h: one float64 tree, exact order statistics; r, the factor of RESCALE and NORM's weights are float32
//   RESCALE     acts where cond was evaluated; a constant e keeps its value
//   LEARNED_*   the operand z is std z; |z| of NORM is that of z alone; with both flags LEARNED_VAR acts
//   THRESHOLD   with CLIP, THRESHOLD alone acts
//   NORM        r acts in float64 and each weight is rounded once; where |e| is 0, r is 0
//   BLEND       where m is 0, x' stays as it is, whatever known is
//   VLB         each element's term in float64, x0 as it enters x'
//   NO_EVAL     RESCALE, LEARNED_*, NORM and ge do nothing
#ifndef DDPM_RT_KERNELS_STEP_H_
#define DDPM_RT_KERNELS_STEP_H_

#include <cstddef>
#include <cstdint>

namespace ddpm_rt {

constexpr uint32_t kRowVersion = 1;
constexpr uint32_t kRngVersion = 1;

enum StepFlag : uint32_t {
  kPush = 1u << 0,          // the history ring takes the wh sum
  kKeep = 1u << 1,          // the anchor takes the wy sum
  kClip = 1u << 2,          // x0 = clamp(x0, clip_lo, clip_hi)
  kThreshold = 1u << 3,     // x0 = clamp(x0, -r, r) / r, r = clamp(quantile_p(|x0|), 1, cap)  (Imagen section 2.3)
  kRescale = 1u << 4,       // e = phi * e * std(c)/std(e) + (1 - phi) * e   (Lin et al. 2305.08891 section 3.4)
  kLearnedVar = 1u << 5,    // std = exp(v / 2), v = the network's second half
  kLearnedRange = 1u << 6,  // std = exp((f hi + (1-f) lo) / 2), f = (v + 1)/2   (Nichol & Dhariwal eq. 15)
  kGrad = 1u << 7,          // e += ge * grad;  x' += gm * (std^2 if learned, else 1) * grad
  kBlend = 1u << 8,         // x' = m (ky known + kz z_known) + (1 - m) x'   (z_known: stream 2)
  kNorm = 1u << 9,          // r = snr * |z| / |e|; wx[e] acts as r^2 wx[e], wx[z] as r wx[z]   (Langevin corrector)
  kVlb = 1u << 10,          // also reduce KL(q(x_{t-1}|x_t,x0_true) | p) over the sample (vx, v0, lq, lp)
  kNoEval = 1u << 11,       // no network evaluation: e is absent, its weights and q are 0
  kLast = 1u << 12,         // the sample is finished after this row
};
constexpr uint32_t kKnownFlags = (1u << 13) - 1;
// Rows that need more than sums over operands.
constexpr uint32_t kRareFlags = kThreshold | kRescale | kLearnedVar | kLearnedRange | kGrad | kBlend | kNorm | kVlb;
// What step_cpu executes; a table with any other flag is an OptionError where it is accepted.
constexpr uint32_t kCpuFlags = kKnownFlags;

// Version 1. 256 bytes, little endian, flat 32-bit fields; spare words are zero.
struct StepRow {
  uint32_t flags;
  float t;                        // network time input, in the network's own convention
  float t2;                       // second time or level input
  float gs;                       // guidance factor: s_row = 1 + (s - 1) gs
  uint32_t noise_index;           // Philox counter word of this row's z
  float c_in;                     // network input = c_in * x, applied by the previous row (or by `begin`)
  float p, q;                     // x0 = p x + q e
  float clip_lo, clip_hi;
  float threshold_p, threshold_cap;
  float phi;
  float ge, gm;
  float snr;
  float log_var_lo, log_var_hi;
  float ky, kz;
  float wx[8];                    // x, e, x0, h1, h2, h3, y, z
  float wy[7];                    // x, e, x0, h1, h2, h3, y
  float wh[3];                    // x, e, x0
  float vx, v0, lq, lp;           // VLB: posterior mean vx x + v0 x0_true, its log variance, the model's
  uint32_t spare[22];
};
static_assert(sizeof(StepRow) == 256, "StepRow version 1 is 256 bytes");

enum Operand { kX, kE, kX0, kH1, kH2, kH3, kY, kZ };

// One resident sample in one tick. Pointers are to N contiguous float32 elements unless said otherwise.
struct StepSlot {
  const StepRow* row;
  const StepRow* next;        // null with kLast
  uint64_t seed;              // the sample's own
  float scale;                // s of the request; used only where both cond and uncond are given
  float scale2;               // s2; used only where guide is given
  float* x;                   // state, updated in place
  const float* cond;          // network outputs; exactly those evaluated are non-null. With only one, e is that one.
  const float* uncond;
  const float* guide;
  float* history[3];          // ring storage; may be null where no row of the table pushes
  uint32_t ring;              // history[(ring + k) % 3] is h(k+1); the caller advances it after a kPush row to (ring+2)%3
  float* anchor;              // y; may be null where no row keeps
  float* in[3];               // next network input, written once per non-null pointer
  float* x0_out;              // preview of x0; null: not written
  // Null without the flag that reads them; a flag whose operand is null does nothing. Under guidance v is the conditional
  // output's own half, unguided, as in DeepFloyd-IF and what GLIDE's halves come to; of a lone evaluation, that one's.
  const float* variance;      // v, raw: LEARNED_VAR, LEARNED_RANGE
  const float* grad;          // GRAD
  const float* known;         // BLEND: the picture to keep, clean; where mask is 0 it may hold anything
  const float* mask;          // BLEND: 1 keeps the known picture
  const float* x0_true;       // VLB
  double* kl;                 // VLB: receives the mean over elements, nats
};

// Executes one row for each slot. Returns nothing; slot_bad[i] is set to 1 where e was not finite (never cleared)
// or, with one of kRareFlags, where x' was not.
// Bytes per element, fp32, guided, two inputs written: read x 4 + cond 4 + uncond 4, write x 4 + in 2*4 = 24.
void step_cpu(const StepSlot* slots, size_t count, size_t elements, uint8_t* slot_bad);

// e = u + s (c - u), then the optional rescale (phi = 0: off), for `count` samples of `elements` each.
void cfg_combine_cpu(const float* cond, const float* uncond, const float* scale, float phi, size_t count, size_t elements,
                     float* out);

// out[k] = normal number `first + k` of (seed, noise_index, stream).  (philox.h has the definition)
void fill_normals(uint64_t seed, uint32_t noise_index, uint32_t stream, size_t first, size_t count, float* out);

// The four raw words of one counter: used to draw labels (stream 4).
void philox_words(uint64_t seed, uint32_t block, uint32_t noise_index, uint32_t stream, uint32_t out[4]);

enum Stream : uint32_t { kStreamInit = 0, kStreamStep = 1, kStreamKnown = 2, kStreamAugment = 3, kStreamLabel = 4 };

// [C, H, W] float in [lo, hi] -> [H, W, C] uint8, rounded half to even (or truncated), NaN -> 0.
void to_uint8_nhwc(const float* x, size_t channels, size_t pixels, float lo, float hi, bool truncate, uint8_t* out);

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_STEP_H_
