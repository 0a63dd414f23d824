// Noise schedules and timestep grids, float64. Twin of ddpm_rt/reference/schedule.py.
#ifndef DDPM_RT_SCHEDULE_H_
#define DDPM_RT_SCHEDULE_H_

#include <string>
#include <vector>

namespace ddpm_rt {

// A discrete-time variance-preserving schedule. alpha_bar has T entries in [0, 1], non-increasing;
// 0 only at the last.
struct Schedule {
  std::vector<double> alpha_bar;
  int T() const { return static_cast<int>(alpha_bar.size()); }
};

// name: linear | scaled_linear | cosine | sigmoid, each with its paper's defaults. Throws OptionError.
Schedule make_schedule(const std::string& name, int T);
Schedule schedule_from_betas(const std::vector<double>& betas);
Schedule schedule_from_alpha_bar(std::vector<double> alpha_bar);  // checks range, order
Schedule zero_terminal_snr(const Schedule& s);                    // Lin et al. 2305.08891 algorithm 1

// The visited timesteps, strictly decreasing, exactly `steps` of them, each in [0, T).
// grid: leading | linspace | trailing (Lin et al. table 2). leading: i * floor(T/steps); linspace: round(i (T-1)/(steps-1));
// trailing: round(T (1 - i/steps)) - 1. All from the integer index, halves to even; linspace of one step is t = 0, as
// in numpy. Throws OptionError for steps < 1 or > T.
std::vector<int> timesteps(const std::string& grid, int T, int steps);

}  // namespace ddpm_rt

#endif  // DDPM_RT_SCHEDULE_H_
