// Combinations of options that make no sense, each refused with its reason.
#include <cmath>

#include "error.h"
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

void check_diffusers(const Schedule& schedule, const Prediction& prediction, const SolverOptions& o) {
  const std::string& s = o.sampler;
  const auto no = [&](const std::string& what, const std::string& got, const std::string& why) {
    refuse(what + " with compat diffusers and sampler " + s + ", got " + got + ": " + why);
  };
  if (s == "langevin") refuse("sampler: expected one that diffusers has with compat diffusers, got langevin");
  const bool is_data = is_one_of(s, {"dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc", "deis"});
  const bool takes_flow = is_data || s == "euler", is_edm = s == "euler" && schedule.kind == "edm";
  if (s == "pc" ? schedule.kind != "ve" : !schedule.is_discrete() && !(takes_flow && schedule.kind == "flow") && !is_edm) {
    no("schedule: expected " + std::string(s == "pc" ? "kind ve" : takes_flow ? "a discrete one or kind flow" : "a discrete one"),
       "kind " + schedule.kind, "its scheduler has no other");
  }
  const std::string& p = prediction.type;
  const bool fits = s == "pc"                    ? p == "score"
                    : schedule.kind == "flow"    ? p == "flow"
                    : is_edm                     ? p == "edm"
                    : s == "pndm" || s == "euler_ancestral" ? is_one_of(p, {"eps", "v"})
                                                 : is_one_of(p, {"eps", "x0", "v"});
  if (!fits) no("prediction: expected one of its scheduler's prediction types", p, "its scheduler raises an error");
  const bool has_sigma_grids = is_data || is_one_of(s, {"dpmpp_2s", "euler", "heun", "lms"});
  const bool is_spaced = o.grid.empty() || is_one_of(o.grid, {"leading", "linspace", "trailing"});
  if (!is_spaced && !(is_one_of(o.grid, {"karras", "exponential"}) && has_sigma_grids) && !(s == "lcm" && o.grid == "lcm")) {
    no("grid: expected one of its scheduler's", o.grid, "it has no such spacing");
  }
  if ((s == "dpmpp_2s" || s == "pc") && is_spaced && !is_one_of(o.grid, {"", "linspace"})) {
    no("grid: expected linspace", o.grid, "its scheduler has one spacing");
  }
  if (schedule.kind == "flow" && !is_one_of(o.grid, {"", "linspace"})) {
    no("grid: expected linspace on a flow schedule", o.grid, "other spacings of flows are not reproduced");
  }
  if (o.final_sigma == "sigma_min" && is_one_of(s, {"heun", "lms", "euler_ancestral", "ddpm"})) {
    no("final_sigma: expected zero", "sigma_min", "its scheduler always ends at 0");
  }
  if (o.final_sigma == "zero" && s == "deis") no("final_sigma: expected sigma_min", "zero", "its scheduler never ends at 0");
  if (s == "unipc" && o.solver_type == "bh1" && o.final_sigma != "sigma_min") {
    no("solver_type: expected bh2, or final_sigma sigma_min,", "bh1", "its scheduler multiplies infinity by 0 in the last step");
  }
  if (o.s_churn > 0 && (s == "heun" || p != "eps")) {
    no("s_churn: expected 0", number(o.s_churn), "only Euler with prediction eps is reproduced: its scheduler evaluates before it "
       "adds the noise, Heun's adds none");
  }
  if (o.solver_type == "heun" && s == "dpmpp_2s" && o.eta > 0) no("eta: expected 0", number(o.eta), "its noise is not reproduced");
  if ((s == "dpmpp_2s" || s == "dpmpp_2m_sde" || s == "dpmpp_3m" || s == "euler_ancestral") && !std::isnan(o.eta)) {
    const double only = s == "dpmpp_2s" ? 0 : 1;
    if (o.eta != only && !(s == "dpmpp_3m" && o.eta == 0)) no("eta: expected " + number(only), number(o.eta), "its scheduler has no eta");
  }
}

}  // namespace

