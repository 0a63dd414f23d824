// The manifest's noise model, prediction, time and sampler options; the list of samplers as JSON.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "spec_parts.h"

namespace ddpm_rt {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTimesteps = 1 << 16;

Schedule continuous_schedule(const Field& field, const std::string& kind) {
  Schedule s;
  s.kind = kind;
  if (kind == "ve") s.sigma_min = 0.01, s.sigma_max = 50;  // Song et al. 2011.13456 appendix C
  const auto read = [&](const char* key, double* value) {
    if (field[key].is_present()) *value = field[key].real();
  };
  read("beta_min", &s.beta_min);
  read("beta_max", &s.beta_max);
  read("sigma_min", &s.sigma_min);
  read("sigma_max", &s.sigma_max);
  read("t_min", &s.t_min);
  read("sigma_data", &s.sigma_data);
  validate_schedule(s);
  return s;
}

OptionValue option_value(const Field& field, const json& value) {
  OptionValue v{};
  if (value.is_boolean()) {
    v.kind = OptionValue::kBool;
    v.number = value.get<bool>();
  } else if (value.is_number()) {
    v.kind = OptionValue::kNumber;
    v.number = field.real();
  } else if (value.is_string()) {
    v.kind = OptionValue::kText;
    v.text = value.get<std::string>();
  } else if (value.is_array()) {
    v.kind = OptionValue::kList;
    const size_t n = field.array(0, kMaxTimesteps);
    for (size_t i = 0; i < n; ++i) v.list.push_back(field[i].real());
  } else {
    field.refuse("a number, a text, true, false or an array of numbers");
  }
  return v;
}

json options_json(const std::vector<std::pair<std::string, std::string>>& names) {
  json all = json::array();
  for (const auto& name : names) {
    for (const SolverOptionInfo& info : solver_options()) {
      if (info.name != name.first) continue;
      all.push_back({{"name", info.name}, {"type", info.type}, {"range", info.range}, {"default", name.second}, {"help", info.help}});
    }
  }
  return all;
}

}  // namespace

void parse_prediction(const Field& root, bool is_required, Prediction* prediction) {
  const Field type = root["prediction"], variance = root["variance"], time = root["time"];
  if (is_required || type.is_present()) {
    prediction->type = type.one_of({"eps", "x0", "v", "flow", "score", "scaled_score", "energy", "mean", "edm", "consistency"});
  }
  if (variance.is_present()) prediction->variance = variance.one_of({"fixed", "learned", "learned_range"});
  if (time.is_present()) {
    if (time["type"].is_present()) prediction->time = time["type"].one_of({"index", "t", "sigma", "log_sigma", "log_half_sigma"});
    if (time["scale"].is_present()) prediction->time_scale = time["scale"].real();
    if (!(prediction->time_scale > 0)) time["scale"].refuse("a number above 0");
  }
}

void parse_schedule(const Field& root, const Sections& sections, const std::vector<double>* given, Schedule* to) {
  const Field schedule = root["schedule"];
  const bool is_given = given != nullptr && (sections.exist || !given->empty() || !schedule.is_present());
  const bool has_kind = !is_given && schedule["kind"].is_present();
  const std::string kind =
      has_kind ? schedule["kind"].one_of({"discrete", "vp", "sub_vp", "ve", "flow", "edm"}) : std::string("discrete");
  std::vector<double> alpha_bar;
  if (is_given) {
    alpha_bar = *given;
  } else if (kind == "discrete") {
    const int64_t T = schedule["T"].integer(1, kMaxTimesteps);
    const std::string section = section_name(schedule["section"], sections, static_cast<uint64_t>(T) * 8);
    const std::vector<uint8_t> data = sections.read(section);
    if (data.size() != static_cast<size_t>(T) * 8) schedule["section"].refuse(std::to_string(T * 8) + " bytes", "others");
    alpha_bar.resize(static_cast<size_t>(T));
    std::memcpy(alpha_bar.data(), data.data(), data.size());
  }
  try {
    *to = kind == "discrete" ? schedule_from_alpha_bar(std::move(alpha_bar)) : continuous_schedule(schedule, kind);
  } catch (const Error& e) {
    const std::string what = e.what();
    throw Error(sections.code(), (what.compare(0, 8, "schedule") == 0 ? "" : "schedule: ") + what);
  }
}

void parse_sampler_options(const Field& field, SolverOptions* options) {
  if (!field.is_present()) return;
  for (const auto& item : field.object().items()) {
    if (item.value().is_null()) continue;
    set_solver_option(item.key(), option_value(field[item.key()], item.value()), options);
  }
}

void read_sampler_options(const std::string& text, SolverOptions* options) {
  const json document = parse_json(text, Code::kOption, "sampler_options");
  parse_sampler_options(Field(&document, "sampler_options", Code::kOption), options);
}

void read_model(const std::string& text, const std::vector<double>& alpha_bar, Schedule* schedule, Prediction* prediction) {
  if (text.empty() || text[0] != '{') {
    if (!text.empty()) prediction->type = text;
    *schedule = schedule_from_alpha_bar(alpha_bar);
    return;
  }
  const json document = parse_json(text, Code::kOption, "model");
  const Field root(&document, "", Code::kOption);
  parse_prediction(root, false, prediction);
  parse_schedule(root, Sections{}, &alpha_bar, schedule);
}

std::string samplers_json() {
  json all = json::array(), named = json::array();
  for (const SamplerInfo& s : samplers()) {
    all.push_back({{"name", s.name},
                   {"citation", s.citation},
                   {"order", s.order},
                   {"nfe_first", s.nfe_first},
                   {"nfe_each", s.nfe_each},
                   {"default_steps", s.default_steps},
                   {"default_eta", s.takes_eta() ? json(s.default_eta) : json()},
                   {"default_grid", s.default_grid},
                   {"space", s.space},
                   {"clips", s.clips},
                   {"options", options_json(s.options)}});
  }
  for (const GridInfo& g : grids()) {
    std::vector<std::pair<std::string, std::string>> options;
    for (const std::string& name : g.options) options.push_back({name, ""});
    named.push_back({{"name", g.name}, {"discrete_only", g.is_discrete_only}, {"help", g.help}, {"options", options_json(options)}});
  }
  return json{{"samplers", all}, {"grids", named}}.dump();
}

}  // namespace ddpm_rt
