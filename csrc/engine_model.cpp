// What an engine's tables are compiled from, for a loop of the host's own.
#include <initializer_list>
#include <nlohmann/json.hpp>

#include "engine.h"

namespace ddpm_rt {

std::string Engine::model() const {
  expect_parent();
  const Schedule& s = spec_.schedule;
  const Prediction& p = spec_.prediction;
  nlohmann::json json = {{"prediction", p.type}, {"variance", p.variance}, {"alpha_bar", s.alpha_bar}};
  json["time"] = {{"type", p.time.empty() ? nlohmann::json() : nlohmann::json(p.time)}, {"scale", p.time_scale}};
  json["clip_range"] = {spec_.defaults.clip_lo, spec_.defaults.clip_hi};
  if (s.is_discrete()) return json.dump();
  json["schedule"] = {{"kind", s.kind}};
  const auto add = [&](const char* key, double value, std::initializer_list<const char*> kinds) {
    for (const char* kind : kinds) {
      if (s.kind == kind) json["schedule"][key] = value;
    }
  };
  add("beta_min", s.beta_min, {"vp", "sub_vp"});
  add("beta_max", s.beta_max, {"vp", "sub_vp"});
  add("t_min", s.t_min, {"vp", "sub_vp", "flow"});
  add("sigma_min", s.sigma_min, {"ve", "edm"});
  add("sigma_max", s.sigma_max, {"ve", "edm"});
  add("sigma_data", s.sigma_data, {"edm"});
  return json.dump();
}

}  // namespace ddpm_rt