void check_compat(const Schedule& schedule, const Prediction& prediction, const SolverOptions& o) {
  const std::string &c = o.compat, &s = o.sampler;
  if (c == "diffusers") check_diffusers(schedule, prediction, o);
  const auto expect_sampler = [&](std::initializer_list<const char*> known) {
    if (is_one_of(s, known)) return;
    std::string list;
    for (const char* k : known) list += list.empty() ? k : std::string(", ") + k;
    refuse("sampler: expected one of " + list + " with compat " + c + ", got " + s + ": that project has no other");
  };
  if (c == "guided-diffusion") {
    expect_sampler({"ddpm", "ddim"});
    if (!schedule.is_discrete()) refuse("schedule: expected a discrete one with compat guided-diffusion, got kind " + schedule.kind);
    const int T = schedule.T();
    if (!is_one_of(prediction.type, {"eps", "x0", "mean"})) {
      refuse("prediction: expected eps, x0 or mean with compat guided-diffusion, got " + prediction.type);
    }
    if (prediction.type == "mean" && o.steps != 0 && o.steps != T) {
      refuse("steps: expected " + std::to_string(T) + " with compat guided-diffusion and prediction mean, got " +
             std::to_string(o.steps) + ": it takes the output for the mean of the respaced step, which the network never saw");
    }
  }
  if (c == "k-diffusion") {
    expect_sampler({"euler", "euler_ancestral", "heun", "lms", "dpmpp_2m", "dpmpp_2s", "dpmpp_2m_sde", "dpmpp_3m"});
  }
  if (c == "edm") expect_sampler({"heun", "euler"});
  if ((c == "k-diffusion" || c == "edm") && schedule.kind == "flow") {
    refuse("schedule: expected another than flow with compat " + c + ", got flow: its levels are x = x0 + sigma eps");
  }
}

void check_solver(const Schedule& schedule, const Prediction& prediction, const SolverOptions& o) {
  const std::string& s = o.sampler;
  if (s == "pc" && !is_one_of(prediction.type, {"eps", "score", "scaled_score", "energy"})) {
    refuse("prediction: expected eps, score, scaled_score or energy with sampler pc, got " + prediction.type +
           ": the corrector's step needs the score's norm, and the output is not proportional to the score");
  }
  const int most = s == "lms" ? 4 : s.compare(0, 8, "dpmpp_2m") == 0 ? 2 : 3;
  if (o.order > most) refuse("order: expected 1 to " + std::to_string(most) + " with sampler " + s + ", got " + std::to_string(o.order));
  if (!o.solver_type.empty() && (s == "unipc") != (o.solver_type[0] == 'b')) {
    refuse("solver_type: expected " + std::string(s == "unipc" ? "bh1 or bh2" : "midpoint or heun") + " with sampler " + s + ", got " +
           o.solver_type);
  }
  if (s == "dpmpp_2s" && o.lower_order_final >= 0 && o.compat != "diffusers") {
    refuse("lower_order_final: expected it unset with sampler dpmpp_2s, got a value: only diffusers pairs timesteps of the grid");
  }
  const bool churns = o.s_churn > 0;
  if (churns && schedule.kind == "flow") {
    refuse("s_churn: expected 0 on a flow schedule, got " + number(o.s_churn) + ": its noise is that of x = x0 + sigma eps");
  }
  for (double value : {o.s_tmin, o.s_tmax, o.s_noise}) {
    if (!churns && !std::isnan(value)) refuse("s_tmin, s_tmax, s_noise: expected them unset without s_churn, got " + number(value));
  }
  if (churns && !(std::isnan(o.s_tmax) || std::isnan(o.s_tmin) || o.s_tmin < o.s_tmax)) {
    refuse("s_tmax: expected more than s_tmin = " + number(o.s_tmin) + ", got " + number(o.s_tmax));
  }
  const bool has_prk = o.skip_prk_steps == 0 || (o.skip_prk_steps < 0 && o.compat == "diffusers");
  if (s == "pndm" && has_prk && o.steps < 4) {
    refuse("steps: expected 4 or more with sampler pndm and skip_prk_steps False, got " + std::to_string(o.steps) +
           ": three Runge-Kutta steps come first");
  }
  if (s == "lcm" && o.timestep_scaling > 0 && !schedule.is_discrete()) {
    refuse("timestep_scaling: expected 0 with continuous time, got " + number(o.timestep_scaling) +
           ": the boundary condition counts training timesteps");
  }
  if (s == "langevin" && o.inner_steps == 0) refuse("inner_steps: expected 1 or more with sampler langevin, got 0");
  if (!std::isnan(o.shift) && schedule.kind != "flow") {
    refuse("shift: expected it unset on a schedule of kind " + schedule.kind + ", got " + number(o.shift) + ": it shifts flows");
  }
  if (!std::isnan(o.lambda_min) && !schedule.is_discrete()) {
    refuse("lambda_min: expected it unset with continuous time, got " + number(o.lambda_min) + ": choose the schedule's range");
  }
  if (!o.spacing.empty() && o.compat != "diffusers") {
    refuse("spacing: expected it unset without compat diffusers, got " + o.spacing + ": the grid is the spacing");
  }
}

