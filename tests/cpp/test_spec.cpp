// The manifest's parser: the whole of version 1 is read, and each departure from it is refused by the field's name.
#include "spec.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "expect_error.h"

using namespace ddpm_rt;
using nlohmann::json;

namespace {

using Sections = std::vector<std::pair<std::string, std::vector<uint8_t>>>;
constexpr int kT = 1000;

std::vector<uint8_t> bytes_of(const std::vector<double>& values) {
  std::vector<uint8_t> data(values.size() * 8);
  std::memcpy(data.data(), values.data(), data.size());
  return data;
}

Sections good_sections() {
  const size_t self_test = 4 * (2 * 784 + 2) * 4;
  return {{"alpha_bar", bytes_of(make_schedule("linear", kT).alpha_bar)},
          {"temb.onnx", {1, 2, 3}},
          {"unet.onnx", {4, 5}},
          {"self_test", std::vector<uint8_t>(self_test)},
          {"means", std::vector<uint8_t>(2 * 784 * 8)},
          {"stds", std::vector<uint8_t>(16)},
          {"weights", std::vector<uint8_t>(16)}};
}

json good_manifest() {
  return json::parse(R"({
    "format": 1, "producer": "ddpm_rt 0.1.0", "name": "digits", "requires": [], "row_version": 1, "rng_version": 1,
    "networks": {
      "temb": {"kind": "onnx", "section": "temb.onnx", "inputs": {"t": "time", "label": "y"}, "outputs": {"rows": "r"},
               "rows_width": 1040},
      "unet": {"kind": "onnx", "section": "unet.onnx", "inputs": {"x": "x", "rows": "rows"}, "outputs": {"eps": "eps"},
               "output_slices": {"mean": [0, 1], "variance": null}, "guided_channels": [0, 1]}
    },
    "stages": [{"kind": "diffusion", "network": "unet", "temb": "temb",
                "inputs": {"x": "state", "t": "time", "label": "request"}}],
    "conditions": {"label": {"dtype": "int64", "shape": [], "max_length": null, "mask": false, "role": "class",
                             "classes": 10, "null": 10}},
    "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    "sample": {"shape": [1, 28, 28], "role": "image", "range": [-1, 1], "uint8": "round"},
    "schedule": {"section": "alpha_bar", "T": 1000, "name": "linear"},
    "prediction": "eps", "variance": "fixed", "time": {"type": "index", "scale": 1.0},
    "defaults": {"sampler": "ddim", "steps": 50, "scale": 3.0, "eta": 0.0, "clip": "rederive", "grid": "leading",
                 "variance": "fixed_small"},
    "self_test": {"section": "self_test", "count": 4, "tolerance": {"fp32": 2e-4, "fp16": 2e-2, "bf16": 1e-1}},
    "sources": {"checkpoint_sha256": "..."}, "licence": "...", "card": "free text", "of a later minor": {"x": [1]}
  })");
}

// An unsplit, unconditional network.
json plain_manifest() {
  json m = good_manifest();
  m.erase("conditions");
  m.erase("class_names");
  m["networks"] = json::parse(
      R"({"unet": {"kind": "onnx", "section": "unet.onnx", "inputs": {"x": "x", "t": "t"}, "outputs": {"eps": "e"}}})");
  m["stages"] = json::parse(R"([{"kind": "diffusion", "network": "unet"}])");
  m["defaults"] = {{"sampler", "ddpm"}};
  return m;
}

json mixture_manifest() {
  json m = good_manifest();
  m["networks"] = json::parse(
      R"({"mix": {"kind": "gaussian_mixture", "means": "means", "stds": "stds", "weights": "weights", "K": 2}})");
  m["stages"] = json::parse(R"([{"kind": "diffusion", "network": "mix"}])");
  m["conditions"]["label"]["classes"] = m["conditions"]["label"]["null"] = 2;
  m["class_names"] = json::array();
  return m;
}

