// The Python functions that the engine's thread calls, and logging. They take the GIL.
#ifndef DDPM_RT_BINDINGS_CALLBACKS_H_
#define DDPM_RT_BINDINGS_CALLBACKS_H_

#include <string>

#include "bindings.h"

// What Python raised last on the engine's thread, and the text it went on with: the cause that ddpm_rt/engine.py attaches to
// the error of that text. Guarded by the GIL.
struct RaisedError {
  py::object error = py::none();
  std::string message;

  // Runs f; true where it raised, with the fields set.
  template <typename F>
  bool from(F&& f) {
    try {
      f();
      return false;
    } catch (const py::error_already_set& e) {
      error = e.value();
      message = describe(e);
    } catch (const std::exception& e) {
      error = py::none();
      message = e.what();
    }
    return true;
  }
  bool tells_of(const std::string& text) const { return !message.empty() && text.find(message) != std::string::npos; }

 private:
  static std::string describe(const py::error_already_set& e);
};

// Marks this thread as an engine's, inside one of its callbacks.
struct InsideCallback {
  InsideCallback();
  ~InsideCallback();
};

// The denoiser of an engine made from a callable. What it raises fails the requests of the evaluation with its text.
struct PythonDenoiser {
  py::object fn;
  Shape shape, out_shape;  // of one sample
  RaisedError raised;

  void operator()(const float* x, const float* t, const int64_t* label, size_t count, float* out);

 private:
  void evaluate(const float* x, const float* t, const int64_t* label, size_t count, float* out) const;
};

// A request's callback. What it raises is thrown through the engine and raised again where the request is waited for.
struct PythonCallback {
  py::object fn;
  Shape shape;

  bool operator()(int64_t row, int64_t rows, const float* x0, size_t images) const;
};

// Whether this thread is an engine's, inside one of the two above.
bool is_inside_callback();

// Into logging.getLogger("ddpm_rt"); level 0 debug .. 3 error.
void log_to_python(int level, const std::string& message);

#endif  // DDPM_RT_BINDINGS_CALLBACKS_H_
