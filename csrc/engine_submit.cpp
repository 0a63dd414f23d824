// Engine::submit: the only place where a request's options are checked.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "engine.h"
#include "step.h"

namespace ddpm_rt {
namespace {

constexpr int64_t kMostImages = std::numeric_limits<int32_t>::max();
constexpr size_t kMostTables = 64;

[[noreturn]] void refuse(Code code, const std::string& message) { throw Error(code, message); }

std::string number(double v) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", v);
  return text;
}

std::string chosen(const char* value, const std::string& plans) { return value != nullptr ? value : plans; }

// a * b, or the largest number: such a length never matches.
size_t product(size_t a, size_t b) {
  return b != 0 && a > std::numeric_limits<size_t>::max() / b ? std::numeric_limits<size_t>::max() : a * b;
}

void expect_length(const char* field, size_t expected, size_t got, const std::string& what) {
  if (expected == got) return;
  refuse(Code::kShape, std::string(field) + ": expected " + std::to_string(expected) + " " + what + ", got " +
                           std::to_string(got));
}

uint64_t fresh_seed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

}  // namespace

// A call that names another sampler, or a project's conventions, takes nothing of the plan's own but the clip, and the grid
// where the sampler has none of its own.
SolverOptions Engine::solver_options_for(const ddpm_rt_sample_options& options) const {
  SolverOptions o = spec_.defaults;
  const std::string name = chosen(options.sampler, o.sampler);
  const SamplerInfo& sampler = find_sampler(name);
  if (options.compat != nullptr || name != o.sampler) {
    o = SolverOptions();
    o.sampler = name;
    o.compat = chosen(options.compat, "");
    o.clip_lo = spec_.defaults.clip_lo;
    o.clip_hi = spec_.defaults.clip_hi;
    const std::string& clip = spec_.resolved.clip;
    const bool takes_clip = std::find(sampler.clips.begin(), sampler.clips.end(), clip) != sampler.clips.end();
    o.clip = !o.compat.empty() ? "" : takes_clip ? clip : "none";
    const bool has_own_grid = sampler.default_grid != "leading" || spec_.resolved.grid == "list";
    if (o.compat.empty() && spec_.defaults.compat.empty() && !has_own_grid) o.grid = spec_.defaults.grid;
  }
  if (options.steps < 0) refuse(Code::kOption, "steps: expected 1 or more, got " + std::to_string(options.steps));
  if (options.steps > 0) o.steps = options.steps;
  if (std::isinf(options.eta)) refuse(Code::kOption, "eta: expected a number in [0, 1], got " + number(options.eta));
  if (!std::isnan(options.eta)) o.eta = options.eta;
  o.clip = chosen(options.clip, o.clip);
  o.variance = chosen(options.variance, o.variance);
  o.grid = chosen(options.grid, o.grid);
  o.guidance = spec_.defaults.guidance;
  read_guidance(options, &o.guidance);
  if (!std::isnan(o.guidance.threshold_p) && options.clip != nullptr && std::strcmp(options.clip, "none") == 0) {
    refuse(Code::kOption, "clip: expected keep_eps, rederive or unset with threshold, got none: thresholding takes its place");
  }
  if (o.guidance.classifier_scale != 0 && !spec_.has_classifier) {
    refuse(Code::kOption, "classifier_scale: expected 0, got " + number(o.guidance.classifier_scale) +
                              ": this plan has no classifier; ddpm-rt export --classifier adds one");
  }
  if (options.sampler_options != nullptr) read_sampler_options(options.sampler_options, &o);
  return o;
}