void test_good() {
  const ModelSpec s = check_manifest(good_manifest().dump(), good_sections());
  CHECK((s.shape == std::vector<int64_t>{1, 28, 28}) && s.elements() == 784 && s.role == "image");
  CHECK(s.data_lo == -1 && s.data_hi == 1 && !s.truncate_uint8 && s.name == "digits");
  CHECK(s.schedule.T() == kT && s.schedule.alpha_bar == make_schedule("linear", kT).alpha_bar);
  CHECK(s.prediction.type == "eps" && s.prediction.variance == "fixed" && s.prediction.time_scale == 1);
  CHECK(s.num_classes == 10 && s.class_names.size() == 10 && s.class_names[7] == "7");
  CHECK(s.defaults.sampler == "ddim" && s.defaults.steps == 50 && s.default_scale == 3 && s.defaults.eta == 0);
  CHECK(s.defaults.clip == "rederive" && s.defaults.grid == "leading" && s.defaults.variance == "fixed_small");
  CHECK(s.network.kind == "onnx" && s.network.section == "unet.onnx" && s.network.inputs.at("rows") == "rows");
  CHECK(s.has_temb && s.temb.section == "temb.onnx" && s.temb.inputs.at("t") == "time" && s.temb.outputs.at("rows") == "r");
  CHECK(s.temb.rows_width == 1040 && s.network.rows_width == 1040);
  CHECK(s.self_test.section == "self_test" && s.self_test.count == 4 && s.self_test.tolerance.at("bf16") == 0.1);

  const ModelSpec p = check_manifest(plain_manifest().dump(), good_sections());
  CHECK(p.num_classes == 0 && !p.has_temb && p.default_scale == 1 && p.resolved.steps == kT && p.network.rows_width == 0);

  const ModelSpec g = check_manifest(mixture_manifest().dump(), good_sections());
  CHECK(g.network.kind == "gaussian_mixture" && g.network.components == 2 && g.network.arrays.at("stds") == "stds");

  json m = plain_manifest();
  m["sample"] = {{"shape", {3}}, {"range", {0, 4}}, {"uint8", "truncate"}};
  m.erase("self_test");
  const ModelSpec vector = check_manifest(m.dump(), good_sections());
  CHECK(vector.role == "vector" && vector.truncate_uint8 && vector.defaults.clip == "none");
  CHECK(vector.defaults.clip_lo == 0 && vector.defaults.clip_hi == 4);

  char folder[] = "/tmp/ddpm_rt_test_spec_XXXXXX";
  if (mkdtemp(folder) == nullptr) std::abort();
  const std::string path = std::string(folder) + "/a.plan";
  write_plan(path, good_manifest().dump(), good_sections());
  const auto plan = Plan::open(path);
  CHECK(parse_manifest(plan->manifest(), plan.get(), nullptr).schedule.alpha_bar == s.schedule.alpha_bar);
  const std::vector<double> other = make_schedule("cosine", 100).alpha_bar;
  CHECK(parse_manifest(plan->manifest(), plan.get(), &other).schedule.alpha_bar == other);
  unlink(path.c_str());
  rmdir(folder);
}

void refuse(const json& base, const std::string& pointer, const json& value, const std::string& part) {
  json m = base;
  m[json::json_pointer(pointer)] = value;
  const std::string message = message_of(Code::kPlan, [&] { check_manifest(m.dump(), good_sections()); });
  const bool named = contains(message, part) && contains(message, "expected") && contains(message, "got");
  if (!named) std::printf("%s = %s: %s\n", pointer.c_str(), value.dump().c_str(), message.c_str());
  CHECK(named);
}

