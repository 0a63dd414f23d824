// The manifest's conditions beside the label: read as written, sorted by name, refused by the field's name.
#include <cstring>
#include <nlohmann/json.hpp>

#include "expect_error.h"
#include "spec.h"

using namespace ddpm_rt;
using nlohmann::json;

namespace {

constexpr size_t kWidth = 3 + (6 * 4 + 6) + 1 + 2 * 4 * 4;  // style, text and its mask, level, low

json good_manifest() {
  return json::parse(R"({
    "format": 1, "row_version": 1, "rng_version": 1,
    "networks": {"unet": {"kind": "onnx", "section": "unet.onnx",
                          "inputs": {"x": "x", "t": "t", "style": "s", "text": "e", "text_mask": "m", "level": "a", "low": "l"},
                          "outputs": {"eps": "eps"}}},
    "stages": [{"kind": "diffusion", "network": "unet",
                "inputs": {"x": "state", "t": "time", "style": "request", "text": "request"}}],
    "conditions": {
      "style": {"dtype": "float32", "shape": [3], "max_length": null, "mask": false, "role": "vector", "null": "zero"},
      "text": {"shape": [4], "max_length": 6, "mask": true, "role": "text"},
      "level": {"null": "same"},
      "low": {"shape": [2, 4, 4], "role": "map", "null": "zero"}
    },
    "sample": {"shape": [8]},
    "schedule": {"section": "alpha_bar", "T": 10},
    "prediction": "eps",
    "defaults": {"scale": 4},
    "self_test": {"section": "self_test", "count": 2, "tolerance": {"fp32": 1e-4}}
  })");
}

ModelSpec parse(const json& manifest, size_t width = kWidth) {
  const std::vector<double> alpha_bar = make_schedule("linear", 10).alpha_bar;
  std::vector<uint8_t> schedule(80);
  std::memcpy(schedule.data(), alpha_bar.data(), schedule.size());
  return check_manifest(manifest.dump(), {{"alpha_bar", schedule},
                                          {"unet.onnx", {1}},
                                          {"self_test", std::vector<uint8_t>(2 * (2 * 8 + 2 + width) * 4)}});
}

void test_good() {
  const ModelSpec s = parse(good_manifest());
  CHECK(s.conditions.size() == 4 && s.num_classes == 0 && s.default_scale == 4);
  CHECK(s.conditions[0].name == "level" && s.conditions[0].shape.empty() && s.conditions[0].null == ConditionSpec::Null::kSame);
  CHECK(s.conditions[1].name == "low" && s.conditions[1].role == "map" && s.conditions[1].null == ConditionSpec::Null::kZero);
  CHECK(s.conditions[2].name == "style" && s.conditions[2].max_length == 0 && s.conditions[2].entry_elements() == 3);
  CHECK(s.conditions[3].name == "text" && s.conditions[3].max_length == 6 && s.conditions[3].has_mask);
  CHECK(s.conditions[3].null == ConditionSpec::Null::kNone && s.conditions[3].entry_elements() == 4);

  const std::vector<ConditionInput> inputs = s.condition_inputs();
  size_t width = 0;
  std::string roles;
  for (const ConditionInput& input : inputs) {
    width += input.elements();
    roles += input.role + " ";
    CHECK(input.is_mask == (input.role == "text_mask"));
  }
  CHECK(width == kWidth && roles == "level low style text text_mask ");
  CHECK((inputs[3].row == std::vector<int64_t>{6, 4}) && (inputs[4].row == std::vector<int64_t>{6}));
}

void refuse(const std::string& pointer, const json& value, const std::string& part) {
  json m = good_manifest();
  m[json::json_pointer(pointer)] = value;
  CHECK_ERROR(Code::kPlan, parse(m), part);
}

void test_refusals() {
  refuse("/conditions/style/dtype", "int64", "conditions.style.dtype");
  refuse("/conditions/style/shape", {0}, "conditions.style.shape[0]");
  refuse("/conditions/style/shape", 3, "conditions.style.shape");
  refuse("/conditions/style/shape", {1, 1, 1, 1, 1}, "conditions.style.shape");
  refuse("/conditions/style/shape", {1 << 20, 1 << 20}, "2^31");
  refuse("/conditions/style/role", "smell", "\"smell\"");
  refuse("/conditions/style/null", 0, "conditions.style.null");
  refuse("/conditions/style/null", "nothing", "\"nothing\"");
  refuse("/conditions/style/mask", true, "conditions.style.mask");
  refuse("/conditions/text/max_length", 0, "conditions.text.max_length");
  refuse("/conditions/text/max_length", int64_t{1} << 40, "conditions.text.max_length");
  refuse("/conditions/text/mask", 1, "conditions.text.mask");
  refuse("/conditions/x", json::object(), "\"x\"");
  refuse("/conditions/rows", json::object(), "\"rows\"");
  refuse("/conditions/9lives", json::object(), "conditions.9lives");
  refuse("/conditions/a b", json::object(), "conditions.a b");
  refuse("/conditions/text_mask", {{"shape", {6}}}, "conditions.text_mask");
  refuse("/conditions/colour", {{"shape", {3}}}, "networks.unet.inputs.colour");
  refuse("/networks/unet/inputs/text_mask", nullptr, "networks.unet.inputs.text_mask");
  refuse("/networks/unet/inputs/colour", "c", "\"colour\"");
  refuse("/stages/0/inputs/colour", "request", "\"colour\"");
  refuse("/stages/0/inputs/style", "state", "stages[0].inputs.style");
  refuse("/networks/unet/kind", "tensorrt", "conditions");
  json many = good_manifest();
  for (int i = 0; i < 20; ++i) many["conditions"]["c" + std::to_string(i)] = json::object();
  CHECK_ERROR(Code::kPlan, parse(many), "at most 16");
  CHECK_ERROR(Code::kPlan, parse(good_manifest(), kWidth - 1), "self_test.section");
}

void test_a_function_takes_none() {
  const json m = {{"sample", {{"shape", {3}}}}, {"conditions", {{"style", {{"shape", {3}}}}}}};
  const std::vector<double> alpha_bar = {0.9, 0.5};
  CHECK_ERROR(Code::kOption, parse_manifest(m.dump(), nullptr, &alpha_bar), "conditions.style");
}

}  // namespace

int main() {
  test_good();
  test_refusals();
  test_a_function_takes_none();
  return finish();
}
