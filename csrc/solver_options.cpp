// From what the caller gave to every option's value: the sampler's own defaults, or all conventions of a project at once.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "error.h"
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr int kMostContinuousSteps = 10000;
constexpr double kLeastLambda = -5.1;  // where diffusers clips the cosine schedule in its own tests

void expect_one_of(const char* field, const std::string& value, std::initializer_list<const char*> allowed) {
  if (is_one_of(value, allowed)) return;
  std::string list;
  for (const char* a : allowed) list += list.empty() ? a : std::string(", ") + a;
  refuse(std::string(field) + ": expected one of " + list + ", got \"" + value + "\"");
}

void fill(std::string* value, const std::string& otherwise) {
  if (value->empty()) *value = otherwise;
}
void fill(int* value, int otherwise) {
  if (*value < 0) *value = otherwise;
}
void fill(double* value, double otherwise) {
  if (std::isnan(*value)) *value = otherwise;
}

bool takes(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// A named grid, or null for timesteps, sigmas, section counts and ddimN.
const GridInfo* find_grid(const std::string& name) {
  for (const GridInfo& grid : grids()) {
    if (grid.name == name) return &grid;
  }
  return nullptr;
}

bool is_explicit(const SolverOptions& o) { return !o.timesteps.empty() || !o.sigmas.empty(); }

void check_option_fits(const SamplerInfo& sampler, const SolverOptions& o, const OptionField& field) {
  const std::string& name = field.info.name;
  if (name == "timesteps" || name == "sigmas") return;
  if (o.compat == "diffusers") {  // what a scheduler's spacing takes holds beside a sigma grid too
    const GridInfo* grid = find_grid(o.grid);
    if (name == "spacing" && grid != nullptr && grid->is_sigma_grid) return;
    if (name == "steps_offset" && (o.grid == "leading" || o.spacing == "leading")) return;
    if (name == "lambda_min" && sampler.name.compare(0, 5, "dpmpp") == 0) return;
  }
  for (const auto& own : sampler.options) {
    if (own.first == name) return;
  }
  const GridInfo* grid = find_grid(o.grid);
  if (grid != nullptr && takes(grid->options, name)) return;
  std::string where;
  for (const GridInfo& g : grids()) {
    if (takes(g.options, name)) where += (where.empty() ? "" : ", ") + g.name;
  }
  if (!where.empty()) {
    refuse(name + ": expected it unset with grid " + (is_explicit(o) ? "given as a list" : o.grid) + ", got a value: only " + where +
           " take it");
  }
  refuse(name + ": expected it unset with sampler " + sampler.name + ", got a value: it belongs to other samplers");
}

void resolve_grid(const Schedule& schedule, const SamplerInfo& sampler, SolverOptions* o) {
  if (is_explicit(*o)) {
    if (!o->grid.empty() && o->grid != "list") {
      refuse("grid: expected it unset with timesteps or sigmas, got \"" + o->grid + "\": the levels are given");
    }
    if (!o->timesteps.empty() && !o->sigmas.empty()) refuse("sigmas: expected one of timesteps and sigmas, got both");
    const int given = static_cast<int>(o->timesteps.size() + o->sigmas.size());
    if (o->steps != 0 && o->steps != given) {
      refuse("steps: expected " + std::to_string(given) + ", as many as levels are listed, or unset, got " +
             std::to_string(o->steps));
    }
    o->steps = given;
    o->grid = "list";
    return;
  }
  if (o->grid.empty()) {
    o->grid = sampler.default_grid;
    if (o->compat == "diffusers") o->grid = o->sampler == "lcm" ? "lcm" : o->spacing.empty() ? "" : o->spacing;
    if (o->compat == "diffusers" && o->grid.empty()) {
      o->grid = is_one_of(o->sampler, {"ddpm", "ddim", "pndm"}) && schedule.is_discrete() ? "leading" : "linspace";
    }
    if (o->compat == "k-diffusion") o->grid = "karras";
    if (o->compat == "edm") o->grid = "edm";
    const GridInfo* grid = find_grid(o->grid);
    const bool explodes = is_one_of(schedule.kind, {"ve", "edm"});  // time does not reach sigma 0
    if (o->compat.empty() && !schedule.is_discrete() && (grid->is_discrete_only || (explodes && o->grid == "uniform"))) {
      o->grid = explodes ? "karras" : "uniform";
    }
    if (o->compat.empty() && schedule.kind == "flow" && grid->is_sigma_grid) o->grid = "uniform";  // sigma / alpha starts at infinity
  }
  const GridInfo* grid = find_grid(o->grid);
  if (grid == nullptr && section_counts(o->grid).empty()) {
    std::string list;
    for (const GridInfo& g : grids()) list += g.name + ", ";
    refuse("grid: expected one of " + list + "\"ddimN\", \"fast27\" or section counts such as \"10,15,20\", got \"" + o->grid +
           "\"");
  }
  if (!schedule.is_discrete() && (grid == nullptr || grid->is_discrete_only)) {
    refuse("grid: expected one for continuous time (linspace, uniform, karras, exponential, logsnr, edm), got \"" + o->grid + "\"");
  }
}

void resolve_steps(const Schedule& schedule, SolverOptions* o) {
  if (o->steps < 0) refuse("steps: expected 1 or more, got " + std::to_string(o->steps));
  const std::vector<int> counts = section_counts(o->grid);
  if (!counts.empty()) {
    const int total = std::accumulate(counts.begin(), counts.end(), 0);
    if (o->steps != 0 && o->steps != total) {
      refuse("steps: expected " + std::to_string(total) + ", what grid " + o->grid + " has, or unset, got " +
             std::to_string(o->steps));
    }
    o->steps = total;
  }
  if (o->steps == 0) {
    o->steps = sampler_steps(schedule, o->sampler);
    if (o->grid == "uniform" && schedule.is_discrete()) o->steps = std::min(o->steps, std::max(1, schedule.T() - 1));
    if (o->grid == "lcm" && o->original_steps > 0) o->steps = std::min(o->steps, o->original_steps);
  }
  if (o->steps > kMostContinuousSteps && !schedule.is_discrete()) {
    refuse("steps: expected 1 to " + std::to_string(kMostContinuousSteps) + ", got " + std::to_string(o->steps));
  }
}

void resolve_variance(const Prediction& prediction, const SamplerInfo& sampler, SolverOptions* o) {
  const bool is_fixed = prediction.variance == "fixed";
  if (sampler.name != "ddpm") {
    if (!is_one_of(o->variance, {"", "fixed_small"})) {
      refuse("variance: expected it unset (fixed_small) with sampler " + sampler.name + ", got \"" + o->variance +
             "\": only ddpm chooses between variances; ddim's noise is set by eta");
    }
    o->variance = "fixed_small";
    return;
  }
  fill(&o->variance, !is_fixed ? prediction.variance : o->compat == "guided-diffusion" ? "fixed_large" : "fixed_small");
  expect_one_of("variance", o->variance, {"fixed_small", "fixed_large", "learned", "learned_range"});
  if (o->variance.compare(0, 7, "learned") == 0 && o->variance != prediction.variance) {
    refuse("variance: expected " + (is_fixed ? std::string("fixed_small or fixed_large") : "fixed_small, fixed_large or " +
           prediction.variance) + ", got " + o->variance + ": the network's output has variance " + prediction.variance);
  }
}

void resolve_clip(const SamplerInfo& sampler, SolverOptions* o) {
  if (o->clip.empty()) {
    o->clip = "none";
    if (o->compat == "guided-diffusion" || (o->compat == "diffusers" && o->sampler == "ddpm")) o->clip = "rederive";
    if (o->compat == "diffusers" && o->sampler == "ddim") o->clip = "keep_eps";
  }
  expect_one_of("clip", o->clip, {"none", "keep_eps", "rederive"});
  if (o->clip != "none" && !takes(sampler.clips, o->clip)) {
    refuse("clip: expected " + std::string(sampler.clips.empty() ? "none" : "none or rederive") + " with sampler " + sampler.name +
           ", got " + o->clip + ": it steps in the network's own eps, so a clipped x0 would change nothing");
  }
  if (o->clip != "none" && !(std::isfinite(o->clip_lo) && std::isfinite(o->clip_hi) && o->clip_lo < o->clip_hi)) {
    refuse("clip range: expected finite low < high, got [" + number(o->clip_lo) + ", " + number(o->clip_hi) + "]");
  }
}

void resolve_eta(const SamplerInfo& sampler, SolverOptions* o) {
  const bool is_ancestral = o->compat == "k-diffusion" && is_one_of(o->sampler, {"dpmpp_2s", "dpmpp_3m"});
  fill(&o->eta, is_ancestral ? 1 : sampler.takes_eta() ? sampler.default_eta : 0);
  if (!(o->eta >= 0 && o->eta <= 1)) refuse("eta: expected a number in [0, 1], got " + number(o->eta));
  if (o->eta != 0 && !sampler.takes_eta()) {
    refuse("eta: expected 0 with sampler " + sampler.name + ", got " + number(o->eta) + ": " +
           (sampler.name == "ddpm" ? "its noise is set by variance; eta belongs to ddim (eq. 16)"
                                   : "it adds no noise of that kind; ddim, euler_ancestral and dpmpp_2m_sde do"));
  }
}

void resolve_solver(const Schedule& schedule, SolverOptions* o) {
  const bool is_diffusers = o->compat == "diffusers", is_unipc = o->sampler == "unipc";
  fill(&o->final_sigma, (is_diffusers && is_one_of(o->sampler, {"pndm", "deis"})) || o->grid == "logsnr" ? "sigma_min" : "zero");
  fill(&o->order, o->sampler == "dpmpp_3m" ? 3 : o->sampler == "lms" ? 4 : 2);
  fill(&o->solver_type, is_unipc ? (is_diffusers ? "bh2" : "bh1")
                                 : o->compat == "k-diffusion" && o->sampler == "dpmpp_3m" ? "heun" : "midpoint");
  fill(&o->lower_order_final, o->compat != "k-diffusion" && o->sampler != "dpmpp_2s");
  fill(&o->euler_at_final, 0);
  fill(&o->skip_prk_steps, !is_diffusers);
  fill(&o->s_churn, 0);
  fill(&o->s_tmin, 0);
  fill(&o->s_tmax, kInf);
  fill(&o->s_noise, 1);
  fill(&o->timestep_scaling, schedule.is_discrete() ? 10 : 0);
  fill(&o->step_size, "ncsn");
  fill(&o->step_lr, o->step_size == "ncsn" ? 2e-5 : 6.2e-6);
  fill(&o->inner_steps, o->sampler == "pc" ? 1 : o->step_size == "ncsn" ? 100 : 5);
  fill(&o->denoise, 1);
  fill(&o->snr, is_diffusers ? 0.15 : 0.16);
}

void resolve_levels(const Schedule& schedule, SolverOptions* o) {
  const bool is_diffusers = o->compat == "diffusers";
  fill(&o->steps_offset, 0);
  fill(&o->rho, 7);
  fill(&o->shift, 1);
  fill(&o->lambda_min, is_diffusers ? -kInf : kLeastLambda);
  fill(&o->original_steps, schedule.is_discrete() ? std::min(50, schedule.T()) : 50);
  if (is_diffusers && o->spacing.empty()) {
    o->spacing = is_one_of(o->grid, {"leading", "linspace", "trailing"}) ? o->grid : "linspace";
  }
  if (o->time_rounding.empty()) o->time_rounding = "none";
}

}  // namespace