void test_refusals() {
  const json good = good_manifest();
  const std::vector<json> not_integers = {1.5, "1", true, json::array(), json::object(), nullptr, -1, 0, 1e300,
                                          uint64_t{1} << 63, ~uint64_t{0}, INT64_MIN, INT64_MAX};
  for (const char* at : {"/sample/shape/1", "/schedule/T", "/conditions/label/classes", "/networks/temb/rows_width",
                         "/self_test/count", "/format", "/row_version", "/rng_version"}) {
    std::string field = std::string(at).substr(1);
    std::replace(field.begin(), field.end(), '/', '.');
    if (field == "sample.shape.1") field = "sample.shape";
    for (const json& bad : not_integers) refuse(good, at, bad, field);
  }
  for (const char* at : {"/networks", "/stages", "/sample", "/sample/shape", "/schedule", "/schedule/section",
                         "/prediction", "/networks/unet", "/networks/unet/section", "/networks/unet/inputs",
                         "/networks/unet/outputs/eps", "/stages/0/kind", "/stages/0/network"}) {
    std::string field = std::string(at).substr(1);
    std::replace(field.begin(), field.end(), '/', '.');
    for (const json& bad : {json(nullptr), json(3), json("?"), json({{"a", 1}}), json::array()}) {
      if (field == "networks.unet.outputs.eps" && bad.is_string()) continue;  // any tensor name will do
      refuse(good, at, bad, field == "networks.unet" || field == "stages.0.network" || field == "stages.0.kind" ||
                                    field == "networks"
                                ? ""
                                : field);
    }
  }
  refuse(good, "/format", 2, "format: expected 1, got 2");
  refuse(good, "/row_version", 2, "row_version: expected 1, got 2");
  refuse(good, "/rng_version", 2, "rng_version: expected 1, got 2");
  refuse(good, "/requires", {"tokens"}, "requires[0]: expected no entries");
  refuse(good, "/requires", {"tokens"}, "\"tokens\"");
  refuse(good, "/requires", "tokens", "requires");
  refuse(good, "/stages", json::array(), "stages: expected 1 stage");
  refuse(good, "/stages", {good["stages"][0], good["stages"][0]}, "got 2");
  refuse(good, "/stages/0/kind", "map", "stages[0].kind: expected \"diffusion\", got \"map\"");
  refuse(good, "/stages/0/network", "vae", "stages[0].network");
  refuse(good, "/stages/0/temb", nullptr, "without temb");
  refuse(good, "/stages/0/inputs/text", "request", "\"text\"");
  refuse(good, "/stages/0/inputs/x", "earlier", "stages[0].inputs.x");
  refuse(good, "/networks/unet/kind", "coreml", "\"coreml\"");
  refuse(good, "/networks/unet/kind", "callable", "\"callable\"");
  refuse(good, "/networks/unet/section", "missing", "\"missing\"");
  refuse(good, "/networks/unet/inputs/mask", "m", "\"mask\"");
  refuse(good, "/networks/unet/inputs/t", "t", "x and rows");
  refuse(good, "/networks/unet/inputs/x", "", "networks.unet.inputs.x");
  refuse(good, "/networks/unet/output_slices/mean", {0, 3}, "output_slices.mean[1]");
  refuse(good, "/networks/unet/output_slices/variance", {1, 2}, "output_slices.variance");
  refuse(good, "/networks/unet/guided_channels", {0, 3}, "guided_channels");
  refuse(good, "/networks/temb/inputs", {{"label", "y"}}, "networks.temb.inputs.t");
  refuse(good, "/networks/temb/inputs", {{"t", "t"}}, "input label");
  refuse(good, "/networks/temb/rows_width", (1 << 24) + 1, "rows_width");
  refuse(plain_manifest(), "/networks/unet/inputs/label", "y", "conditions.label");
  refuse(plain_manifest(), "/stages/0/inputs", {{"label", "request"}}, "conditions.label");
  refuse(plain_manifest(), "/defaults/scale", 3, "nothing to guide");
  refuse(plain_manifest(), "/class_names", {"a"}, "class_names");
  refuse(good, "/conditions/text", {{"dtype", "float32"}}, "networks.unet.inputs.text");
  refuse(good, "/conditions/label/dtype", "int32", "int32");
  refuse(good, "/conditions/label/role", "tokens", "\"tokens\"");
  refuse(good, "/conditions/label/mask", true, "mask");
  refuse(good, "/conditions/label/null", 0, "conditions.label.null: expected 10, got 0");
  refuse(good, "/class_names", {"a", "b"}, "class_names");
  refuse(good, "/class_names/3", 3, "class_names[3]");
  refuse(good, "/sample/shape", json::array(), "sample.shape");
  refuse(good, "/sample/shape", {1, 1, 1, 1, 1}, "sample.shape");
  refuse(good, "/sample/shape", {65536, 65536, 1}, "2^31");
  refuse(good, "/sample/shape", {1 << 16, 1 << 15, 2}, "2^31");
  refuse(good, "/sample/shape", {784}, "[C, H, W]");
  refuse(good, "/sample/role", "video", "\"video\"");
  refuse(good, "/sample/range", {1, -1}, "sample.range");
  refuse(good, "/sample/range", {1, 1}, "sample.range");
  refuse(good, "/sample/range", {0, 1e39}, "sample.range[1]");
  refuse(good, "/sample/range", {0}, "sample.range");
  refuse(good, "/sample/uint8", "floor", "sample.uint8");
  refuse(good, "/schedule/T", 999, "section of 7992 bytes");
  refuse(good, "/schedule/T", (1 << 16) + 1, "schedule.T");
  refuse(good, "/prediction", "guess", "\"guess\"");
  refuse(good, "/variance", "learned_range", "output_slices.variance");
  refuse(good, "/variance", "guessed", "\"guessed\"");
  refuse(good, "/classifier", 1, "classifier");
  refuse(good, "/classifier", true, "output_slices.gradient");
  refuse(good, "/defaults/guidance_rescale", 2, "guidance_rescale");
  refuse(good, "/defaults/threshold", {0.9}, "threshold");
  refuse(good, "/time/type", "clock", "\"clock\"");
  for (const json& bad : {json(0), json(-1), json("1"), json(1e39)}) refuse(good, "/time/scale", bad, "time.scale");
  for (const json& bad : {json(0), json(1001), json(1.5), json("50")}) refuse(good, "/defaults/steps", bad, "defaults.steps");
  refuse(good, "/defaults/sampler", "plms", "defaults: sampler");
  refuse(good, "/defaults/clip", "both", "defaults: clip");
  refuse(good, "/defaults/eta", 2, "defaults: eta");
  refuse(good, "/defaults/eta", "0", "defaults.eta");
  refuse(good, "/defaults/variance", "fixed_large", "only ddpm");
  refuse(good, "/defaults/grid", 3, "defaults.grid");
  refuse(good, "/self_test/count", 5, "self_test.section");
  refuse(good, "/self_test/tolerance/fp32", 0, "self_test.tolerance.fp32");
  const json mixture = mixture_manifest();
  refuse(mixture, "/networks/mix/K", 3, "networks.mix.means: expected a section of 18816 bytes");
  refuse(mixture, "/networks/mix/stds", "means", "networks.mix.stds");
  refuse(mixture, "/conditions/label", {{"role", "class"}, {"classes", 3}, {"null", 3}}, "networks.mix.K");
}

