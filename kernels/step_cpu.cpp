// The CPU launcher of step.h: one pass over memory, compiled once per instruction set where the platform can choose
// between them when the library is loaded.
#include "step.h"

#include "step_tile.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(DDPM_RT_NO_CLONES)
#define DDPM_RT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DDPM_RT_CLONES
#endif

namespace ddpm_rt {
namespace {

// Elements of a call from which network inputs bypass the caches: at least 128 MB moved, beyond any that a core owns.
constexpr size_t kStreamElements = size_t{8} << 20;

// By itself, so that the loops of step_cpu stay small.
DDPM_RT_CLONES void reduce_slot(const StepSlot& slot, SlotPlan* plan, size_t elements) {
  reduce_sample(slot, plan, elements);
}

}  // namespace

DDPM_RT_CLONES void step_cpu(const StepSlot* slots, size_t count, size_t elements, uint8_t* slot_bad) {
  const bool streams = count != 0 && elements >= kStreamElements / count;
  for (size_t s = 0; s < count; ++s) {
    SlotPlan plan = plan_slot(slots[s]);
    if (plan.is_rare && elements != 0) reduce_slot(slots[s], &plan, elements);
    uint32_t bad = 0;
    for (size_t first = 0; first < elements; first += kTile) {
      bad |= step_tile(slots[s], plan, first, elements - first < kTile ? elements - first : kTile, streams);
    }
    if (bad != 0) slot_bad[s] = 1;
  }
#if defined(__SSE2__)
  if (streams) _mm_sfence();
#endif
}

DDPM_RT_CLONES void cfg_combine_cpu(const float* cond, const float* uncond, const float* scale, float phi, size_t count,
                                    size_t elements, float* out) {
  for (size_t s = 0; s < count; ++s) {
    const float* c = cond + s * elements;
    const float* u = uncond + s * elements;
    float* e = out + s * elements;
    if (phi == 0.0f || elements == 0) {
      for (size_t i = 0; i < elements; ++i) e[i] = guide(c[i], u[i], scale[s]);
      continue;
    }
    Spread spread_c, spread_e;
    for_tiles(elements, [&](size_t first, size_t n) {
      float tile[kTile];
      for (size_t i = 0; i < n; ++i) tile[i] = guide(c[first + i], u[first + i], scale[s]);
      spread_c.add(c + first, n);
      spread_e.add(tile, n);
    });
    const float factor = rescale_factor(phi, spread_c.deviation(elements), spread_e.deviation(elements));
    for (size_t i = 0; i < elements; ++i) e[i] = factor * guide(c[i], u[i], scale[s]);
  }
}

DDPM_RT_CLONES void fill_normals(uint64_t seed, uint32_t noise_index, uint32_t stream, size_t first, size_t count,
                                 float* out) {
  float tile[kTile];
  const size_t end = first + count;
  for (size_t at = first / 4 * 4; at < end && count != 0; at += kTile) {
    const size_t begin = at < first ? first : at;
    const size_t stop = end - at < kTile ? end : at + kTile;
    const bool is_whole = stop - begin == kTile;
    tile_normals({seed, noise_index, stream}, static_cast<uint32_t>(at / 4), stop - at,
                 is_whole ? out + (begin - first) : tile);
    if (!is_whole) memcpy(out + (begin - first), tile + (begin - at), (stop - begin) * sizeof(float));
  }
}

void philox_words(uint64_t seed, uint32_t block, uint32_t noise_index, uint32_t stream, uint32_t out[4]) {
  const Words words = noise_words(seed, block, noise_index, stream);
  out[0] = words.w0;
  out[1] = words.w1;
  out[2] = words.w2;
  out[3] = words.w3;
}

DDPM_RT_CLONES void to_uint8_nhwc(const float* x, size_t channels, size_t pixels, float lo, float hi, bool truncate,
                                  uint8_t* out) {
  const float scale = uint8_scale(lo, hi);
  for (size_t c = 0; c < channels; ++c) {
    const float* plane = x + c * pixels;
    for (size_t i = 0; i < pixels; ++i) out[i * channels + c] = quantise(plane[i], lo, scale, truncate);
  }
}

}  // namespace ddpm_rt
