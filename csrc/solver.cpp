#include "solver.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "error.h"
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

// The state's first scale: x_T = init * unit noise. Whatever the sampler, x_T has the variance of q(x_t) at the first level
// for data of variance 1 where alpha > 0 is part of the noise model, and sigma where it is not (ve, edm).
double initial_sigma(const Schedule& schedule, const SolverOptions& o, const Course& course) {
  const Level& first = course.levels.front();
  const double sigma = first.sigma;
  if (o.compat == "k-diffusion" || o.compat == "edm") return sigma;
  if (o.compat == "diffusers" && schedule.kind == "edm") return std::hypot(sigma, 1.0);  // EDMEulerScheduler
  if (schedule.kind == "ve" || schedule.kind == "edm") return sigma;
  // diffusers' EDM-space schedulers: sqrt(sigma^2 + 1) with leading timesteps, the greatest sigma with others.
  if (o.compat == "diffusers" && course.is_unit && o.spacing != "leading") return sigma;
  return 1 / first.scale;
}

// diffusers' schedulers that divide by alpha give the last timestep of a zero terminal SNR an alpha_bar of 2^-24.
Schedule as_in_compat(Schedule schedule, const SolverOptions& o) {
  const bool divides = o.sampler.compare(0, 5, "dpmpp") == 0 || o.sampler.compare(0, 5, "euler") == 0 || o.sampler == "unipc";
  if (o.compat == "diffusers" && divides && schedule.T() > 1 && schedule.alpha_bar.back() == 0) {
    schedule.alpha_bar.back() = std::ldexp(1.0, -24);
  }
  return schedule;
}

using Compile = Rows (*)(const Course&);

Compile compiler(const std::string& name) {
  const struct {
    const char* name;
    Compile compile;
  } kAll[] = {{"ddpm", &compile_ddpm},
              {"ddim", &compile_ddim},
              {"pndm", &compile_pndm},
              {"dpmpp_2m", &compile_dpmpp_multistep},
              {"dpmpp_3m", &compile_dpmpp_multistep},
              {"dpmpp_2m_sde", &compile_dpmpp_multistep},
              {"dpmpp_2s", &compile_dpmpp_singlestep},
              {"unipc", &compile_unipc},
              {"euler", &compile_heun},
              {"euler_ancestral", &compile_ddim},
              {"heun", &compile_heun},
              {"lms", &compile_lms},
              {"deis", &compile_deis},
              {"lcm", &compile_lcm},
              {"langevin", &compile_langevin},
              {"pc", &compile_pc}};
  for (const auto& entry : kAll) {
    if (name == entry.name) return entry.compile;
  }
  throw Error(Code::kInternal, "sampler: expected one that compiles, got \"" + name + "\"");
}

}  // namespace

void refuse(const std::string& message) { throw Error(Code::kOption, message); }

std::string number(double v) {
  char text[40];
  snprintf(text, sizeof text, "%.9g", v);
  return text;
}

Level in_state_space(const Level& native, bool is_unit) {
  if (!is_unit) return native;
  if (native.alpha == 0) {
    refuse("grid: expected levels with a signal, as this sampler's state is x / alpha, got alpha_bar 0 (zero terminal SNR) at t " +
           number(native.t) + ": use ddim or ddpm, or a grid that does not visit it");
  }
  return {1, native.sigma / native.alpha, native.t, native.alpha};
}

Level course_level_at_sigma(const Course& course, double sigma) {
  Level level = level_at_sigma(course.schedule, sigma);
  if (course.schedule.is_discrete() && course.o.time_rounding == "nearest") level.t = std::nearbyint(level.t);
  return in_state_space(level, course.is_unit);
}

double log_snr(const Level& level) {
  return level.sigma == 0 ? HUGE_VAL : level.alpha == 0 ? -HUGE_VAL : std::log(level.alpha / level.sigma);
}

RowF64 row_at(const Course& course, const Level& at) {
  const Output out = output_at(course.schedule, course.prediction, at);
  RowF64 row;
  row.t = network_time(course.schedule, course.prediction, at);
  row.c_in = out.c_in;
  row.p = out.p;
  row.q = out.q;
  if (course.o.clip != "none") {
    row.flags |= kClip;
    row.clip_lo = course.o.clip_lo;
    row.clip_hi = course.o.clip_hi;
  }
  // The executor splits the output by this flag. Bounds of 0 make its std exactly 1: the noise is what wx[z] says.
  if (course.prediction.variance != "fixed") row.flags |= kLearnedRange;
  guide_row(course, at, &row);
  return row;
}

void add_eps(const Course& course, const Level& at, double weight, double* w) {
  if (weight == 0) return;
  const bool is_clipped = course.o.clip == "rederive";
  if (is_clipped || (course.o.clip == "none" && course.prediction.type == "x0")) {
    w[kX] += weight / at.sigma;
    w[kX0] -= weight * at.alpha / at.sigma;
    return;
  }
  const Output out = output_at(course.schedule, course.prediction, at);
  w[kX] += weight * out.r;
  w[kE] += weight * out.s;
}

TableF64 compile_rows(const Schedule& given, const Prediction& prediction, const SolverOptions& options) {
  TableF64 table;
  table.options = resolve(given, prediction, options);
  const Schedule schedule = as_in_compat(given, table.options);
  const SolverOptions& o = table.options;
  Grid grid = o.compat == "diffusers" ? make_diffusers_grid(schedule, o) : make_grid(schedule, o);
  const bool is_unit = find_sampler(o.sampler).space == "unit" && schedule.kind != "flow";
  Course course{schedule, prediction, o, {}, {}, is_unit};
  for (const Level& level : grid.levels) course.levels.push_back(in_state_space(level, is_unit));
  for (const Level& level : grid.to) course.to.push_back(in_state_space(level, is_unit));
  table.init_sigma = initial_sigma(schedule, o, course);
  check_editing(o);
  skip_steps(&course);
  table.start_alpha = course.levels.front().alpha;
  table.start_sigma = course.levels.front().sigma;
  table.rows = o.edit.inversion > 0 ? compile_inversion(course) : compiler(o.sampler)(course);
  if (o.edit.keeps_known) table.rows = with_known(course, table.rows);
  for (size_t i = 0; i < table.rows.size(); ++i) table.rows[i].noise_index = static_cast<uint32_t>(i);
  table.rows.back().flags |= kLast;
  return table;
}

}  // namespace ddpm_rt
