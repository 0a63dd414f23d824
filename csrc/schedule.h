// Noise models and timestep grids, float64. Twins: ddpm_rt/reference/schedule.py, grids.py.
//
//   x_t = alpha x_0 + sigma eps        the network's own space; alpha, sigma of t
//   sigma_rel = sigma / alpha          the level in EDM space (Karras et al. 2206.00364), where alpha = 1
#ifndef DDPM_RT_SCHEDULE_H_
#define DDPM_RT_SCHEDULE_H_

#include <string>
#include <vector>

namespace ddpm_rt {

// kind        t                alpha, sigma
// discrete    0 .. T - 1       sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)                      DDPM eq. 4
// vp          [t_min, 1]       exp(-t^2 (b1 - b0) / 4 - t b0 / 2), sqrt(1 - alpha^2)         Song et al. 2011.13456 eq. 33
// sub_vp      [t_min, 1]       the same alpha, 1 - alpha^2                                   eq. 34
// ve          [0, 1]           1, sigma_min (sigma_max / sigma_min)^t                        eq. 31
// flow        [t_min, 1]       1 - t, t                                                      rectified flow, 2209.03003
// edm         sigma itself     1, t in [sigma_min, sigma_max]                                2206.00364
struct Schedule {
  std::vector<double> alpha_bar;   // discrete: T entries in [0, 1], non-increasing; 0 only at the last
  std::string kind = "discrete";
  double beta_min = 0.1, beta_max = 20;        // vp, sub_vp: b0, b1
  double sigma_min = 0.002, sigma_max = 80;    // ve, edm
  double t_min = 1e-3;                         // vp, sub_vp, flow: the least noisy time that a grid visits
  double sigma_data = 0.5;                     // edm: of the network's preconditioning

  int T() const { return static_cast<int>(alpha_bar.size()); }  // 0 where time is continuous
  bool is_discrete() const { return kind == "discrete"; }
};

// name: linear | scaled_linear | cosine | sigmoid, each with its paper's defaults. Throws OptionError.
Schedule make_schedule(const std::string& name, int T);
Schedule schedule_from_betas(const std::vector<double>& betas);
Schedule schedule_from_alpha_bar(std::vector<double> alpha_bar);  // checks range, order
Schedule zero_terminal_snr(const Schedule& s);                    // Lin et al. 2305.08891 algorithm 1
void validate_schedule(const Schedule& s);                        // of a continuous kind; throws Error(kOption)

// A point of the way from noise to data. `scale` is 1 in the network's own space; a solver that keeps its state in another
// one has network x = scale * state, and alpha, sigma of the state.
struct Level {
  double alpha, sigma, t;
  double scale = 1;
};

double first_time(const Schedule& s);  // the noisiest t
double last_time(const Schedule& s);   // the least noisy t
// Between integer timesteps log sigma_rel is linear in t, as in k-diffusion and diffusers.
Level level_at(const Schedule& s, double t);
// The level whose sigma / alpha is exactly `sigma_rel`; t is clamped to the schedule's times.
Level level_at_sigma(const Schedule& s, double sigma_rel);
double sigma_rel(const Level& level);  // infinite where alpha is 0

// The visited timesteps of a discrete schedule, strictly decreasing, exactly `steps` of them, each in [0, T). k = 0 .. steps
// - 1 counts from the end of sampling:
//   leading    k floor(T / steps)                             Lin et al. 2305.08891 table 2
//   linspace   round(k (T - 1) / (steps - 1)); one step: 0    table 2; t = 0 as in numpy
//   trailing   round(T (k + 1) / steps) - 1                   table 2
//   uniform    round((k + 1) (T - 1) / steps)                 DPM-Solver's uniform time without its last point, 2206.00927
// All from the integer index, halves to even. Throws Error(kOption) for steps < 1 or more than the grid has.
std::vector<int> timesteps(const std::string& grid, int T, int steps);
// Nichol & Dhariwal 2102.09672 section 4, as their code spaces them: T divided into equal sections, counts[i] timesteps in
// section i, first and last included. `accumulate` adds up the stride in floating point, as that code does: at halves
// (283 of the 1000 single counts of T = 1000) it then visits neighbours of these timesteps.
std::vector<int> section_timesteps(int T, const std::vector<int>& counts, bool accumulate);
// "ddimN" of the same code: an integer stride from 0 that gives exactly `steps`; throws where there is none.
std::vector<int> ddim_timesteps(int T, int steps);
// Luo et al. 2310.04378: every (original / steps)-th of the `original` timesteps the network was distilled on.
std::vector<int> lcm_timesteps(int T, int original, int steps);

}  // namespace ddpm_rt

#endif  // DDPM_RT_SCHEDULE_H_
