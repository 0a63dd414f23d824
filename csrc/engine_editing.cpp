// Editing of a call: pictures to start from and to keep, the way back, and the predictions that are kept.
#include <cmath>
#include <cstdio>
#include <limits>
#include <new>
#include <utility>

#ifndef _WIN32
#include <unistd.h>
#endif

#include "engine.h"
#include "step.h"

namespace ddpm_rt {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(Code::kOption, message); }

// [elements] or [n, elements], each number in [lo, hi].
std::vector<float> pictures(const char* field, const float* from, size_t count, const RequestSpec& request, float lo, float hi) {
  const size_t n = static_cast<size_t>(request.n), each = request.elements;
  if (count != each && (count / each != n || count % each != 0)) {
    throw Error(Code::kShape, std::string(field) + ": expected " + std::to_string(each) + " numbers (one sample) or " + std::to_string(n) +
                                  " times as many, got " + std::to_string(count));
  }
  for (size_t i = 0; i < count; ++i) {
    if (from[i] >= lo && from[i] <= hi) continue;
    char text[160];
    std::snprintf(text, sizeof text, "%s: expected %s, got %.9g at index %zu", field,
                  hi == 1.0f ? "numbers in [0, 1], 1 keeps" : "finite numbers", static_cast<double>(from[i]), i);
    refuse(text);
  }
  return {from, from + count};
}

double physical_memory() {
#ifdef _WIN32
  return 1e18;
#else
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
#endif
}

}  // namespace

EditOptions read_editing(const ddpm_rt_sample_options& options) {
  EditOptions edit;
  if (std::isinf(options.strength)) refuse("strength: expected a number in [0, 1], got inf");
  edit.strength = options.strength;
  edit.keeps_known = options.mask != nullptr;
  if (options.jump_length != 0) edit.jump_length = options.jump_length;
  if (options.resamples != 0) edit.resamples = options.resamples;
  if (options.invert < 0) refuse("invert: expected 0 or more, got " + std::to_string(options.invert));
  edit.inversion = options.invert;
  return edit;
}

std::string editing_key(const EditOptions& e) {
  char text[120];
  std::snprintf(text, sizeof text, "%a,%d,%d,%d,%d", e.strength, e.keeps_known, e.jump_length, e.resamples, e.inversion);
  return text;
}

void Engine::set_editing(const ddpm_rt_sample_options& options, RequestSpec* request) const {
  const bool has_strength = !std::isnan(options.strength), has_image = options.image != nullptr, has_mask = options.mask != nullptr;
  if (has_strength && !has_image && options.x_init == nullptr) refuse("strength: expected image beside it, or x_init, got neither");
  if (has_mask && !has_image) refuse("mask: expected image beside it, got a mask alone");
  if (has_image && !has_strength && !has_mask) refuse("image: expected strength or mask beside it, got neither");
  if (!has_mask && (options.jump_length != 0 || options.resamples != 0)) {
    refuse(std::string(options.jump_length != 0 ? "jump_length" : "resamples") + ": expected mask beside it, got none");
  }
  if (has_image && has_strength && options.x_init != nullptr) {
    refuse("x_init: expected it unset with image and strength, got both: the first state is the image with noise");
  }
  if (options.rows != nullptr && (has_strength || options.invert > 0)) {
    refuse(std::string(has_strength ? "strength" : "invert") + ": expected a sampler by name, got a table, whose levels are not known");
  }
  if (options.invert > 0 && (options.x_init == nullptr || has_image)) refuse("invert: expected pictures as x_init, got none");
  if (device_ != nullptr && has_mask) refuse("mask: expected it unset on a GPU, got one: not built yet; use device \"cpu\"");
  if (device_ != nullptr && options.x0_every > 0) refuse("x0_every: expected it unset on a GPU, got a number: not built yet");
  if (options.x0_every < 0) refuse("x0_every: expected 1 or more, got " + std::to_string(options.x0_every));
  if (options.x0_every > 0 && request->table->nfe == 0) refuse("x0_every: expected a table with evaluations, got one without");
  request->x0_every = options.x0_every;
  if (!has_image) return;

  constexpr float kMost = std::numeric_limits<float>::max();
  request->known = pictures("image", options.image, options.image_elements, *request, -kMost, kMost);
  if (has_mask) {
    request->mask = pictures("mask", options.mask, options.mask_elements, *request, 0.0f, 1.0f);
    bool blends = false;
    for (const StepRow& row : request->table->rows) blends = blends || (row.flags & kBlend) != 0;
    if (!blends) refuse("sampler: expected a table with BLEND rows beside mask, got one without");
  }
  if (!has_strength) return;
  const size_t n = static_cast<size_t>(request->n), each = request->elements;
  const bool draws = request->start.empty();
  if (draws) request->start.resize(n * each);
  const float alpha = static_cast<float>(request->table->start_alpha), sigma = static_cast<float>(request->table->start_sigma);
  for (size_t i = 0; i < n; ++i) {
    float* x = request->start.data() + i * each;
    const float* image = request->known_of(static_cast<int64_t>(i));
    if (draws) fill_normals(request->seeds[i], 0, kStreamInit, 0, each, x);
    for (size_t k = 0; k < each; ++k) x[k] = alpha * image[k] + sigma * x[k];
  }
  request->start_is_state = true;
  if (!has_mask) request->known.clear();
}

std::shared_ptr<Request> make_request(RequestSpec spec) {
  const double n = static_cast<double>(spec.n), each = static_cast<double>(spec.x0_count()) * static_cast<double>(spec.elements);
  try {
    if (n * each * sizeof(float) > physical_memory()) throw std::bad_alloc();  // the system may promise more than it has
    return std::make_shared<Request>(std::move(spec));
  } catch (const std::bad_alloc&) {
    char text[120];
    std::snprintf(text, sizeof text, "x0_every: expected predictions that fit in memory, got %.0f numbers for each of %.0f samples", each, n);
    refuse(text);
  }
}

}  // namespace ddpm_rt
