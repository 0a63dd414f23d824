// Sums and order statistics over one sample: one stated order, the same on CPU and GPU, whatever the batch or grid.
//
// Sum of N float64 terms. Chunk k holds terms 4096 k .. 4096 k + 4095. In a chunk, lane l of 256 starts at +0 and adds
// terms l, l + 256, ..., l + 3840 in this order (those that exist); then, for width 128, 64, ..., 1, lane l adds lane
// l + width for every l < width; lane 0 is the chunk's sum. The total starts at +0 and adds the chunks in order.
//
// Standard deviation: sums S1 of d = v - v[0] and S2 of d^2, variance = S2 / N - (S1 / N)^2. Since |v[0] - mean| <=
// std sqrt(N - 1) (Samuelson 1968), cancellation costs at most a factor N of the rounding; a constant gives exactly 0.
//
// Quantile p of N values: at = p (N - 1) in float64, k = floor(at), lo = value of rank k, hi = of rank min(k + 1, N - 1),
// lo + (at - k) (hi - lo) in float64, rounded once to float32. Ranks are found exactly, by radix on the bits of |x0|.
#ifndef DDPM_RT_KERNELS_REDUCE_H_
#define DDPM_RT_KERNELS_REDUCE_H_

#include "step_math.h"

namespace ddpm_rt {

constexpr size_t kSumLanes = 256;
constexpr size_t kSumTerms = 16;
constexpr size_t kSumChunk = kSumLanes * kSumTerms;

// The tree for one thread; terms arrive in order.
struct TreeSum {
  alignas(64) double lane[kSumLanes] = {};
  double total = 0.0;
  size_t filled = 0;

  // n: a multiple of kSumLanes, except the last time.
  template <typename Term>
  DDPM_RT_HD void add(size_t n, Term term) {
    for (size_t first = 0; first < n; first += kSumLanes) {
      const size_t lanes = n - first < kSumLanes ? n - first : kSumLanes;
      for (size_t l = 0; l < lanes; ++l) lane[l] += term(first + l);
      filled += kSumLanes;
      if (filled == kSumChunk) fold();
    }
  }
  DDPM_RT_HD double finish() {
    if (filled != 0) fold();
    return total;
  }
  DDPM_RT_HD void fold() {
    for (size_t width = kSumLanes / 2; width > 0; width /= 2) {
      for (size_t l = 0; l < width; ++l) lane[l] += lane[l + width];
    }
    total += lane[0];
    for (size_t l = 0; l < kSumLanes; ++l) lane[l] = 0.0;
    filled = 0;
  }
};

DDPM_RT_HD double std_of_sums(double sum, double squares, double n) {
  const double mean = sum / n;
  const double variance = squares / n - mean * mean;
  return variance < 0.0 ? 0.0 : sqrt(variance);  // NaN passes
}

// Both sums of a standard deviation for one thread; runs of values arrive in order, lengths as for TreeSum.
struct Spread {
  TreeSum sum, squares;
  double first = 0.0;
  bool has_first = false;

