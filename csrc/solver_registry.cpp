// The samplers and their options, as data: what ddpm_rt.samplers(), the parser of sampler_options and resolve() read.
#include <array>

#include "solver_parts.h"

namespace ddpm_rt {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

template <typename T>
OptionField field(const char* name, const char* type, const char* range, T SolverOptions::* member, double least, double most,
                  const char* help) {
  return {{name, type, range, help}, member, least, most};
}

std::vector<OptionField> make_fields() {
  using O = SolverOptions;
  constexpr double kMany = 1e6;
  return {
      field("timesteps", "list", "strictly decreasing, of the schedule's times", &O::timesteps, 0, 0,
            "the visited times themselves, instead of a grid"),
      field("sigmas", "list", "strictly decreasing, above 0", &O::sigmas, 0, 0,
            "the visited levels themselves, sigma / alpha, instead of a grid"),
      field("final_sigma", "choice:zero|sigma_min", "", &O::final_sigma, 0, 0,
            "where sampling ends: without noise, or at the schedule's least noisy level (t = 0 of a discrete one)"),
      field("steps_offset", "int", "0 or more", &O::steps_offset, 0, kMany, "grid leading: added to every timestep"),
      field("sigma_min", "float", "above 0", &O::sigma_min, 0, kInf, "sigma grids: the last visited sigma / alpha"),
      field("sigma_max", "float", "above sigma_min", &O::sigma_max, 0, kInf, "sigma grids: the first visited sigma / alpha"),
      field("rho", "float", "above 0", &O::rho, 0, kInf, "grids karras and edm: EDM eq. 5"),
      field("shift", "float", "above 0", &O::shift, 0, kInf, "flow schedules: t becomes shift t / (1 + (shift - 1) t)"),
      field("lambda_min", "float", "finite, or -inf", &O::lambda_min, -kInf, kInf,
            "grid uniform: no timestep whose log(alpha / sigma) is below it; the cosine schedule needs about -5.1"),
      field("time_rounding", "choice:none|nearest|down", "", &O::time_rounding, 0, 0,
            "sigma grids on a discrete schedule: of the fractional timestep that the network is told"),
      field("spacing", "choice:leading|linspace|trailing", "", &O::spacing, 0, 0,
            "compat diffusers with a sigma grid: timestep_spacing, which sets the grid's ends and the first scale"),
      field("original_steps", "int", "1 to the schedule's T", &O::original_steps, 1, kMany,
            "grid lcm: timesteps of the distillation"),
      field("order", "int", "", &O::order, 1, 4, "order of the multistep formula"),
      field("solver_type", "choice:midpoint|heun|bh1|bh2", "", &O::solver_type, 0, 0,
            "dpmpp: how the first difference enters, midpoint or heun; unipc: B(h) = h (bh1) or e^h - 1 (bh2)"),
      field("lower_order_final", "bool", "", &O::lower_order_final, 0, 1,
            "lower the order in the last steps; dpmpp and deis: of fewer than 15"),
      field("euler_at_final", "bool", "", &O::euler_at_final, 0, 1, "order 1 in the last step, whatever the number of steps"),
      field("skip_prk_steps", "bool", "", &O::skip_prk_steps, 0, 1,
            "start with one improved Euler step (n + 1 evaluations) instead of three Runge-Kutta steps (n + 9)"),
      field("s_churn", "float", "0 or more", &O::s_churn, 0, kInf, "EDM algorithm 2: how much noise is added on the way"),
      field("s_tmin", "float", "0 or more", &O::s_tmin, 0, kInf, "the least sigma at which noise is added"),
      field("s_tmax", "float", "above s_tmin", &O::s_tmax, 0, kInf, "the greatest sigma at which noise is added"),
      field("s_noise", "float", "above 0", &O::s_noise, 0, kInf, "factor of the added noise"),
      field("timestep_scaling", "float", "0 or more", &O::timestep_scaling, 0, kInf,
            "lcm: of t in the boundary condition (2310.04378 eq. 9); 0: x0 is the consistency function itself"),
      field("step_lr", "float", "above 0", &O::step_lr, 0, kInf, "langevin: step size at the last level"),
      field("inner_steps", "int", "langevin 1 or more, pc 0 or more", &O::inner_steps, 0, kMany,
            "langevin: steps at each level; pc: corrector steps at each level"),
      field("step_size", "choice:ncsn|ncsnv2", "", &O::step_size, 0, 0,
            "langevin: ncsn x += a / 2 score + sqrt(a) z (1907.05600 algorithm 1), ncsnv2 x += a score + sqrt(2 a) z"),
      field("denoise", "bool", "", &O::denoise, 0, 1, "langevin: a last step without noise, x + sigma^2 score"),
      field("snr", "float", "above 0", &O::snr, 0, kInf, "pc: r of the Langevin corrector's step size (2011.13456 algorithm 4)"),
  };
}

std::vector<SamplerInfo> make_samplers() {
  const std::vector<std::string> both{"keep_eps", "rederive"}, rederive{"rederive"}, none;
  const std::pair<std::string, std::string> final_zero{"final_sigma", "zero"}, lower{"lower_order_final", "True"},
      midpoint{"solver_type", "midpoint"}, euler_last{"euler_at_final", "False"};
  const std::vector<std::pair<std::string, std::string>> churn{
      final_zero, {"s_churn", "0"}, {"s_tmin", "0"}, {"s_tmax", "inf"}, {"s_noise", "1"}};
  return {
      {"ddpm", "Ho et al. 2020, arXiv 2006.11239, algorithm 2", 1, 0, 1, 0, kUnset, "leading", "native", both, {final_zero}},
      {"ddim", "Song et al. 2021, arXiv 2010.02502, eq. 12 and 16; eta 0 is DPM-Solver++ of order 1", 1, 0, 1, 50, 0, "leading",
       "native", both, {final_zero}},
      {"pndm", "Liu et al. 2022, arXiv 2202.09778, algorithms 1 and 2", 2, 1, 1, 50, kUnset, "leading", "native", rederive,
       {final_zero, {"skip_prk_steps", "True"}}},
      {"dpmpp_2m", "Lu et al. 2022, arXiv 2211.01095, algorithm 2", 2, 0, 1, 20, kUnset, "uniform", "native", both,
       {final_zero, midpoint, lower, euler_last}},
      {"dpmpp_3m", "Lu et al. 2022, arXiv 2211.01095, appendix B; with eta as k-diffusion's 3M SDE", 3, 0, 1, 20, 0, "uniform",
       "native", both, {final_zero, midpoint, lower, euler_last}},
      {"dpmpp_2m_sde", "Lu et al. 2022, arXiv 2211.01095, appendix B.4; eta as in k-diffusion", 2, 0, 1, 20, 1, "uniform",
       "native", both, {final_zero, midpoint, lower, euler_last}},
      {"dpmpp_2s", "Lu et al. 2022, arXiv 2211.01095, algorithm 1; eta as in k-diffusion's 2S ancestral", 2, -1, 2, 10, 0,
       "uniform", "native", both, {final_zero, midpoint, {"lower_order_final", "False"}}},
      {"unipc", "Zhao et al. 2023, arXiv 2302.04867, algorithms 1 and 2", 3, 0, 1, 20, kUnset, "uniform", "native", both,
       {final_zero, {"order", "2"}, {"solver_type", "bh1"}, lower}},
      {"euler", "Karras et al. 2022, arXiv 2206.00364, algorithm 2 without its second order", 1, 0, 1, 30, kUnset, "karras",
       "unit", both, churn},
      {"euler_ancestral", "DDIM (Song et al. 2021, eq. 12 and 16) in EDM space, as in k-diffusion", 1, 0, 1, 30, 1, "karras",
       "unit", both, {final_zero}},
      {"heun", "Karras et al. 2022, arXiv 2206.00364, algorithm 2", 2, -1, 2, 18, kUnset, "karras", "unit", rederive, churn},
      {"lms", "linear multistep in sigma (Adams-Bashforth), as in k-diffusion", 4, 0, 1, 30, kUnset, "karras", "unit", rederive,
       {final_zero, {"order", "4"}}},
      {"deis", "Zhang & Chen 2022, arXiv 2204.13902, tAB in log rho", 2, 0, 1, 20, kUnset, "uniform", "native", rederive,
       {final_zero, {"order", "2"}, lower}},
      {"lcm", "Luo et al. 2023, arXiv 2310.04378, algorithm 3; Song et al. 2023, arXiv 2303.01469, algorithm 1", 0, 0, 1, 4,
       kUnset, "lcm", "native", both, {{"timestep_scaling", "10"}}},
      {"langevin", "Song & Ermon 2019, arXiv 1907.05600, algorithm 1; 2020, arXiv 2006.09011", 0, 1, 100, 10, kUnset,
       "exponential", "unit", rederive,
       {{"step_size", "ncsn"}, {"step_lr", "2e-5"}, {"inner_steps", "100"}, {"denoise", "True"}}},
      {"pc", "Song et al. 2021, arXiv 2011.13456, algorithms 2 to 5", 0, 0, 2, 0, kUnset, "linspace", "native", none,
       {{"inner_steps", "1"}, {"snr", "0.16"}}},
  };
}

}  // namespace

