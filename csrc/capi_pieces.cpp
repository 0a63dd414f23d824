// C API: the pieces, for a loop of the host's own.
#include <cstring>
#include <vector>

#include "capi_edge.h"
#include "capi_step_checks.h"
#include "engine.h"
#include "request.h"
#include "schedule.h"
#include "solver.h"
#include "spec.h"
#include "step.h"

using ddpm_rt::Code;
using ddpm_rt::Error;
using ddpm_rt::expect_count;
using ddpm_rt::expect_given;
using ddpm_rt::expect_operands;
using ddpm_rt::finite_scale;
using ddpm_rt::guarded;
using ddpm_rt::read_row;
using ddpm_rt::StepRow;

namespace {

struct Compiled {
  ddpm_rt::Schedule schedule;
  ddpm_rt::Prediction prediction;
  ddpm_rt::SolverOptions options;
};

Compiled read_compiled(const double* alpha_bar, size_t T, const char* model, const ddpm_rt_sample_options* options) {
  if (T > 0) expect_given(alpha_bar, "alpha_bar");
  const auto read = ddpm_rt::read_struct(options, "sample_options", &ddpm_rt_sample_options_init);
  Compiled c;
  ddpm_rt::read_model(model != nullptr ? model : "", std::vector<double>(alpha_bar, alpha_bar + T), &c.schedule, &c.prediction);
  ddpm_rt::SolverOptions& o = c.options;
  if (read.compat != nullptr && read.compat[0] != '\0') o.compat = read.compat, o.clip.clear();
  if (read.sampler != nullptr) o.sampler = read.sampler;
  const std::vector<std::string>& clips = ddpm_rt::find_sampler(o.sampler).clips;
  if (o.compat.empty() && clips.empty()) o.clip = "none";
  if (read.clip != nullptr) o.clip = read.clip;
  if (read.variance != nullptr) o.variance = read.variance;
  if (read.grid != nullptr) o.grid = read.grid;
  o.eta = read.eta;
  o.steps = read.steps;
  ddpm_rt::read_guidance(read, &o.guidance);
  if (read.sampler_options != nullptr) ddpm_rt::read_sampler_options(read.sampler_options, &o);
  return c;
}

}  // namespace

