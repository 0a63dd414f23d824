#include "spec.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "spec_parts.h"

namespace ddpm_rt {
namespace {

using nlohmann::json;

constexpr int64_t kMaxElements = int64_t{1} << 31;
constexpr int64_t kMaxClasses = int64_t{1} << 31;
constexpr int64_t kMostSteps = 1 << 16;

void parse_versions(const Field& root) {
  root["format"].integer(1, 1);
  root["row_version"].integer(kRowVersion, kRowVersion);
  root["rng_version"].integer(kRngVersion, kRngVersion);
  const Field requires_ = root["requires"];
  if (requires_.is_present() && requires_.array(0, 1024) > 0) {
    requires_[0].refuse("no entries: this version knows no optional feature; a newer ddpm_rt may read this plan");
  }
}

void parse_sample(const Field& sample, ModelSpec* spec) {
  const Field shape = sample["shape"];
  const size_t rank = shape.array(1, 4);
  int64_t elements = 1;
  for (size_t i = 0; i < rank; ++i) {
    const int64_t dim = shape[i].integer(1, kMaxElements);
    if (dim > kMaxElements / elements) shape.refuse("at most 2^31 elements", "more");
    elements *= dim;
    spec->shape.push_back(dim);
  }
  const Field role = sample["role"], range = sample["range"], uint8 = sample["uint8"];
  spec->role = role.is_present() ? role.one_of({"image", "latent", "vector"}) : rank == 3 ? "image" : "vector";
  if (spec->role == "image" && rank != 3) shape.refuse("[C, H, W] for role image");
  if (range.is_present()) {
    range.array(2, 2);
    spec->data_lo = range[0].real();
    spec->data_hi = range[1].real();
    if (!(spec->data_lo < spec->data_hi)) {
      range.refuse("low < high", "[" + range[0].found() + ", " + range[1].found() + "]");
    }
  }
  spec->truncate_uint8 = uint8.is_present() && uint8.one_of({"round", "truncate"}) == "truncate";
}

void parse_classes(const Field& root, const Sections& sections, ModelSpec* spec) {
  const Field conditions = root["conditions"], names = root["class_names"], count = root["num_classes"];
  if (conditions.is_present()) {
    const Field label = conditions["label"];
    if (label.is_present()) {
      if (label["dtype"].is_present()) label["dtype"].one_of({"int64"});
      if (label["shape"].is_present()) label["shape"].array(0, 0);
      if (label["max_length"].is_present()) label["max_length"].refuse("null for role class");
      if (label["mask"].is_present() && label["mask"].found() != "false") label["mask"].refuse("false for role class");
      label["role"].one_of({"class"});
      spec->num_classes = label["classes"].integer(1, kMaxClasses);
      label["null"].integer(spec->num_classes, spec->num_classes);
    }
  }
  if (!sections.exist && count.is_present()) spec->num_classes = count.integer(0, kMaxClasses);
  if (names.is_present()) {
    const size_t n = names.array(0, kMaxManifestBytes);
    for (size_t i = 0; i < n; ++i) spec->class_names.push_back(names[i].text());
    if (!sections.exist && !count.is_present() && spec->num_classes == 0) spec->num_classes = static_cast<int64_t>(n);
    if (n > 0 && n != static_cast<size_t>(spec->num_classes)) {
      names.refuse("0 or " + std::to_string(spec->num_classes) + " names, as there are classes", std::to_string(n));
    }
  }
}

void parse_guidance(const Field& defaults, GuidanceOptions* to) {
  const auto real = [&](const char* key, double* value) {
    if (defaults[key].is_present()) *value = defaults[key].real();
  };
  const auto pair = [&](const char* key, double* first, double* second) {
    if (!defaults[key].is_present()) return;
    const Field both = defaults[key];
    both.array(2, 2);
    *first = both[0].real();
    *second = both[1].real();
  };
  real("guidance_rescale", &to->rescale);
  real("classifier_scale", &to->classifier_scale);
  pair("guidance_interval", &to->interval_lo, &to->interval_hi);
  pair("threshold", &to->threshold_p, &to->threshold_cap);
}

// What x0 is clamped to where that is not the data's range: diffusers' clip_sample_range.
void parse_clip_range(const Field& range, SolverOptions* to) {
  if (!range.is_present()) return;
  range.array(2, 2);
  to->clip_lo = range[0].real();
  to->clip_hi = range[1].real();
}

void parse_defaults(const Field& root, const Sections& sections, ModelSpec* spec) {
  SolverOptions& to = spec->defaults;
  to.clip_lo = spec->data_lo;
  to.clip_hi = spec->data_hi;
  to.clip = spec->role == "image" ? "rederive" : "none";
  const Field defaults = root["defaults"];
  if (defaults.is_present()) {
    if (!sections.exist) {  // the caller's own arguments: a misspelt one must not be ignored
      const auto keys = {"sampler", "steps", "scale", "eta", "clip", "grid", "variance", "compat", "sampler_options",
                         "guidance_rescale", "guidance_interval", "threshold", "classifier_scale", "clip_range"};
      for (const auto& item : defaults.object().items()) {
        if (std::none_of(keys.begin(), keys.end(), [&](const char* key) { return item.key() == key; })) {
          defaults[item.key()].refuse("options among sampler, steps, scale, eta, clip, grid, variance, compat, sampler_options, "
                                      "guidance_rescale, guidance_interval, threshold, classifier_scale, clip_range",
                                      "\"" + item.key() + "\"");
        }
      }
    }
    const auto read = [&](const char* key, std::string* text) {
      if (defaults[key].is_present()) *text = defaults[key].text();
    };
    read("compat", &to.compat);
    if (!to.compat.empty()) to.clip.clear();  // the project's own, unless said
    read("sampler", &to.sampler);
    read("clip", &to.clip);
    read("grid", &to.grid);
    read("variance", &to.variance);
    if (defaults["steps"].is_present()) to.steps = static_cast<int>(defaults["steps"].integer(1, spec->schedule.is_discrete() ? spec->schedule.T() : kMostSteps));
    if (defaults["eta"].is_present()) to.eta = defaults["eta"].real();
    parse_guidance(defaults, &to.guidance);
    parse_clip_range(defaults["clip_range"], &to);
    if (defaults["scale"].is_present()) spec->default_scale = defaults["scale"].real();
    if (spec->num_classes == 0 && spec->conditions.empty() && spec->default_scale != 1) {
      defaults["scale"].refuse("1 without conditions: there is nothing to guide");
    }
  }
  try {
    parse_sampler_options(defaults.is_present() ? defaults["sampler_options"] : defaults, &to);
    compile_table(spec->schedule, spec->prediction, to);
    spec->resolved = resolve(spec->schedule, spec->prediction, to);
  } catch (const Error& e) {
    const std::string what = e.what();
    throw Error(sections.code(), (what.compare(0, 9, "defaults.") == 0 ? "" : "defaults: ") + what);
  }
}

ModelSpec parse(const std::string& text, const Sections& sections, const std::vector<double>* alpha_bar) {
  const json document = parse_json(text, sections.code(), "manifest");
  try {
    const Field root(&document, "", sections.code());
    if (!document.is_object()) throw Error(sections.code(), "manifest: expected an object, got " + root.found());
    ModelSpec spec;
    if (sections.exist) parse_versions(root);
    if (root["name"].is_present()) spec.name = root["name"].text();
    parse_sample(root["sample"], &spec);
    parse_classes(root, sections, &spec);
    parse_conditions(root["conditions"], sections, &spec);
    parse_prediction(root, sections.exist, &spec.prediction);
    if (root["classifier"].is_present()) spec.has_classifier = root["classifier"].boolean();
    if (spec.has_classifier && spec.num_classes == 0) root["classifier"].refuse("false in a model without classes");
    parse_schedule(root, sections, alpha_bar, &spec.schedule);
    if (sections.exist) {
      parse_networks(root, sections, &spec);
      parse_self_test(root["self_test"], sections, &spec);
    } else {
      spec.network.kind = "callable";
    }
    parse_defaults(root, sections, &spec);
    return spec;
  } catch (const std::bad_alloc&) {
    throw Error(sections.code(), "manifest: expected memory for it, got none");
  } catch (const json::exception& e) {  // a read that the checks above did not foresee
    throw Error(Code::kInternal, std::string("manifest: ") + e.what());
  }
}

}  // namespace

json parse_json(const std::string& text, Code code, const std::string& what) {
  if (text.empty() || text.size() > kMaxManifestBytes) {
    throw Error(code, what + ": expected 1 to " + std::to_string(kMaxManifestBytes) + " bytes of JSON, got " +
                          std::to_string(text.size()));
  }
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) {
        throw Error(code, what + ": expected JSON nested at most " + std::to_string(kMaxJsonDepth) + " deep, got more");
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  const auto printable = [](std::string words) {
    std::replace_if(words.begin(), words.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
    return words.substr(0, 300);
  };
  std::vector<std::set<std::string>> keys;  // of the objects now open: readers differ in which of two equal keys counts
  std::string duplicate;
  bool is_unique = true;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second && is_unique) {
      is_unique = false;
      duplicate = parsed.get<std::string>();
    }
    return true;
  };
  json document;
  try {
    document = json::parse(text, watch);
  } catch (const std::exception& e) {
    throw Error(code, what + ": expected JSON in UTF-8, got " + printable(e.what()));
  }
  if (!is_unique) throw Error(code, what + ": expected each key once in an object, got \"" + printable(duplicate) + "\" twice");
  return document;
}

size_t ModelSpec::elements() const {
  size_t product = 1;
  for (int64_t dim : shape) product *= static_cast<size_t>(dim);
  return product;
}

ModelSpec parse_manifest(const std::string& manifest_json, const Plan* plan, const std::vector<double>* alpha_bar) {
  Sections sections;
  if (plan != nullptr) {
    sections.exist = true;
    for (const SectionInfo& info : plan->sections()) sections.bytes[info.name] = info.bytes;
    sections.read = [plan](const std::string& name) { return plan->read(name); };
  } else if (alpha_bar == nullptr) {
    throw Error(Code::kOption, "schedule: expected alpha_bar beside a manifest without a plan, got none");
  }
  return parse(manifest_json, sections, alpha_bar);
}

ModelSpec check_manifest(const std::string& manifest_json,
                         const std::vector<std::pair<std::string, std::vector<uint8_t>>>& sections) {
  Sections source;
  source.exist = true;
  for (const auto& section : sections) source.bytes[section.first] = section.second.size();
  source.read = [&sections](const std::string& name) {
    for (const auto& section : sections) {
      if (section.first == name) return section.second;
    }
    return std::vector<uint8_t>();
  };
  return parse(manifest_json, source, nullptr);
}

}  // namespace ddpm_rt