  DDPM_RT_HD void add(const float* values, size_t n) {
    if (!has_first) first = static_cast<double>(values[0]);
    has_first = true;
    const double shift = first;
    sum.add(n, [=](size_t i) { return static_cast<double>(values[i]) - shift; });
    squares.add(n, [=](size_t i) {
      const double d = static_cast<double>(values[i]) - shift;
      return d * d;
    });
  }
  DDPM_RT_HD double deviation(size_t count) {
    return std_of_sums(sum.finish(), squares.finish(), static_cast<double>(count));
  }
};

// ---- r of THRESHOLD = clamp(quantile_p(|x0|), 1, cap). Only values above 1 have to be told apart.
// Pass 0 counts the values up to 1 and finds their greatest, and fills a histogram of bits 30..20 of those above; passes 1
// and 2 do so for bits 19..10 and 9..0 of the values that share the digits found so far; pass 2 also finds the least value
// above all that share them. NaN counts as greater than any number.

constexpr uint32_t kOneBits = 0x3F800000u;
constexpr uint32_t kSelectBins = 2048;
constexpr int kSelectPasses = 3;
constexpr uint32_t kNoBits = 0x7FFFFFFFu;  // no number's

DDPM_RT_HD uint32_t magnitude_bits(float value) { return float_bits(value) & 0x7FFFFFFFu; }

struct Selection {
  double fraction;       // at - k
  uint32_t prefix;       // digits found of the value looked for: lo, or hi where lo is at most 1
  uint32_t rank;         // its rank among the values that share them
  uint32_t lo;           // bits of lo where it is at most 1, else kNoBits
  uint32_t is_done;
  float r;
};

// The values that a pass tells apart: bits from first to last. Signed, because AVX2 compares nothing else.
struct Candidates {
  int32_t first, last;
};
DDPM_RT_HD Candidates candidates_of(uint32_t prefix, int pass) {
  if (pass == 0) return {static_cast<int32_t>(kOneBits) + 1, 0x7FFFFFFF};
  const int shift = 30 - 10 * pass;
  return {static_cast<int32_t>(prefix << shift), static_cast<int32_t>((prefix << shift) + ((1u << shift) - 1))};
}
DDPM_RT_HD uint32_t select_digit(int pass, uint32_t bits) {
  return pass == 0 ? bits >> 20 : (bits >> (20 - 10 * pass)) & 1023u;
}

DDPM_RT_HD float threshold_of(uint32_t lo_bits, uint32_t hi_bits, double fraction, float cap) {
  const double lo = static_cast<double>(bits_float(lo_bits)), hi = static_cast<double>(bits_float(hi_bits));
  const bool is_lo = fraction == 0.0 || hi_bits == lo_bits;  // inf - inf is not 0
  const float q = is_lo ? bits_float(lo_bits) : static_cast<float>(lo + fraction * (hi - lo));
  return clip(q, 1.0f, cap);
}

// After pass 0: `below` of n values are at most 1, the greatest of them has the bits greatest_below.
DDPM_RT_HD Selection select_begin(float p, float cap, uint32_t n, uint32_t below, uint32_t greatest_below) {
  const double last = static_cast<double>(n) - 1.0;
  double at = static_cast<double>(p) * last;
  if (!(at > 0.0)) at = 0.0;
  if (at > last) at = last;
  const uint32_t k = static_cast<uint32_t>(at);
  const double fraction = at - static_cast<double>(k);
  const bool is_lo_below = k < below;
  const bool is_done = is_lo_below && (fraction == 0.0 || k + 1 < below);
  return {fraction, 0, is_lo_below ? 0 : k - below, is_lo_below ? greatest_below : kNoBits, is_done, clip(1.0f, 1.0f, cap)};
}

// `before` candidates have a smaller digit than the one found.
DDPM_RT_HD void select_advance(Selection* s, int pass, uint32_t digit, uint32_t before) {
  s->prefix = pass == 0 ? digit : s->prefix << 10 | digit;
  s->rank -= before;
}

// After pass 2: `equal` values have all digits found, next_above is the least of the greater ones (kNoBits: none).
DDPM_RT_HD void select_finish(Selection* s, float cap, uint32_t equal, uint32_t next_above) {
  const uint32_t lo = s->lo != kNoBits ? s->lo : s->prefix;
  const bool is_next = s->lo == kNoBits && s->rank + 1 >= equal && next_above != kNoBits;
  s->r = threshold_of(lo, is_next ? next_above : s->prefix, s->fraction, cap);
  s->is_done = 1;
}

// The selection for one thread.
struct Histogram {
  uint32_t bins[kSelectBins];
  uint32_t below, greatest_below, next_above;
};
// Candidates are gathered before they are counted: whether a value is one cannot be foretold.
DDPM_RT_HD void count_values(const float* values, size_t n, uint32_t prefix, int pass, Histogram* h) {
  constexpr size_t kAtOnce = 256;
  uint32_t found[kAtOnce];
  const Candidates range = candidates_of(prefix, pass);
  for (size_t first = 0; first < n; first += kAtOnce) {
    const size_t run = n - first < kAtOnce ? n - first : kAtOnce;
    int32_t below = 0, within = 0, greatest_below = static_cast<int32_t>(h->greatest_below);
    int32_t next_above = static_cast<int32_t>(h->next_above);
    for (size_t i = 0; i < run; ++i) {
      const int32_t bits = static_cast<int32_t>(magnitude_bits(values[first + i]));
      const int32_t is_below = -(bits < range.first), is_at_most_last = -(bits <= range.last);  // masks: no branch
      const int32_t low = bits & is_below, high = bits | (static_cast<int32_t>(kNoBits) & is_at_most_last);
      below -= is_below;
      within += is_below - is_at_most_last;
      greatest_below = greatest_below < low ? low : greatest_below;
      next_above = high < next_above ? high : next_above;
    }
    h->below += static_cast<uint32_t>(below);
    h->greatest_below = static_cast<uint32_t>(greatest_below);
    h->next_above = static_cast<uint32_t>(next_above);
    if (within == 0) continue;
    size_t count = 0;
    for (size_t i = 0; i < run; ++i) {
      const int32_t bits = static_cast<int32_t>(magnitude_bits(values[first + i]));
      found[count] = static_cast<uint32_t>(bits);
      count += static_cast<size_t>(bits >= range.first) & static_cast<size_t>(bits <= range.last);
    }
    for (size_t i = 0; i < count; ++i) h->bins[select_digit(pass, found[i])]++;
  }
}
DDPM_RT_HD void select_from(const Histogram& h, int pass, float p, float cap, uint32_t n, Selection* s) {
  if (pass == 0) *s = select_begin(p, cap, n, h.below, h.greatest_below);
  if (s->is_done) return;
  uint32_t digit = 0, before = 0;
  while (digit + 1 < kSelectBins && before + h.bins[digit] <= s->rank) before += h.bins[digit++];
  select_advance(s, pass, digit, before);
  if (pass < 2) return;
  uint32_t next = digit + 1;
  while (next < 1024 && h.bins[next] == 0) ++next;
  select_finish(s, cap, h.bins[digit], next < 1024 ? (s->prefix & ~1023u) | next : h.next_above);
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_REDUCE_H_
