#include "bindings_options.h"

#include <pybind11/stl.h>

#include <utility>

namespace {

template <typename T>
std::vector<T> copied(const py::handle& value) {
  const auto array = py::cast<py::array_t<T, py::array::c_style>>(value);
  return {array.data(), array.data() + array.size()};
}

}  // namespace

SampleCall::SampleCall(const py::dict& given) {
  for (const auto& item : given) {
    if (!item.second.is_none()) read(py::cast<std::string>(item.first), item.second);
  }
}

void SampleCall::read(const std::string& name, const py::handle& value) {
  const auto text = [&](const char* field, std::string* to) {
    if (name == field) *to = py::cast<std::string>(value), is_known_ = true;
  };
  const auto number = [&](const char* field, auto* to) {
    if (name == field) *to = py::cast<std::decay_t<decltype(*to)>>(value), is_known_ = true;
  };
  const auto floats = [&](const char* field, const float** to, size_t* elements) {
    if (name != field) return;
    const auto array = py::cast<FloatArray>(value);
    held_.push_back(array);
    *to = array.data();
    *elements = static_cast<size_t>(array.size());
    is_known_ = true;
  };
  is_known_ = false;
  text("sampler", &options.sampler);
  text("clip", &options.clip);
  text("variance", &options.variance);
  text("grid", &options.grid);
  text("sampler_options", &options.sampler_options);
  number("n", &options.n);
  number("steps", &options.steps);
  number("init_sigma", &options.init_sigma);
  number("keep_nonfinite", &options.keep_nonfinite);
  number("scale", &options.scale);
  number("eta", &options.eta);
  number("compat", &options.compat);
  number("seed", &options.seed);
  number("guidance_rescale", &options.guidance_rescale);
  number("classifier_scale", &options.classifier_scale);
  number("guidance_interval", &options.guidance_interval);
  number("threshold", &options.threshold);
  floats("latents", &options.latents, &options.latent_elements);
  floats("x_init", &options.x_init, &options.x_init_elements);
  floats("image", &options.image, &options.image_elements);
  floats("mask", &options.mask, &options.mask_elements);
  number("strength", &options.strength);
  number("jump_length", &options.jump_length);
  number("resamples", &options.resamples);
  number("invert", &options.invert);
  number("x0_every", &options.x0_every);
  if (name == "labels") options.labels = copied<int64_t>(value), is_known_ = true;
  if (name == "negative") options.negative = copied<int64_t>(value), is_known_ = true;
  if (name == "seeds") options.seeds = copied<uint64_t>(value), is_known_ = true;
  if (name == "conditions") read_conditions(value, &options.conditions), is_known_ = true;
  if (name == "negative_conditions") read_conditions(value, &options.negative_conditions), is_known_ = true;
  if (name == "rows") {
    table_ = py::cast<std::string>(value);
    options.rows = table_.data();
    options.row_count = table_.size() / kRowBytes;
    is_known_ = true;
  }
  if (!is_known_) throw ddpm_rt::Exception(DDPM_RT_INTERNAL_ERROR, name + ": expected an option that the extension reads");
}

// A list of (name, values of all arrays side by side, their count, their lengths).
void SampleCall::read_conditions(const py::handle& value, std::vector<const ddpm_rt_condition*>* to) {
  for (const auto& [name, array, count, lengths] :
       py::cast<std::vector<std::tuple<std::string, FloatArray, size_t, std::vector<int64_t>>>>(value)) {
    Condition& kept = conditions_.emplace_back(Condition{name, array, lengths, {}});
    ddpm_rt_condition_init(&kept.value, sizeof kept.value);
    kept.value.name = kept.name.c_str();
    kept.value.data = array.data();
    kept.value.elements = static_cast<size_t>(array.size());
    kept.value.count = count;
    kept.value.lengths = kept.lengths.empty() ? nullptr : kept.lengths.data();
    to->push_back(&kept.value);
  }
}
