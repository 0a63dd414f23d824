// The parts of the compiler, inside solver*.cpp and solvers/ only.
#ifndef DDPM_RT_SOLVER_PARTS_H_
#define DDPM_RT_SOLVER_PARTS_H_

#include <algorithm>
#include <initializer_list>
#include <string>
#include <variant>
#include <vector>

#include "solver.h"

namespace ddpm_rt {

[[noreturn]] void refuse(const std::string& message);  // Error(kOption)
std::string number(double v);
inline bool is_one_of(const std::string& value, std::initializer_list<const char*> names) {
  return std::find(names.begin(), names.end(), value) != names.end();
}

// An option of SolverOptions by name, and its range; 0 to 0: checked elsewhere.
struct OptionField {
  SolverOptionInfo info;
  std::variant<int SolverOptions::*, double SolverOptions::*, std::string SolverOptions::*, std::vector<double> SolverOptions::*>
      member;
  double least, most;
};
const std::vector<OptionField>& option_fields();
// What a project in `compat` does not have, and what no sampler can make sense of; before defaults are filled in.
void check_compat(const Schedule& schedule, const Prediction& prediction, const SolverOptions& options);
void check_solver(const Schedule& schedule, const Prediction& prediction, const SolverOptions& options);
bool is_given(const SolverOptions& options, const OptionField& field);
void resolve_guidance(const Prediction& prediction, const SamplerInfo& sampler, SolverOptions* options);

// Levels in the network's own space, from noise to data, one more than there are steps. `to`, if not empty, is where each
// step leads when that is not the next level: diffusers' DDIM and PNDM take t - T / steps whatever the spacing.
struct Grid {
  std::vector<Level> levels, to;
};
Grid make_grid(const Schedule& schedule, const SolverOptions& options);
Grid make_diffusers_grid(const Schedule& schedule, const SolverOptions& options);
// EDM's round_sigma on a discrete schedule: the timestep whose sigma / alpha is nearest.
Level nearest_level(const Schedule& schedule, double sigma_rel);
// The counts of "10,15,20", "fast27" (GLIDE's 10,10,3,2,2) and "ddimN"; empty: another grid.
std::vector<int> section_counts(const std::string& grid);
// n values from `from` down to `to`, both exact: linear in sigma^(1/rho) (EDM eq. 5), rho = infinity: in log sigma.
std::vector<double> sigma_ramp(double from, double to, double rho, int n);

// What the network makes of a level: its input c_in x, x0 = p x + q e, eps = r x + s e, with x the state.
struct Output {
  double c_in, p, q, r, s;
};
void validate_prediction(const Schedule& schedule, const Prediction& prediction);
Output output_at(const Schedule& schedule, const Prediction& prediction, const Level& level);

// What a solver sees.
struct Course {
  const Schedule& schedule;
  const Prediction& prediction;
  const SolverOptions& o;              // resolved
  std::vector<Level> levels, to;       // Grid's, in the space of the state
  bool is_unit;                        // alpha = 1

  size_t steps() const { return levels.size() - 1; }
  const Level& next(size_t i) const { return to.empty() ? levels[i + 1] : to[i]; }
  // The derivative of alpha by sigma along the space: the state's dx/dsigma is eps + slope x0.
  double slope() const { return schedule.kind == "flow" && !is_unit ? -1 : 0; }
};
Level in_state_space(const Level& native, bool is_unit);
Level course_level_at_sigma(const Course& course, double sigma_rel);  // in the state's space

// log(alpha / sigma), DPM-Solver's lambda: infinite where sigma is 0.
double log_snr(const Level& level);

// e^-h of a step, h = log_snr(to) - log_snr(from): 0 into sigma 0 and from alpha 0. 1 - decay keeps more digits than h does.
inline double decay(const Level& from, const Level& to) { return to.sigma * from.alpha / (to.alpha * from.sigma); }

// What guidance puts into a row that evaluates the network at `at`.
void guide_row(const Course& course, const Level& at, RowF64* row);
// Dhariwal & Nichol 2105.05233 algorithm 1: the mean moves by scale * variance * grad; with a learned variance, 1 stands for it.
void shift_mean(const Course& course, double variance, RowF64* row);
// A row that evaluates the network at `at`: time, input scale, x0, clip, the split of a learned variance. Weights are 0.
RowF64 row_at(const Course& course, const Level& at);
// w += weight * eps, with eps written in what the row has; w is wx, wy or wh. Clip rederive: of the clipped x0.
void add_eps(const Course& course, const Level& at, double weight, double* w);

using Rows = std::vector<RowF64>;
Rows compile_ddpm(const Course& course);
Rows compile_ddim(const Course& course);
Rows compile_pndm(const Course& course);
Rows compile_dpmpp_multistep(const Course& course);
Rows compile_dpmpp_singlestep(const Course& course);
Rows compile_unipc(const Course& course);
Rows compile_heun(const Course& course);
Rows compile_lms(const Course& course);
Rows compile_deis(const Course& course);
Rows compile_lcm(const Course& course);
Rows compile_langevin(const Course& course);
Rows compile_pc(const Course& course);

// Editing (solvers/editing.cpp). What makes no sense is refused.
void check_editing(const SolverOptions& options);
void skip_steps(Course* course);                            // those that strength leaves out
Rows compile_inversion(const Course& course);
Rows with_known(const Course& course, const Rows& steps);   // `steps`: a row for each step

// Shared steps (solvers/steps.cpp).
// x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, s = eta sigma' sqrt(1 - e^-2h): DDIM eq. 12 and 16 in any space.
void ddim_step(const Course& course, const Level& from, const Level& to, double eta, RowF64* row);
// x' += weight of x and x0 of q(x_to | x_from, x0), and sigma' sqrt(1 - e^-2h) z: DDPM eq. 6 and 7 in any space.
void posterior_step(const Level& from, const Level& to, RowF64* row);
// w += the exact step for a constant x0: sigma' / sigma x - alpha' (e^-h - 1) x0 (DPM-Solver++ eq. 9, order 1).
void exponential_step(const Level& from, const Level& to, double* w);
// The order of the multistep method at step i: what there is history for, less where the step ends at sigma 0 or the options say.
int multistep_order(const Course& course, size_t i);
// The noise that Karras et al. (2206.00364) algorithm 2 adds before it evaluates level i: sigma grows by 1 + gamma.
double churn_gamma(const Course& course, size_t i);
double churn_std(const Course& course, size_t i);
Level churned(const Course& course, size_t i);
// A first row that only adds the churn of level 0, where there is any.
void add_first_churn(const Course& course, Rows* rows);

}  // namespace ddpm_rt

#endif  // DDPM_RT_SOLVER_PARTS_H_
