#include "bindings_device.h"

#include <utility>

namespace {

uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

}  // namespace

PythonDeviceNetwork::PythonDeviceNetwork(py::object network) : network_(std::move(network)) {
  ddpm_rt_device_denoiser_init(&functions_, sizeof functions_);
  name_ = network_.attr("name").cast<std::string>();
  version_ = network_.attr("version").cast<std::string>();
  precision_ = network_.attr("precision").cast<std::string>();
  functions_.name = name_.c_str();
  functions_.version = version_.c_str();
  functions_.precision = precision_.c_str();
  functions_.x_type = network_.attr("x_type").cast<int32_t>();
  functions_.out_type = network_.attr("out_type").cast<int32_t>();
  functions_.channels_last = network_.attr("channels_last").cast<bool>();
  functions_.max_count = network_.attr("max_count").cast<size_t>();
  functions_.rows_bytes = network_.attr("rows_bytes").cast<size_t>();
  functions_.user = this;
  functions_.enqueue = &PythonDeviceNetwork::enqueue;
  if (network_.attr("has_capture").cast<bool>()) functions_.capture = &PythonDeviceNetwork::capture;
  if (functions_.rows_bytes > 0) functions_.embed = &PythonDeviceNetwork::embed;
}

template <typename F>
const char* PythonDeviceNetwork::guarded(F&& f) {
  py::gil_scoped_acquire gil;
  const InsideCallback inside;
  return raised.from(f) ? raised.message.c_str() : nullptr;
}

const char* PythonDeviceNetwork::enqueue(void* user, const ddpm_rt_device_call* c) {
  auto& self = *static_cast<PythonDeviceNetwork*>(user);
  return self.guarded([&] {
    self.network_.attr("enqueue")(address(c->x), address(c->t), address(c->label), address(c->rows), address(c->out), c->count,
                                  address(c->stream));
  });
}

const char* PythonDeviceNetwork::capture(void* user, const ddpm_rt_device_call* c, void** graph) {
  auto& self = *static_cast<PythonDeviceNetwork*>(user);
  return self.guarded([&] {
    const py::object raw = self.network_.attr("capture")(address(c->x), address(c->t), address(c->label), address(c->rows),
                                                         address(c->out), c->count);
    *graph = reinterpret_cast<void*>(raw.cast<uintptr_t>());
  });
}

const char* PythonDeviceNetwork::embed(void* user, const float* t, const int64_t* label, size_t count, void* rows, void* stream) {
  auto& self = *static_cast<PythonDeviceNetwork*>(user);
  return self.guarded([&] {
    const auto n = static_cast<py::ssize_t>(count);
    self.network_.attr("embed")(FloatArray(n, t), Int64Array(n, label), address(rows), address(stream));
  });
}
