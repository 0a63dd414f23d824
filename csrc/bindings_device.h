// Networks on a device that Python runs: an object's methods as the functions of ddpm_rt_device_denoiser.
#ifndef DDPM_RT_BINDINGS_DEVICE_H_
#define DDPM_RT_BINDINGS_DEVICE_H_

#include <string>

#include "bindings_callbacks.h"

// `network` has name, version, precision, x_type, out_type, channels_last, max_count, rows_bytes, has_capture, and the methods
//   enqueue(x, t, label, rows, out, count, stream)       addresses as integers, 0 for null
//   capture(x, t, label, rows, out, count) -> int        a raw graph; with has_capture
//   embed(t, label, rows, stream)                         arrays float32 [n], int64 [n]; with rows_bytes
// called on the engine's thread with the GIL. What they raise is kept as PythonDenoiser keeps it.
struct PythonDeviceNetwork {
  explicit PythonDeviceNetwork(py::object network);
  PythonDeviceNetwork(const PythonDeviceNetwork&) = delete;
  PythonDeviceNetwork& operator=(const PythonDeviceNetwork&) = delete;

  const ddpm_rt_device_denoiser* functions() const { return &functions_; }

  RaisedError raised;

 private:
  template <typename F>
  const char* guarded(F&& f);
  static const char* enqueue(void* user, const ddpm_rt_device_call* call);
  static const char* capture(void* user, const ddpm_rt_device_call* call, void** graph);
  static const char* embed(void* user, const float* t, const int64_t* label, size_t count, void* rows, void* stream);

  py::object network_;
  std::string name_, version_, precision_;
  ddpm_rt_device_denoiser functions_;
};

#endif  // DDPM_RT_BINDINGS_DEVICE_H_
