// noise, rows, step, cfg_combine: the engine's parts for a loop of one's own. ddpm_rt/kernels.py checks and explains; here
// only what memory safety needs.
#include "bindings.h"

#include <pybind11/stl.h>

namespace {

constexpr size_t kRowBytes = 256;

// The data of an optional array of exactly `size` elements.
float* data_of(std::optional<FloatArray>& array, size_t size, const char* field) {
  if (!array) return nullptr;
  if (static_cast<size_t>(array->size()) != size)
    raise_error(DDPM_RT_SHAPE_ERROR, std::string(field) + ": expected " + std::to_string(size) + " elements, got " +
                                         std::to_string(array->size()));
  return array->mutable_data();
}

const float* const_data_of(const FloatArray& array, size_t size, const char* field) {
  if (static_cast<size_t>(array.size()) != size)
    raise_error(DDPM_RT_SHAPE_ERROR, std::string(field) + ": expected " + std::to_string(size) + " elements, got " +
                                         std::to_string(array.size()));
  return array.data();
}

void noise(uint64_t seed, uint32_t index, uint32_t stream, FloatArray out) {
  float* data = out.mutable_data();
  const size_t count = static_cast<size_t>(out.size());
  unlocked([&] { ddpm_rt_noise(seed, index, stream, 0, count, data); });
}

DoubleArray alpha_bar(const std::string& schedule, int64_t T) {
  if (T < 1 || T > 10'000'000)
    raise_error(DDPM_RT_OPTION_ERROR, "schedule.T: expected 1 to 10000000, got " + std::to_string(T));
  DoubleArray out(T);
  double* data = out.mutable_data();
  check(unlocked([&] { return ddpm_rt_alpha_bar(schedule.c_str(), static_cast<size_t>(T), data); }));
  return out;
}

py::tuple rows(const DoubleArray& alpha_bar, const std::string& prediction, const std::string& sampler, int32_t steps,
               double eta, std::optional<std::string> clip, std::optional<std::string> variance,
               std::optional<std::string> grid) {
  ddpm_rt_sample_options o;
  ddpm_rt_sample_options_init(&o, sizeof o);
  o.sampler = sampler.c_str();
  o.steps = steps;
  o.eta = eta;
  o.clip = text_or_null(clip);
  o.variance = text_or_null(variance);
  o.grid = text_or_null(grid);
  ddpm_rt_string* table = nullptr;
  size_t count = 0;
  double init_sigma = 1;
  const double* data = alpha_bar.data();
  const size_t T = static_cast<size_t>(alpha_bar.size());
  check(unlocked([&] { return ddpm_rt_rows(data, T, prediction.c_str(), &o, &table, &count, &init_sigma); }));
  py::bytes bytes(ddpm_rt_string_data(table), count * kRowBytes);
  ddpm_rt_string_release(table);
  return py::make_tuple(bytes, init_sigma);
}

void step(FloatArray x, const FloatArray& eps, const std::optional<FloatArray>& eps_uncond, const py::buffer& table, size_t index,
          double scale, const UInt64Array& seeds, std::optional<FloatArray> history, uint32_t ring,
          std::optional<FloatArray> anchor, std::optional<FloatArray> in, std::optional<FloatArray> x0) {
  const size_t count = static_cast<size_t>(seeds.size());
  const size_t size = static_cast<size_t>(x.size());
  if (count == 0 || size % count != 0)
    raise_error(DDPM_RT_SHAPE_ERROR, "seeds: expected one per sample, got " + std::to_string(count));
  const py::buffer_info rows = table.request();
  const size_t row_count = static_cast<size_t>(rows.size * rows.itemsize) / kRowBytes;
  if (index >= row_count)
    raise_error(DDPM_RT_OPTION_ERROR, "index: expected less than " + std::to_string(row_count) + " rows, got " +
                                          std::to_string(index));
  const char* row = static_cast<const char*>(rows.ptr) + index * kRowBytes;
  const char* next = index + 1 < row_count ? row + kRowBytes : nullptr;
  float* x_data = x.mutable_data();
  const float* eps_data = const_data_of(eps, size, "eps");
  const float* uncond_data = eps_uncond ? const_data_of(*eps_uncond, size, "eps_uncond") : nullptr;
  const uint64_t* seed_data = seeds.data();
  float* history_data = data_of(history, 3 * size, "state.history");
  float* anchor_data = data_of(anchor, size, "state.anchor");
  float* in_data = data_of(in, size, "state.input");
  float* x0_data = data_of(x0, size, "state.x0");
  check(unlocked([&] {
    return ddpm_rt_step(x_data, eps_data, uncond_data, row, next, scale, seed_data, history_data, ring, anchor_data,
                        in_data, x0_data, count, size / count);
  }));
}

void cfg_combine(const FloatArray& cond, const FloatArray& uncond, const FloatArray& scale, double rescale,
                 FloatArray out) {
  const size_t count = static_cast<size_t>(scale.size());
  const size_t size = static_cast<size_t>(cond.size());
  if (count == 0 || size % count != 0)
    raise_error(DDPM_RT_SHAPE_ERROR, "scale: expected one per sample, got " + std::to_string(count));
  const float* uncond_data = const_data_of(uncond, size, "uncond");
  const_data_of(out, size, "out");
  float* out_data = out.mutable_data();
  const float* cond_data = cond.data();
  const float* scale_data = scale.data();
  check(unlocked([&] {
    return ddpm_rt_cfg_combine(cond_data, uncond_data, scale_data, rescale, count, size / count, out_data);
  }));
}

}  // namespace

void bind_pieces(py::module_& m) {
  using py::arg;
  // noconvert everywhere: a silent copy of an output would be written and thrown away.
  m.def("noise", &noise, arg("seed"), arg("index"), arg("stream"), arg("out").noconvert());
  m.def("alpha_bar", &alpha_bar, arg("schedule"), arg("T"));
  m.def("rows", &rows, arg("alpha_bar"), arg("prediction"), arg("sampler"), arg("steps"), arg("eta"), arg("clip"),
        arg("variance"), arg("grid"));
  m.def("step", &step, arg("x").noconvert(), arg("eps").noconvert(), arg("eps_uncond").noconvert(), arg("rows"),
        arg("index"), arg("scale"), arg("seeds").noconvert(), arg("history").noconvert(), arg("ring"),
        arg("anchor").noconvert(), arg("input").noconvert(), arg("x0").noconvert());
  m.def("cfg_combine", &cfg_combine, arg("cond").noconvert(), arg("uncond").noconvert(), arg("scale").noconvert(),
        arg("rescale"), arg("out").noconvert());
}
