// noise, rows, step, cfg_combine: the engine's parts for a loop of one's own. ddpm_rt/kernels/__init__.py checks and explains; here
// only what memory safety needs.
#include <pybind11/stl.h>

#include "bindings_options.h"

#include <memory>

namespace {

constexpr size_t kExactRowBytes = 42 * sizeof(double);

[[noreturn]] void refuse(ddpm_rt_status status, const std::string& message) { throw ddpm_rt::Exception(status, message); }

void expect_size(const FloatArray& array, size_t size, const char* field) {
  if (static_cast<size_t>(array.size()) == size) return;
  refuse(DDPM_RT_SHAPE_ERROR, std::string(field) + ": expected " + std::to_string(size) + " elements, got " +
                                  std::to_string(array.size()));
}

const float* read_only(const std::optional<FloatArray>& array, size_t size, const char* field) {
  if (!array) return nullptr;
  expect_size(*array, size, field);
  return array->data();
}

float* writable(std::optional<FloatArray>& array, size_t size, const char* field) {
  if (!array) return nullptr;
  expect_size(*array, size, field);
  return array->mutable_data();
}

size_t samples_of(py::ssize_t count, size_t size, const char* field) {
  if (count == 0 || size % static_cast<size_t>(count) != 0)
    refuse(DDPM_RT_SHAPE_ERROR, std::string(field) + ": expected one per sample, got " + std::to_string(count));
  return static_cast<size_t>(count);
}

void noise(uint64_t seed, uint32_t index, uint32_t stream, FloatArray out) {
  float* data = out.mutable_data();
  const size_t count = static_cast<size_t>(out.size());
  unlocked([&] { ddpm_rt_noise(seed, index, stream, 0, count, data); });
}

DoubleArray alpha_bar(const std::string& schedule, int64_t T) {
  if (T < 1 || T > 10'000'000) refuse(DDPM_RT_OPTION_ERROR, "schedule.T: expected 1 or more, got " + std::to_string(T));
  const std::vector<double> values = ddpm_rt::alpha_bar(schedule, static_cast<size_t>(T));
  return DoubleArray(static_cast<py::ssize_t>(values.size()), values.data());
}

// is_exact: rows of 42 float64 instead of 256 bytes.
py::tuple rows(const DoubleArray& alpha_bar, const std::string& model, const py::dict& given, bool is_exact) {
  const SampleCall call(given);
  const ddpm_rt_sample_options o = ddpm_rt::c_options(call.options);
  ddpm_rt_string* table = nullptr;
  size_t count = 0;
  double init_sigma = 1;
  const size_t T = static_cast<size_t>(alpha_bar.size());
  const auto compile = is_exact ? &ddpm_rt_rows_f64 : &ddpm_rt_rows;
  ddpm_rt::check(compile(alpha_bar.data(), T, model.c_str(), &o, &table, &count, &init_sigma));
  std::unique_ptr<ddpm_rt_string, void (*)(ddpm_rt_string*)> holder(table, &ddpm_rt_string_release);
  return py::make_tuple(py::bytes(ddpm_rt_string_data(table), count * (is_exact ? kExactRowBytes : kRowBytes)), init_sigma);
}

void check_rows(const py::buffer& table, double init_sigma) {
  const py::buffer_info rows = table.request();
  ddpm_rt::check(ddpm_rt_rows_check(rows.ptr, static_cast<size_t>(rows.size * rows.itemsize) / kRowBytes, init_sigma));
}

std::string samplers() {
  ddpm_rt_string* json = nullptr;
  ddpm_rt::check(ddpm_rt_samplers(&json));
  return ddpm_rt::take(json);
}

void step(FloatArray x, const FloatArray& eps, const std::optional<FloatArray>& eps_uncond, const py::buffer& table, size_t index,
          double scale, const UInt64Array& seeds, std::optional<FloatArray> history, uint32_t ring,
          std::optional<FloatArray> anchor, std::optional<FloatArray> in, std::optional<FloatArray> x0,
          const std::optional<FloatArray>& guide, double scale2, const std::optional<FloatArray>& variance,
          const std::optional<FloatArray>& grad, const std::optional<FloatArray>& known,
          const std::optional<FloatArray>& mask, const std::optional<FloatArray>& x0_true, std::optional<DoubleArray> kl) {
  const size_t size = static_cast<size_t>(x.size());
  const size_t count = samples_of(seeds.size(), size, "seeds");
  const py::buffer_info rows = table.request();
  const size_t row_count = static_cast<size_t>(rows.size * rows.itemsize) / kRowBytes;
  if (index >= row_count)
    refuse(DDPM_RT_OPTION_ERROR, "index: expected less than " + std::to_string(row_count) + " rows, got " +
                                          std::to_string(index));
  const char* row = static_cast<const char*>(rows.ptr) + index * kRowBytes;
  const char* next = index + 1 < row_count ? row + kRowBytes : nullptr;
  float* x_data = x.mutable_data();
  const float* eps_data = read_only(eps, size, "eps");
  const float* uncond_data = read_only(eps_uncond, size, "eps_uncond");
  const uint64_t* seed_data = seeds.data();
  float* history_data = writable(history, 3 * size, "state.history");
  float* anchor_data = writable(anchor, size, "state.anchor");
  float* in_data = writable(in, size, "state.input");
  float* x0_data = writable(x0, size, "state.x0");
  ddpm_rt_step_operands operands;
  ddpm_rt_step_operands_init(&operands, sizeof operands);
  operands.guide = read_only(guide, size, "eps_guide");
  operands.scale2 = scale2;
  operands.variance = read_only(variance, size, "variance");
  operands.grad = read_only(grad, size, "grad");
  operands.known = read_only(known, size, "known");
  operands.mask = read_only(mask, size, "mask");
  operands.x0_true = read_only(x0_true, size, "x0_true");
  if (kl && static_cast<size_t>(kl->size()) != count) refuse(DDPM_RT_SHAPE_ERROR, "state.kl: expected one per sample");
  operands.kl = kl ? kl->mutable_data() : nullptr;
  ddpm_rt::check(unlocked([&] {
    return ddpm_rt_step(x_data, eps_data, uncond_data, row, next, scale, seed_data, history_data, ring, anchor_data,
                        in_data, x0_data, &operands, count, size / count);
  }));
}

void cfg_combine(const FloatArray& cond, const FloatArray& uncond, const FloatArray& scale, double rescale,
                 FloatArray out) {
  const size_t size = static_cast<size_t>(cond.size());
  const size_t count = samples_of(scale.size(), size, "scale");
  const float* uncond_data = read_only(uncond, size, "uncond");
  expect_size(out, size, "out");
  float* out_data = out.mutable_data();
  const float* cond_data = cond.data();
  const float* scale_data = scale.data();
  ddpm_rt::check(unlocked([&] {
    return ddpm_rt_cfg_combine(cond_data, uncond_data, scale_data, rescale, count, size / count, out_data);
  }));
}

}  // namespace