std::shared_ptr<const Table> Engine::table_for(const ddpm_rt_sample_options& options) {
  if (options.rows != nullptr) {
    const bool names_any = options.sampler != nullptr || options.steps != 0 || options.clip != nullptr || options.variance != nullptr ||
                           options.grid != nullptr || options.compat != nullptr || options.sampler_options != nullptr ||
                           !std::isnan(options.eta) || has_guidance(options);
    if (names_any) refuse(Code::kOption, "sampler: expected a table alone, got options of a sampler beside it: the rows say it all");
    std::vector<StepRow> rows(options.row_count);
    if (!rows.empty()) std::memcpy(rows.data(), options.rows, rows.size() * sizeof(StepRow));
    const uint32_t flags = lane_flags(spec_) | (options.mask != nullptr ? kBlend : 0u);
    return std::make_shared<const Table>(table_from_rows(std::move(rows), options.init_sigma, flags));
  }
  SolverOptions o = solver_options_for(options);
  o.edit = read_editing(options);
  char eta_bits[40];
  std::snprintf(eta_bits, sizeof eta_bits, "%a", o.eta);
  const std::string key = o.sampler + "|" + std::to_string(o.steps) + "|" + o.clip + "|" + o.variance + "|" + o.grid + "|" +
                          o.compat + "|" + eta_bits + "|" + guidance_key(o.guidance) + "|" + editing_key(o.edit) + "|" + chosen(options.sampler_options, "");
  {
    std::lock_guard<std::mutex> lock(tables_mutex_);
    const auto found = tables_.find(key);
    if (found != tables_.end()) return found->second;
  }
  auto table = std::make_shared<const Table>(compile_table(spec_.schedule, spec_.prediction, o));
  validate_table(table->rows, lane_flags(spec_) | (o.edit.keeps_known ? kBlend : 0u));
  std::lock_guard<std::mutex> lock(tables_mutex_);
  if (tables_.size() >= kMostTables) tables_.clear();
  tables_[key] = table;
  return table;
}

void Engine::set_images(const ddpm_rt_sample_options& options, RequestSpec* request) const {
  if (options.n < 1 || options.n > kMostImages) {
    refuse(Code::kOption, "n: expected 1 to " + std::to_string(kMostImages) + ", got " + std::to_string(options.n));
  }
  request->n = options.n;
  request->elements = spec_.elements();
  if (options.has_seed < 0 || options.has_seed > 1) {
    refuse(Code::kOption, "has_seed: expected 0 or 1, got " + std::to_string(options.has_seed));
  }
  if (options.seeds != nullptr && options.has_seed != 0) {
    refuse(Code::kOption, "seed: expected either seed or seeds, got both");
  }
  if (options.seeds != nullptr) expect_length("seeds", static_cast<size_t>(options.n), options.seed_count, "(one per image)");
  if (options.keep_nonfinite < 0 || options.keep_nonfinite > 1) {
    refuse(Code::kOption, "keep_nonfinite: expected 0 or 1, got " + std::to_string(options.keep_nonfinite));
  }
  request->keep_nonfinite = options.keep_nonfinite != 0;
}

void Engine::set_output(const ddpm_rt_sample_options& options, void* out, size_t out_bytes, RequestSpec* request) const {
  if (options.output != DDPM_RT_UINT8_NHWC && options.output != DDPM_RT_FLOAT_NCHW) {
    refuse(Code::kOption, "output: expected 0 (uint8) or 1 (float), got " + std::to_string(options.output));
  }
  request->as_uint8 = options.output == DDPM_RT_UINT8_NHWC;
  if (request->as_uint8 && (spec_.role != "image" || spec_.shape.size() != 3)) {
    refuse(Code::kOption, "output: expected float for samples of role " + spec_.role + " and rank " +
                              std::to_string(spec_.shape.size()) + ", got uint8, which needs an image [C, H, W]");
  }
  if (out == nullptr) refuse(Code::kShape, "out: expected an array, got null");
  const size_t each = product(request->elements, request->as_uint8 ? 1 : sizeof(float));
  expect_length("out", product(static_cast<size_t>(options.n), each), out_bytes, "bytes");
  if (options.out_on_device < 0 || options.out_on_device > 1) {
    refuse(Code::kOption, "out_on_device: expected 0 or 1, got " + std::to_string(options.out_on_device));
  }
  request->out_is_device = options.out_on_device != 0;
  if (request->out_is_device && device_ == nullptr) {
    refuse(Code::kDevice, "out_on_device: expected an engine on a GPU, got one on the CPU");
  }
  request->out = out;
  request->data_lo = spec_.data_lo;
  request->data_hi = spec_.data_hi;
  if (request->as_uint8) {
    request->channels = static_cast<size_t>(spec_.shape[0]);
    request->pixels = request->elements / request->channels;
  }
}

