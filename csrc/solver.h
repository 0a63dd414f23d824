// Solvers: pure functions from (schedule, prediction, options) to a table of StepRows, float64 inside.
//
// compile_rows: resolve() fills in what the caller left open (solver_options.cpp) -> make_grid() lays the levels
// (solver_grid.cpp) -> one function of csrc/solvers/ writes the rows, each for one network evaluation.
#ifndef DDPM_RT_SOLVER_H_
#define DDPM_RT_SOLVER_H_

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "schedule.h"
#include "step.h"

namespace ddpm_rt {

// What the network predicts and how it is told the time.
struct Prediction {
  // eps | x0 | v | flow | score | scaled_score | energy | mean | edm | consistency: solver_prediction.cpp has the formulas.
  std::string type = "eps";
  std::string variance = "fixed";      // fixed | learned | learned_range: with learned*, the output has twice the channels
  // index, t: the schedule's own time; sigma; log_sigma; log_half_sigma = log(sigma / 2), of sigma_rel. Empty: index on a
  // discrete schedule, log_sigma with scale 1/4 for edm and consistency, sigma on ve and edm schedules, else t.
  std::string time = "";
  double time_scale = 1.0;             // what the network is told is time_scale times that  (rescale_timesteps: 1000 / T)
};

// What the network is told at a level; and the level, in the network's own space, of which it was told.
double network_time(const Schedule& schedule, const Prediction& prediction, const Level& level);
Level level_of_network_time(const Schedule& schedule, const Prediction& prediction, double told);

constexpr double kUnset = std::numeric_limits<double>::quiet_NaN();

// Guidance that is written into the rows.
struct GuidanceOptions {
  double rescale = 0;                                    // phi of Lin et al. 2305.08891 section 3.4, 0 to 1
  double interval_lo = kUnset, interval_hi = kUnset;     // sigma / alpha; outside of (lo, hi] the scale is 1 (2404.07724)
  double threshold_p = kUnset, threshold_cap = kUnset;   // dynamic thresholding, Imagen 2205.11487 section 2.3
  double classifier_scale = 0;                           // s of Dhariwal & Nichol 2105.05233 algorithms 1 (ddpm) and 2
};

// Editing that changes the table (solvers/editing.cpp): where it begins, what it keeps, which way it runs.
struct EditOptions {
  double strength = kUnset;                // share of the steps that are taken: the last floor(steps strength)
  bool keeps_known = false;                // a known picture is blended in after every step (RePaint 2201.09865)
  int jump_length = 10, resamples = 10;    // RePaint's j and r
  int inversion = 0;                       // above 0: from data to noise, with so many evaluations at each level
};

// An empty string, kUnset, -1 or an empty list is "not given": resolve() chooses. samplers() says which sampler takes what.
struct SolverOptions {
  std::string sampler = "ddim";
  int steps = 0;                       // intervals between levels
  double eta = kUnset;                 // share of the noise of an ancestral step, 0 to 1 (DDIM eq. 16)
  std::string clip = "rederive";       // none | keep_eps | rederive (guided-diffusion re-derives eps from the clipped x0)
  double clip_lo = -1.0, clip_hi = 1.0;
  std::string variance;                // ddpm: fixed_small | fixed_large | learned | learned_range
  std::string grid;                    // a name of grids(), "ddimN", "fast27", or section counts "10,15,20"
  std::string compat;                  // diffusers | guided-diffusion | k-diffusion | edm: all conventions of that project

  // Options of the grids.
  std::vector<double> timesteps;       // the visited times themselves
  std::vector<double> sigmas;          // the visited levels themselves, sigma / alpha
  std::string final_sigma;             // zero | sigma_min: where sampling ends
  int steps_offset = -1;               // leading: added to every timestep
  double sigma_min = kUnset, sigma_max = kUnset, rho = kUnset;  // karras, exponential, logsnr, edm
  double shift = kUnset;               // flow: t' = shift t / (1 + (shift - 1) t)
  double lambda_min = kUnset;          // uniform on a discrete schedule: no level with log(alpha / sigma) below it
  std::string time_rounding;           // none | nearest | down: of fractional timesteps that the network is told
  std::string spacing;                 // compat diffusers with a sigma grid: timestep_spacing, which sets its ends
  int original_steps = -1;             // lcm: timesteps of the distillation