void set_solver_option(const std::string& name, const OptionValue& value, SolverOptions* options) {
  const OptionField* found = nullptr;
  std::string known;
  for (const OptionField& f : option_fields()) {
    known += (known.empty() ? "" : ", ") + f.info.name;
    if (f.info.name == name) found = &f;
  }
  if (found == nullptr) refuse("sampler_options." + name + ": expected one of " + known + ", got an unknown name");
  const std::string where = "sampler_options." + name;
  const auto fail = [&](const std::string& got) {
    const bool is_choice = found->info.type.compare(0, 7, "choice:") == 0;
    refuse(where + ": expected " + (is_choice ? "one of " + found->info.type.substr(7) : found->info.type) +
           (found->info.range.empty() ? "" : " (" + found->info.range + ")") + ", got " + got);
  };
  struct Set {
    const OptionField& field;
    const OptionValue& value;
    SolverOptions* o;
    bool operator()(int SolverOptions::*m) const {
      const bool is_bool = field.info.type == "bool";
      if (value.kind != (is_bool ? OptionValue::kBool : OptionValue::kNumber)) return false;
      if (value.number != std::floor(value.number) || !(value.number >= field.least && value.number <= field.most)) return false;
      o->*m = static_cast<int>(value.number);
      return true;
    }
    bool operator()(double SolverOptions::*m) const {
      if (value.kind != OptionValue::kNumber || !(value.number >= field.least && value.number <= field.most)) return false;
      if (value.number == 0 && field.info.range.compare(0, 5, "above") == 0) return false;
      o->*m = value.number;
      return true;
    }
    bool operator()(std::string SolverOptions::*m) const {
      if (value.kind != OptionValue::kText || value.text.find('|') != std::string::npos || value.text.empty()) return false;
      if (("|" + field.info.type.substr(7) + "|").find("|" + value.text + "|") == std::string::npos) return false;
      o->*m = value.text;
      return true;
    }
    bool operator()(std::vector<double> SolverOptions::*m) const {
      constexpr size_t kMostLevels = 1 << 16;
      if (value.kind != OptionValue::kList || value.list.empty() || value.list.size() > kMostLevels) return false;
      o->*m = value.list;
      return true;
    }
  };
  if (std::visit(Set{*found, value, options}, found->member)) return;
  fail(value.kind == OptionValue::kText   ? "\"" + value.text + "\""
       : value.kind == OptionValue::kList ? "a list of " + std::to_string(value.list.size())
                                          : number(value.number));
}

}  // namespace ddpm_rt
