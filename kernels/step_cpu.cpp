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

// Sum over `elements` of (v - shift)^power, in an order that no instruction set changes: 16 interleaved partial sums.
template <bool kSquare>
DDPM_RT_HD double ordered_sum(const float* values, size_t elements, double shift) {
  constexpr size_t kLanes = 16;
  double partial[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= elements; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const double v = static_cast<double>(values[i + lane]) - shift;
      partial[lane] += kSquare ? v * v : v;
    }
  }
  for (size_t lane = 0; i + lane < elements; ++lane) {
    const double v = static_cast<double>(values[i + lane]) - shift;
    partial[lane] += kSquare ? v * v : v;
  }
  for (size_t width = kLanes / 2; width > 0; width /= 2) {
    for (size_t lane = 0; lane < width; ++lane) partial[lane] += partial[lane + width];
  }
  return partial[0];
}

DDPM_RT_HD double population_std(const float* values, size_t elements) {
  const double mean = ordered_sum<false>(values, elements, 0.0) / static_cast<double>(elements);
  return sqrt(ordered_sum<true>(values, elements, mean) / static_cast<double>(elements));
}

}  // namespace

DDPM_RT_CLONES void step_cpu(const StepSlot* slots, size_t count, size_t elements, uint8_t* slot_bad) {
  const bool streams = count != 0 && elements >= kStreamElements / count;
  for (size_t s = 0; s < count; ++s) {
    const SlotPlan plan = plan_slot(slots[s]);
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
    const bool is_rescaled = phi != 0.0f && elements != 0;
    const double std_cond = is_rescaled ? population_std(c, elements) : 0.0;  // before `out`, which may be `cond`
    for (size_t i = 0; i < elements; ++i) e[i] = guide(c[i], u[i], scale[s]);
    if (!is_rescaled) continue;
    const float factor = rescale_factor(phi, std_cond, population_std(e, elements));
    for (size_t i = 0; i < elements; ++i) e[i] = factor * e[i];
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
  const float scale = static_cast<float>(255.0 / (static_cast<double>(hi) - static_cast<double>(lo)));
  for (size_t c = 0; c < channels; ++c) {
    const float* plane = x + c * pixels;
    for (size_t i = 0; i < pixels; ++i) out[i * channels + c] = quantise(plane[i], lo, scale, truncate);
  }
}

}  // namespace ddpm_rt
