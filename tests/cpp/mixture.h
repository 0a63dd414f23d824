// Plans of Gaussian mixtures for the tests of the loop, and callables, whose samples are known in closed form.
#ifndef DDPM_RT_TESTS_MIXTURE_H_
#define DDPM_RT_TESTS_MIXTURE_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "ddpm_rt/ddpm_rt.h"

struct Mixture {
  std::vector<int64_t> shape;
  std::vector<double> means, stds, weights;  // [K, N], [K], [K]
  bool conditional = false;
  std::string role = "vector";
  std::string defaults = R"({"sampler": "ddim", "steps": 10, "scale": 1.0, "clip": "none"})";
  double time_scale = 1;
  std::string self_test;  // JSON, with section "self_test"
  std::vector<float> self_test_data;
};

inline std::string list_of(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

inline std::string manifest_of(const Mixture& m) {
  const std::string K = std::to_string(m.stds.size());
  std::string text = R"({"format": 1, "row_version": 1, "rng_version": 1, "requires": [], "name": "mixture",
    "networks": {"unet": {"kind": "gaussian_mixture", "means": "means", "stds": "stds", "weights": "weights", "K": )" + K + R"(}},
    "stages": [{"kind": "diffusion", "network": "unet"}],
    "sample": {"shape": )" + list_of(m.shape) + R"(, "role": ")" + m.role + R"(", "range": [-1, 1], "uint8": "round"},
    "schedule": {"section": "alpha_bar", "T": 1000, "name": "linear"},
    "prediction": "eps", "variance": "fixed", "time": {"type": "index", "scale": )" + std::to_string(m.time_scale) + R"(},)";
  if (m.conditional) {
    text += R"("conditions": {"label": {"dtype": "int64", "shape": [], "role": "class", "classes": )" + K + R"(, "null": )" + K +
            "}},";
  }
  if (!m.self_test.empty()) text += R"("self_test": )" + m.self_test + ",";
  return text + R"("defaults": )" + m.defaults + "}";
}

template <typename T>
inline ddpm_rt_status add_section(ddpm_rt_plan_writer* writer, const char* name, const std::vector<T>& values) {
  return ddpm_rt_plan_writer_add(writer, name, values.data(), values.size() * sizeof(T));
}

inline ddpm_rt_status write_mixture(const Mixture& m, const std::string& path) {
  std::vector<double> alpha_bar(1000);
  ddpm_rt_status status = ddpm_rt_alpha_bar("linear", 1000, alpha_bar.data());
  ddpm_rt_plan_writer* writer = nullptr;
  if (status == DDPM_RT_OK) status = ddpm_rt_plan_writer_create(&writer);
  if (status == DDPM_RT_OK) status = add_section(writer, "alpha_bar", alpha_bar);
  if (status == DDPM_RT_OK) status = add_section(writer, "means", m.means);
  if (status == DDPM_RT_OK) status = add_section(writer, "stds", m.stds);
  if (status == DDPM_RT_OK) status = add_section(writer, "weights", m.weights);
  if (status == DDPM_RT_OK && !m.self_test.empty()) status = add_section(writer, "self_test", m.self_test_data);
  if (status == DDPM_RT_OK) status = ddpm_rt_plan_writer_finish(writer, manifest_of(m).c_str(), path.c_str());
  ddpm_rt_plan_writer_release(writer);
  return status;
}

#endif  // DDPM_RT_TESTS_MIXTURE_H_