void bind_pieces(py::module_& m) {
  using py::arg;
  // noconvert everywhere: a silent copy of an output would be written and thrown away.
  m.def("noise", &noise, arg("seed"), arg("index"), arg("stream"), arg("out").noconvert());
  m.def("alpha_bar", &alpha_bar, arg("schedule"), arg("T"));
  m.def("rows", &rows, arg("alpha_bar"), arg("model"), arg("options"), arg("exact"));
  m.def("check_rows", &check_rows, arg("rows"), arg("init_sigma"));
  m.def("samplers", &samplers);
  m.def("step", &step, arg("x").noconvert(), arg("eps").noconvert(), arg("eps_uncond").noconvert(), arg("rows"),
        arg("index"), arg("scale"), arg("seeds").noconvert(), arg("history").noconvert(), arg("ring"),
        arg("anchor").noconvert(), arg("input").noconvert(), arg("x0").noconvert(), arg("guide").noconvert() = py::none(),
        arg("scale2") = 0.0, arg("variance").noconvert() = py::none(), arg("grad").noconvert() = py::none(),
        arg("known").noconvert() = py::none(), arg("mask").noconvert() = py::none(),
        arg("x0_true").noconvert() = py::none(), arg("kl").noconvert() = py::none());
  m.def("cfg_combine", &cfg_combine, arg("cond").noconvert(), arg("uncond").noconvert(), arg("scale").noconvert(),
        arg("rescale"), arg("out").noconvert());
}