void test_json() {
  const Sections sections = good_sections();
  const std::string text = good_manifest().dump();
  for (size_t n = 0; n < text.size(); ++n) {
    CHECK_ERROR(Code::kPlan, check_manifest(text.substr(0, n), sections), "manifest");
  }
  for (const std::string& bad :
       {std::string("[]"), std::string("3"), std::string("null"), text + "x", "\xff" + text, std::string("{\"a\": \"\xc3\"}"),
        std::string("{\"a\": 1e999}"), std::string("{\"a\": NaN}"), std::string(kMaxManifestBytes + 1, ' ')}) {
    const std::string message = message_of(Code::kPlan, [&] { check_manifest(bad, sections); });
    CHECK(contains(message, "manifest: expected"));
    CHECK(std::all_of(message.begin(), message.end(), [](char c) { return c >= 0x20 && c <= 0x7e; }));
  }
  const auto nested = [&](size_t depth) {
    json m = good_manifest();
    m["later"] = json::parse(std::string(depth, '[') + "\"[[[[\\\"[\"" + std::string(depth, ']'));
    return m.dump();
  };
  check_manifest(nested(63), sections);
  CHECK_ERROR(Code::kPlan, check_manifest(nested(64), sections), "nested");
  CHECK_ERROR(Code::kPlan, check_manifest("{\"prediction\": \"v\", " + text.substr(1), sections), "\"prediction\" twice");
  std::string twice = text;
  twice.insert(twice.find("\"steps\":"), "\"steps\": 7, ");
  CHECK_ERROR(Code::kPlan, check_manifest(twice, sections), "\"steps\" twice");
  CHECK_ERROR(Code::kPlan, check_manifest(std::string(kMaxManifestBytes, '['), sections), "nested");
  for (const double bad : {std::nan(""), 1.5, -0.5, 0.9999}) {  // the last: above its neighbour
    Sections damaged = sections;
    std::memcpy(damaged[0].second.data() + 8 * 500, &bad, 8);
    CHECK_ERROR(Code::kPlan, check_manifest(text, damaged), "schedule: alpha_bar[500]");
  }
}

void test_callable() {
  const std::vector<double> alpha_bar = make_schedule("cosine", 20).alpha_bar;
  const auto parse = [&](const json& m) { return parse_manifest(m.dump(), nullptr, &alpha_bar); };
  const json least = {{"sample", {{"shape", {3, 8, 8}}}}};
  const ModelSpec s = parse(least);
  CHECK(s.network.kind == "callable" && s.num_classes == 0 && s.schedule.alpha_bar == alpha_bar);
  CHECK(s.defaults.sampler == "ddim" && s.resolved.steps == 20 && s.prediction.type == "eps" && s.role == "image");
  json m = least;
  m["num_classes"] = 4;
  m["prediction"] = "v";
  m["defaults"] = {{"sampler", "ddpm"}, {"scale", 2.5}};
  CHECK(parse(m).num_classes == 4 && parse(m).default_scale == 2.5 && parse(m).resolved.steps == 20);
  m["class_names"] = {"a", "b"};
  CHECK_ERROR(Code::kOption, parse(m), "class_names");
  m["num_classes"] = nullptr;
  CHECK(parse(m).num_classes == 2 && parse(m).class_names[1] == "b");
  CHECK_ERROR(Code::kOption, parse({{"sample", {{"shape", {0, 3}}}}}), "sample.shape[0]");
  CHECK_ERROR(Code::kOption, parse({{"sample", {{"shape", {3}}}}, {"defaults", {{"stepz", 3}}}}), "\"stepz\"");
  CHECK_ERROR(Code::kOption, parse(json::object()), "sample");
  CHECK_ERROR(Code::kOption, parse_manifest(least.dump(), nullptr, nullptr), "alpha_bar");
  const std::vector<double> rising = {0.5, 0.6}, none;
  CHECK_ERROR(Code::kOption, parse_manifest(least.dump(), nullptr, &rising), "alpha_bar[1]");
  CHECK_ERROR(Code::kOption, parse_manifest(least.dump(), nullptr, &none), "schedule");
}

}  // namespace

int main() {
  test_good();
  test_refusals();
  test_json();
  test_callable();
  return finish();
}