  // Options of the solvers.
  int order = -1;
  std::string solver_type;             // midpoint | heun; unipc: bh1 | bh2
  int lower_order_final = -1, euler_at_final = -1, skip_prk_steps = -1;     // 0 or 1
  double s_churn = kUnset, s_tmin = kUnset, s_tmax = kUnset, s_noise = kUnset;  // EDM algorithm 2
  double timestep_scaling = kUnset;    // lcm; 0: the network's x0 is the consistency function itself
  double step_lr = kUnset;             // langevin
  int inner_steps = -1;                // langevin: steps at each level; pc: corrector steps
  std::string step_size;               // langevin: ncsn | ncsnv2
  int denoise = -1;                    // langevin: a last step without noise
  double snr = kUnset;                 // pc
  GuidanceOptions guidance;
  EditOptions edit;
  bool is_resolved = false;
};

struct Table {
  std::vector<StepRow> rows;
  double init_sigma = 1.0;             // x_T = init_sigma * unit noise
  double start_alpha = 0, start_sigma = 1;  // of the state at the first level: alpha x0 + sigma noise
  int nfe = 0;                         // rows that evaluate the network
  int steps = 0;                       // as resolved
  bool uses_history = false, uses_anchor = false;
  std::string uint8_rule;              // round | truncate of the project in `compat`; empty: the plan's
};

// An option beyond those that every sampler has. type: int | float | bool | list | choice:a|b|c.
struct SolverOptionInfo {
  std::string name, type, range, help;
};
const std::vector<SolverOptionInfo>& solver_options();  // all of them, by name

struct SamplerInfo {
  std::string name, citation;
  int order;                           // of convergence of the deterministic part; 0: not a solver of an equation
  int nfe_first, nfe_each;             // evaluations of n steps: nfe_first + nfe_each n, with default options
  int default_steps;                   // 0: the schedule's T, 1000 where time is continuous
  double default_eta;                  // kUnset: takes no eta
  std::string default_grid, space;     // space native: the state is the network's x; unit: alpha = 1
  std::vector<std::string> clips;      // beside none
  std::vector<std::pair<std::string, std::string>> options;  // name and default of each of solver_options() that it takes
  bool takes_eta() const { return default_eta == default_eta; }
};
const std::vector<SamplerInfo>& samplers();
const SamplerInfo& find_sampler(const std::string& name);  // throws Error(kOption)

struct GridInfo {
  std::string name;
  bool is_discrete_only, is_sigma_grid;
  std::vector<std::string> options;    // of solver_options()
  std::string help;
};
const std::vector<GridInfo>& grids();

// One value for an option of solver_options(). Throws Error(kOption) for an unknown name, a wrong type or range.
struct OptionValue {
  enum Kind { kNumber, kBool, kText, kList } kind;
  double number = 0;
  std::string text;
  std::vector<double> list;
};
void set_solver_option(const std::string& name, const OptionValue& value, SolverOptions* options);

// Everything filled in and checked, each nonsensical combination an Error(kOption) that says why. Idempotent.
SolverOptions resolve(const Schedule& schedule, const Prediction& prediction, SolverOptions options);
int sampler_steps(const Schedule& schedule, const std::string& sampler);  // how many it takes unless told

// A StepRow before it is rounded: the same fields in the same order, without the spare words.
struct RowF64 {
  uint32_t flags = 0;
  double t = 0, t2 = 0, gs = 1;
  uint32_t noise_index = 0;
  double c_in = 1, p = 0, q = 0, clip_lo = 0, clip_hi = 0, threshold_p = 0, threshold_cap = 0, phi = 0, ge = 0, gm = 0, snr = 0,
         log_var_lo = 0, log_var_hi = 0, ky = 0, kz = 0;
  double wx[8] = {}, wy[7] = {}, wh[3] = {};
  double vx = 0, v0 = 0, lq = 0, lp = 0;
};
struct TableF64 {
  std::vector<RowF64> rows;
  double init_sigma = 1.0, start_alpha = 0, start_sigma = 1;
  SolverOptions options;               // resolved
};
constexpr size_t kRowFields = 42;
void row_fields(const RowF64& row, double out[kRowFields]);  // all fields as numbers, in order

TableF64 compile_rows(const Schedule& schedule, const Prediction& prediction, const SolverOptions& options);
// compile_rows, rounded once.
Table compile_table(const Schedule& schedule, const Prediction& prediction, const SolverOptions& options);

// A table of rows that came from outside, checked by validate_table; init_sigma finite and above 0.
Table table_from_rows(std::vector<StepRow> rows, double init_sigma, uint32_t executor_flags);
// Known flags that the executor has, LAST exactly at the end, finite fields, spare words zero, no history or anchor read
// before a row of this table wrote it. Throws Error(kOption).
void validate_table(const std::vector<StepRow>& rows, uint32_t executor_flags);

}  // namespace ddpm_rt

#endif  // DDPM_RT_SOLVER_H_
