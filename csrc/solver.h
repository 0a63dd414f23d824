// Solvers: pure functions from (schedule, options) to a table of StepRows, float64 inside.
#ifndef DDPM_RT_SOLVER_H_
#define DDPM_RT_SOLVER_H_

#include <memory>
#include <string>
#include <vector>

#include "schedule.h"
#include "step.h"

namespace ddpm_rt {

// What the network predicts and how it is told the time.
struct Prediction {
  std::string type = "eps";            // eps | x0 | v
  std::string variance = "fixed";      // fixed | learned | learned_range  (learned*: a typed refusal for now)
  double time_scale = 1.0;             // network t = index * time_scale  (rescale_timesteps: 1000 / T)
};

struct SolverOptions {
  std::string sampler = "ddim";        // see samplers()
  int steps = 50;
  double eta = 0.0;                    // DDIM eq. 16; in [0, 1]; refused elsewhere
  std::string clip = "rederive";       // none | keep_eps | rederive (guided-diffusion re-derives eps from the clipped x0)
  std::string variance = "fixed_small";  // ddpm: fixed_small | fixed_large
  std::string grid = "leading";
  double clip_lo = -1.0, clip_hi = 1.0;
};

struct Table {
  std::vector<StepRow> rows;
  double init_sigma = 1.0;             // x_T = init_sigma * unit noise
  int nfe = 0;                         // rows that evaluate the network
  bool uses_history = false, uses_anchor = false;
};

struct SamplerInfo {
  std::string name, citation;
  int order;
  int default_steps;                   // 0: T
  bool takes_eta;
};

const std::vector<SamplerInfo>& samplers();

// A row before it is rounded to float32: timestep index, x0 = p x + q e, x' = sum of wx (order of Operand).
struct RowF64 {
  int index;
  double p, q, wx[8];
};
std::vector<RowF64> compile_rows(const Schedule& schedule, const Prediction& prediction, const SolverOptions& options);

// compile_rows, rounded once. Row i has noise_index i; steps 0 means T for ddpm and is refused elsewhere.
Table compile_table(const Schedule& schedule, const Prediction& prediction, const SolverOptions& options);

// Checks a table that came from outside: known flags that the executor has, LAST exactly at the end, finite fields,
// spare words zero, no history or anchor read before a row of this table wrote it. Throws Error(kOption).
void validate_table(const std::vector<StepRow>& rows, uint32_t executor_flags);

}  // namespace ddpm_rt

#endif  // DDPM_RT_SOLVER_H_