bool is_given(const SolverOptions& o, const OptionField& field) {
  struct Given {
    const SolverOptions& o;
    bool operator()(int SolverOptions::*m) const { return o.*m >= 0; }
    bool operator()(double SolverOptions::*m) const { return !std::isnan(o.*m); }
    bool operator()(std::string SolverOptions::*m) const { return !(o.*m).empty(); }
    bool operator()(std::vector<double> SolverOptions::*m) const { return !(o.*m).empty(); }
  };
  return std::visit(Given{o}, field.member);
}

int sampler_steps(const Schedule& schedule, const std::string& name) {
  const int own = find_sampler(name).default_steps, all = schedule.is_discrete() ? schedule.T() : 1000;
  return own == 0 ? all : std::min(own, all);
}

SolverOptions resolve(const Schedule& schedule, const Prediction& prediction, SolverOptions o) {
  if (o.is_resolved) return o;
  const SamplerInfo& sampler = find_sampler(o.sampler);
  if (schedule.is_discrete() && schedule.T() < 1) refuse("schedule: expected 1 or more timesteps, got 0");
  validate_prediction(schedule, prediction);
  if (!o.compat.empty()) expect_one_of("compat", o.compat, {"diffusers", "guided-diffusion", "k-diffusion", "edm"});
  check_compat(schedule, prediction, o);
  if (o.compat == "guided-diffusion" && o.grid.empty() && !is_explicit(o)) {
    const std::string count = std::to_string(o.steps == 0 ? sampler_steps(schedule, o.sampler) : o.steps);
    o.grid = o.sampler == "ddim" ? "ddim" + count : count;
  }
  resolve_grid(schedule, sampler, &o);
  for (const OptionField& field : option_fields()) {
    if (is_given(o, field)) check_option_fits(sampler, o, field);
  }
  if (o.time_rounding != "" && o.time_rounding != "none" && !schedule.is_discrete()) {
    refuse("time_rounding: expected none with continuous time, got " + o.time_rounding);
  }
  resolve_steps(schedule, &o);
  resolve_clip(sampler, &o);
  resolve_guidance(prediction, sampler, &o);
  resolve_eta(sampler, &o);
  resolve_variance(prediction, sampler, &o);
  check_solver(schedule, prediction, o);
  resolve_levels(schedule, &o);
  resolve_solver(schedule, &o);
  o.is_resolved = true;
  return o;
}

}  // namespace ddpm_rt
