#include <algorithm>

#include "spec_parts.h"

namespace ddpm_rt {
namespace {

constexpr int64_t kMaxRowsWidth = int64_t{1} << 24;
constexpr int64_t kMaxComponents = 1 << 16;
constexpr int64_t kMaxSelfTests = 1 << 16;

void parse_ports(const Field& field, const std::vector<std::string>& roles, std::map<std::string, std::string>* ports) {
  for (const auto& item : field.object().items()) {
    if (std::find(roles.begin(), roles.end(), item.key()) == roles.end()) {
      std::string list;
      for (const std::string& r : roles) list += list.empty() ? r : ", " + r;
      field[item.key()].refuse("roles among " + list, "\"" + item.key() + "\"");
    }
    (*ports)[item.key()] = field[item.key()].text();
    if (ports->at(item.key()).empty()) field[item.key()].refuse("the name of a tensor");
  }
}

// Slices of channels are not chosen but checked: they must say what this version does.
void require_slice(const Field& slice, int64_t first, int64_t end) {
  if (!slice.is_present()) slice.refuse("[" + std::to_string(first) + ", " + std::to_string(end) + "]", "null");
  slice.array(2, 2);
  slice[0].integer(first, first);
  slice[1].integer(end, end);
}

void parse_denoiser(const Field& network, const Sections& sections, ModelSpec* spec) {
  NetworkSpec& to = spec->network;
  to.kind = network["kind"].one_of({"onnx", "gaussian_mixture", "tensorrt"});
  if (to.kind != "onnx" && !spec->conditions.empty()) network["kind"].refuse("onnx with conditions beside label");
  if (to.kind == "gaussian_mixture") {
    if (spec->output_elements() != spec->elements()) {
      network["kind"].refuse("onnx with a learned variance or a classifier");
    }
    const uint64_t K = static_cast<uint64_t>(network["K"].integer(1, kMaxComponents));
    to.components = K;
    to.arrays["means"] = section_name(network["means"], sections, K * spec->elements() * 8);
    to.arrays["stds"] = section_name(network["stds"], sections, K * 8);
    to.arrays["weights"] = section_name(network["weights"], sections, K * 8);
    if (spec->num_classes != 0 && spec->num_classes != static_cast<int64_t>(K)) {
      network["K"].refuse("conditions.label.classes = " + std::to_string(spec->num_classes));
    }
    if (spec->has_temb) network["kind"].refuse("\"onnx\" in a stage with temb");
    return;
  }
  to.section = section_name(network["section"], sections);
  std::vector<std::string> roles{"x", "t", "label", "rows"};
  for (const ConditionInput& c : spec->condition_inputs()) roles.push_back(c.role);
  parse_ports(network["inputs"], roles, &to.inputs);
  parse_ports(network["outputs"], {"eps"}, &to.outputs);
  const auto takes = [&](const char* role) { return to.inputs.count(role) > 0; };
  if (!takes("x")) network["inputs"]["x"].refuse("the name of a tensor");
  for (const ConditionInput& c : spec->condition_inputs()) {
    if (!takes(c.role.c_str())) network["inputs"][c.role].refuse("the name of a tensor, as there is a condition of it");
  }
  if (to.outputs.empty()) network["outputs"]["eps"].refuse("the name of a tensor");
  if (takes("rows") != spec->has_temb || takes("t") == spec->has_temb || (takes("label") && spec->has_temb)) {
    network["inputs"].refuse(spec->has_temb ? "x and rows in a stage with temb" : "x, t and perhaps label without temb",
                             "others");
  }
  const Field slices = network["output_slices"], guided = network["guided_channels"];
  if (slices.is_present()) {
    const int64_t channels = spec->shape[0];
    const bool is_learned = spec->prediction.variance != "fixed";
    if (slices["mean"].is_present()) require_slice(slices["mean"], 0, channels);
    if (is_learned) {
      require_slice(slices["variance"], channels, 2 * channels);
    } else if (slices["variance"].is_present()) {
      slices["variance"].refuse("null with variance fixed");
    }
    if (spec->has_classifier) require_slice(slices["gradient"], channels * (1 + is_learned), channels * (2 + is_learned));
  }
  if (guided.is_present()) require_slice(guided, 0, spec->shape[0]);
}

}  // namespace

std::string section_name(const Field& field, const Sections& sections) {
  const std::string name = field.text();
  if (sections.bytes.count(name) == 0) field.refuse("the name of a section of this plan");
  return name;
}

std::string section_name(const Field& field, const Sections& sections, uint64_t bytes) {
  const std::string name = section_name(field, sections);
  const uint64_t found = sections.bytes.at(name);
  if (found != bytes) {
    field.refuse("a section of " + std::to_string(bytes) + " bytes", "\"" + name + "\" of " + std::to_string(found));
  }
  return name;
}

void parse_networks(const Field& root, const Sections& sections, ModelSpec* spec) {
  const Field stages = root["stages"], networks = root["networks"];
  if (stages.array(0, 1024) != 1) stages.refuse("1 stage: this version runs one", std::to_string(stages.array(0, 1024)));
  const Field stage = stages[0], inputs = stage["inputs"];
  stage["kind"].one_of({"diffusion"});
  const auto is_condition = [&](const std::string& name) {
    return std::any_of(spec->conditions.begin(), spec->conditions.end(), [&](const ConditionSpec& c) { return c.name == name; });
  };
  if (inputs.is_present()) {
    for (const auto& item : inputs.object().items()) {
      const Field source = inputs[item.key()];
      if (item.key() == "x") source.one_of({"state"});
      else if (item.key() == "t") source.one_of({"time"});
      else if (item.key() == "label") source.one_of({"request"});
      else if (is_condition(item.key())) source.one_of({"request"});
      else source.refuse("inputs among x, t, label and the conditions", "\"" + item.key() + "\"");
    }
    if (inputs["label"].is_present() && spec->num_classes == 0) inputs["label"].refuse("none without conditions.label");
  }
  const auto named = [&](const Field& field) {
    const Field network = networks[field.text()];
    if (!network.is_present()) field.refuse("the name of an entry of networks");
    return network;
  };
  spec->has_temb = stage["temb"].is_present();
  parse_denoiser(named(stage["network"]), sections, spec);
  if (spec->has_temb) {
    const Field temb = named(stage["temb"]);
    NetworkSpec& to = spec->temb;
    to.kind = temb["kind"].one_of({"onnx"});
    to.section = section_name(temb["section"], sections);
    parse_ports(temb["inputs"], {"t", "label"}, &to.inputs);
    parse_ports(temb["outputs"], {"rows"}, &to.outputs);
    if (to.inputs.count("t") == 0) temb["inputs"]["t"].refuse("the name of a tensor");
    if (to.outputs.empty()) temb["outputs"]["rows"].refuse("the name of a tensor");
    to.rows_width = spec->network.rows_width = static_cast<size_t>(temb["rows_width"].integer(1, kMaxRowsWidth));
  }
  if (spec->network.kind != "gaussian_mixture") {
    const bool takes_label = spec->network.inputs.count("label") + spec->temb.inputs.count("label") > 0;
    if (takes_label != (spec->num_classes > 0)) {
      networks.refuse(takes_label ? "conditions.label, as a network has the input label"
                                  : "a network with the input label, as there is conditions.label",
                      "none");
    }
  }
}

void parse_self_test(const Field& test, const Sections& sections, ModelSpec* spec) {
  if (!test.is_present()) return;
  SelfTest& to = spec->self_test;
  to.count = test["count"].integer(1, kMaxSelfTests);
  uint64_t floats = spec->elements() + spec->output_elements() + 2;
  for (const ConditionInput& c : spec->condition_inputs()) floats += c.elements();
  const uint64_t bytes = static_cast<uint64_t>(to.count) * floats * 4;
  to.section = section_name(test["section"], sections, bytes);
  for (const auto& item : test["tolerance"].object().items()) {
    const Field tolerance = test["tolerance"][item.key()];
    to.tolerance[item.key()] = tolerance.real();
    if (!(to.tolerance[item.key()] > 0)) tolerance.refuse("a number above 0");
  }
}

}  // namespace ddpm_rt