// [n]: what the caller gave, or drawn from each image's seed.
std::vector<int64_t> Engine::labels_of(const int64_t* given, size_t count, const char* field, const RequestSpec& request) const {
  const size_t n = static_cast<size_t>(request.n);
  const int64_t null = spec_.num_classes;
  std::vector<int64_t> labels(n, null);
  if (given == nullptr) {
    for (size_t i = 0; null > 0 && i < n; ++i) {  // floor(word * classes / 2^32)
      uint32_t words[4];
      philox_words(request.seeds[i], 0, 0, kStreamLabel, words);
      labels[i] = static_cast<int64_t>((static_cast<uint64_t>(words[0]) * static_cast<uint64_t>(null)) >> 32);
    }
    return labels;
  }
  if (count != 1 && count != n) {
    refuse(Code::kShape, std::string(field) + ": expected 1 or " + std::to_string(n) + " entries, got " + std::to_string(count));
  }
  for (size_t i = 0; i < n; ++i) {
    const int64_t label = given[count == 1 ? 0 : i];
    if (label < -1 || label >= null) {
      refuse(Code::kOption, std::string(field) + ": expected " +
                                (null > 0 ? "-1 (unconditional) or 0 to " + std::to_string(null - 1)
                                          : std::string("-1: this plan has no classes")) +
                                ", got " + std::to_string(label) + " at index " + std::to_string(i));
    }
    labels[i] = label == -1 ? null : label;
  }
  return labels;
}

void Engine::set_start(const ddpm_rt_sample_options& options, RequestSpec* request) const {
  if (options.latents != nullptr && options.x_init != nullptr) {
    refuse(Code::kOption, "x_init: expected either latents or x_init, got both");
  }
  request->start_is_state = options.x_init != nullptr;
  const float* from = request->start_is_state ? options.x_init : options.latents;
  if (from == nullptr) return;
  const char* field = request->start_is_state ? "x_init" : "latents";
  const size_t expected = product(static_cast<size_t>(request->n), request->elements);
  expect_length(field, expected, request->start_is_state ? options.x_init_elements : options.latent_elements,
                "numbers (n samples)");
  request->start.assign(from, from + expected);
}

void Engine::set_scale(const ddpm_rt_sample_options& options, RequestSpec* request) const {
  const bool is_guided = spec_.num_classes > 0 || !spec_.conditions.empty() || request->guide != nullptr;
  const double scale = std::isnan(options.scale) ? (is_guided ? spec_.default_scale : 1.0) : options.scale;
  if (!(std::fabs(scale) <= std::numeric_limits<float>::max())) {
    refuse(Code::kOption, "scale: expected a finite number, got " + number(scale));
  }
  if (!is_guided && scale != 1) {
    refuse(Code::kOption, "scale: expected 1, got " + number(scale) + ": this plan has no condition to guide");
  }
  request->scale = static_cast<float>(scale);
}

std::shared_ptr<Request> Engine::submit(const ddpm_rt_sample_options& options, void* out, size_t out_bytes) {
  expect_parent();
  if (lane_->is_lane_thread()) {
    refuse(Code::kOption, "engine: expected a call from another thread, got one from inside its own denoiser or callback");
  }
  RequestSpec request;
  set_images(options, &request);
  set_output(options, out, out_bytes, &request);
  set_guide(options, &request);
  set_scale(options, &request);
  request.table = table_for(options);
  const std::string& rule = request.table->uint8_rule;
  set_conditions(options, &request);
  request.truncate = rule.empty() ? spec_.truncate_uint8 : rule == "truncate";

  const size_t n = static_cast<size_t>(options.n);
  if (options.seeds != nullptr) {
    request.seeds.assign(options.seeds, options.seeds + n);
  } else {
    const uint64_t base = options.has_seed != 0 ? options.seed : fresh_seed();
    request.seeds.resize(n);
    for (size_t i = 0; i < n; ++i) request.seeds[i] = base + i;
  }
  request.null_label = spec_.num_classes;
  request.labels = labels_of(options.labels, options.label_count, "labels", request);
  if (options.negative != nullptr) {
    request.negative = labels_of(options.negative, options.negative_count, "negative", request);
  }
  set_start(options, &request);
  set_editing(options, &request);
  request.callback = options.callback;
  request.callback_user = options.callback_user;

  bool any_label = request.conditions.is_given();
  for (int64_t label : request.labels) any_label = any_label || label != spec_.num_classes;
  for (const StepRow& row : request.table->rows) {
    const Evaluated e = evaluated(row, request.scale, any_label || request.guide != nullptr);
    request.nfe += int{e.cond} + int{e.uncond};
  }
  auto submitted = make_request(std::move(request));
  lane_->submit(submitted);
  return submitted;
}

}  // namespace ddpm_rt