extern "C" {

void ddpm_rt_noise(uint64_t seed, uint32_t index, uint32_t stream, size_t first, size_t count, float* out) {
  if (out != nullptr && count > 0) ddpm_rt::fill_normals(seed, index, stream, first, count, out);
}

ddpm_rt_status ddpm_rt_rows(const double* alpha_bar, size_t T, const char* model, const ddpm_rt_sample_options* options,
                            ddpm_rt_string** rows, size_t* count, double* init_sigma) {
  return guarded([&] {
    expect_given(rows, "rows");
    *rows = nullptr;
    const Compiled c = read_compiled(alpha_bar, T, model, options);
    const ddpm_rt::Table table = ddpm_rt::compile_table(c.schedule, c.prediction, c.options);
    *rows = new ddpm_rt_string{
        std::string(reinterpret_cast<const char*>(table.rows.data()), table.rows.size() * sizeof(StepRow))};
    if (count != nullptr) *count = table.rows.size();
    if (init_sigma != nullptr) *init_sigma = table.init_sigma;
    return DDPM_RT_OK;
  });
}

void ddpm_rt_step_operands_init(ddpm_rt_step_operands* operands, size_t struct_size) {
  ddpm_rt_step_operands full;
  std::memset(&full, 0, sizeof full);
  ddpm_rt::write_struct(full, operands, struct_size);
}

ddpm_rt_status ddpm_rt_rows_f64(const double* alpha_bar, size_t T, const char* model, const ddpm_rt_sample_options* options,
                                ddpm_rt_string** rows, size_t* count, double* init_sigma) {
  return guarded([&] {
    expect_given(rows, "rows");
    *rows = nullptr;
    const Compiled c = read_compiled(alpha_bar, T, model, options);
    const ddpm_rt::TableF64 table = ddpm_rt::compile_rows(c.schedule, c.prediction, c.options);
    std::vector<double> fields(table.rows.size() * ddpm_rt::kRowFields);
    for (size_t i = 0; i < table.rows.size(); ++i) ddpm_rt::row_fields(table.rows[i], &fields[i * ddpm_rt::kRowFields]);
    *rows = new ddpm_rt_string{std::string(reinterpret_cast<const char*>(fields.data()), fields.size() * sizeof(double))};
    if (count != nullptr) *count = table.rows.size();
    if (init_sigma != nullptr) *init_sigma = table.init_sigma;
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_rows_check(const void* rows, size_t count, double init_sigma) {
  return guarded([&] {
    if (count > 0) expect_given(rows, "rows");
    std::vector<StepRow> copy(count);
    if (count > 0) std::memcpy(copy.data(), rows, count * sizeof(StepRow));
    ddpm_rt::table_from_rows(std::move(copy), init_sigma, ddpm_rt::kCpuFlags);
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_samplers(ddpm_rt_string** json) {
  return guarded([&] {
    expect_given(json, "json");
    *json = new ddpm_rt_string{ddpm_rt::samplers_json()};
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_step(float* x, const float* eps, const float* eps_uncond, const void* row, const void* next_row,
                            double scale, const uint64_t* seeds, float* history, uint32_t ring, float* anchor, float* in,
                            float* x0, const ddpm_rt_step_operands* operands, size_t count, size_t elements) {
  return guarded([&] {
    if (count == 0) return DDPM_RT_OK;
    expect_count(count, elements);
    expect_given(x, "x");
    expect_given(row, "row");
    const StepRow own = read_row(row, "row");
    const StepRow next = next_row != nullptr ? read_row(next_row, "next_row") : StepRow{};
    const bool is_last = (own.flags & ddpm_rt::kLast) != 0;
    ddpm_rt::expect_next(own, next_row, in, ring);
    const float s = finite_scale(scale, "scale");
    const auto rare = ddpm_rt::read_struct(operands, "operands", &ddpm_rt_step_operands_init);
    const float s2 = finite_scale(rare.scale2, "operands.scale2");
    expect_operands(own, {eps, seeds, history, anchor}, rare);
    // The engine runs one network only where s_row is exactly 1 or 0; so does this, for the same bits.
    ddpm_rt::Evaluated need = ddpm_rt::evaluated(own, s, true);
    const bool has_e = !(own.flags & ddpm_rt::kNoEval);
    if (eps_uncond == nullptr) need.uncond = false;
    if (eps_uncond == nullptr || rare.guide != nullptr) need.cond = has_e;
    std::vector<ddpm_rt::StepSlot> slots(count);
    for (size_t i = 0; i < count; ++i) {
      const size_t at = i * elements;
      const auto own_part = [at](const float* all) { return all != nullptr ? all + at : nullptr; };
      ddpm_rt::StepSlot& slot = slots[i] = ddpm_rt::StepSlot{};
      slot.row = &own;
      slot.next = is_last || next_row == nullptr ? nullptr : &next;
      slot.seed = seeds != nullptr ? seeds[i] : 0;
      slot.scale = s;
      slot.scale2 = s2;
      slot.x = x + at;
      slot.cond = need.cond ? eps + at : nullptr;
      slot.uncond = need.uncond ? eps_uncond + at : nullptr;
      slot.guide = own_part(rare.guide);
      for (size_t k = 0; history != nullptr && k < 3; ++k) slot.history[k] = history + k * count * elements + at;
      slot.ring = ring;
      slot.anchor = anchor != nullptr ? anchor + at : nullptr;
      slot.in[0] = in != nullptr && slot.next != nullptr ? in + at : nullptr;
      slot.x0_out = x0 != nullptr ? x0 + at : nullptr;
      slot.variance = own_part(rare.variance);
      slot.grad = own_part(rare.grad);
      slot.known = own_part(rare.known);
      slot.mask = own_part(rare.mask);
      slot.x0_true = own_part(rare.x0_true);
      slot.kl = rare.kl != nullptr ? rare.kl + i : nullptr;
    }
    std::vector<uint8_t> bad(count);
    ddpm_rt::step_cpu(slots.data(), count, elements, bad.data());
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_cfg_combine(const float* cond, const float* uncond, const float* scale, double rescale, size_t count,
                                   size_t elements, float* out) {
  return guarded([&] {
    if (count == 0) return DDPM_RT_OK;
    expect_count(count, elements);
    expect_given(cond, "cond");
    expect_given(uncond, "uncond");
    expect_given(scale, "scale");
    expect_given(out, "out");
    ddpm_rt::cfg_combine_cpu(cond, uncond, scale, ddpm_rt::rescale_share(rescale), count, elements, out);
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_alpha_bar(const char* schedule, size_t T, double* alpha_bar) {
  return guarded([&] {
    expect_given(schedule, "schedule");
    expect_given(alpha_bar, "alpha_bar");
    constexpr size_t kMostTimesteps = 1 << 16;
    if (T < 1 || T > kMostTimesteps) {
      throw Error(Code::kOption, "T: expected 1 to " + std::to_string(kMostTimesteps) + ", got " + std::to_string(T));
    }
    const ddpm_rt::Schedule made = ddpm_rt::make_schedule(schedule, static_cast<int>(T));
    std::memcpy(alpha_bar, made.alpha_bar.data(), T * sizeof(double));
    return DDPM_RT_OK;
  });
}

}  // extern "C"