const std::vector<OptionField>& option_fields() {
  static const std::vector<OptionField> kFields = make_fields();
  return kFields;
}

const std::vector<SolverOptionInfo>& solver_options() {
  static const std::vector<SolverOptionInfo> kInfos = [] {
    std::vector<SolverOptionInfo> all;
    for (const OptionField& f : option_fields()) all.push_back(f.info);
    return all;
  }();
  return kInfos;
}

const std::vector<SamplerInfo>& samplers() {
  static const std::vector<SamplerInfo> kSamplers = make_samplers();
  return kSamplers;
}

const SamplerInfo& find_sampler(const std::string& name) {
  std::string list;
  for (const SamplerInfo& info : samplers()) {
    if (info.name == name) return info;
    list += list.empty() ? info.name : ", " + info.name;
  }
  refuse("sampler: expected one of " + list + ", got \"" + name + "\"");
}

const std::vector<GridInfo>& grids() {
  static const std::vector<GridInfo> kGrids = {
      {"leading", true, false, {"steps_offset"}, "Lin et al. 2305.08891 table 2: multiples of floor(T / steps)"},
      {"linspace", false, false, {"shift"}, "Lin et al. table 2: from the first time to the last, both visited"},
      {"trailing", true, false, {}, "Lin et al. table 2: from the first timestep, evenly; the last is not visited"},
      {"uniform", false, false, {"shift", "lambda_min"},
       "DPM-Solver's uniform time (2206.00927): one more point than steps, the last is where sampling ends"},
      {"lcm", true, false, {"original_steps"}, "evenly among the timesteps of a distillation (2310.04378)"},
      {"karras", false, true, {"sigma_min", "sigma_max", "rho", "time_rounding", "spacing"},
       "EDM eq. 5 (2206.00364) between the schedule's own levels; fractional timesteps"},
      {"exponential", false, true, {"sigma_min", "sigma_max", "time_rounding", "spacing"},
       "evenly in log sigma; fractional timesteps"},
      {"logsnr", false, true, {"sigma_min", "sigma_max", "time_rounding"},
       "evenly in log(alpha / sigma) with one more point than steps; ends at sigma_min"},
      {"edm", false, true, {"sigma_min", "sigma_max", "rho"},
       "EDM eq. 5 from 80 to 0.002, or what the schedule has of it; on a discrete schedule rounded to its own levels"},
  };
  return kGrids;
}

}  // namespace ddpm_rt
