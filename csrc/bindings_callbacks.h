// The Python functions that the engine's thread calls: the denoiser of an engine made from a callable, a request's callback,
// and logging. They take the GIL; what the first two raise is stored, and ddpm_rt/engine.py raises it again on the thread
// that waits.
#ifndef DDPM_RT_BINDINGS_CALLBACKS_H_
#define DDPM_RT_BINDINGS_CALLBACKS_H_

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "bindings.h"

using Shape = std::vector<py::ssize_t>;

// The thread that is inside a Python function of this engine, if any: it must not wait for its own engine.
using InsideThread = std::atomic<std::thread::id>;

// Python keeps what it is given, so it gets copies: the engine's buffers change with the next tick.
template <typename T>
py::array_t<T> copied(const Shape& shape, const T* data) {
  py::array_t<T> array(shape);
  std::copy(data, data + array.size(), array.mutable_data());
  return array;
}

struct PythonDenoiser {
  py::object fn;
  Shape shape;
  InsideThread* inside;
  py::object error = py::none();  // what fn raised last
  std::string message;

  // ddpm_rt_denoise_fn
  static const char* call(void* user, const float* x, const float* t, const int64_t* label, size_t count, float* out);
};

struct PythonCallback {
  py::object fn;
  Shape shape;
  InsideThread* inside;
  py::object error = py::none();

  // ddpm_rt_step_fn
  static int call(void* user, int64_t row, int64_t rows, const float* x0, size_t images);
};

// ddpm_rt_log_fn, into logging.getLogger("ddpm_rt")
void log_to_python(void* user, int level, const char* message);

#endif  // DDPM_RT_BINDINGS_CALLBACKS_H_
