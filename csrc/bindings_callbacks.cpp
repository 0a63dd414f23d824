#include "bindings_callbacks.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>

namespace {

class InsideGuard {
 public:
  explicit InsideGuard(InsideThread& inside) : inside_(inside) { inside_ = std::this_thread::get_id(); }
  ~InsideGuard() { inside_ = std::thread::id(); }

 private:
  InsideThread& inside_;
};

Shape batch_shape(size_t count, const Shape& shape) {
  Shape full{static_cast<py::ssize_t>(count)};
  full.insert(full.end(), shape.begin(), shape.end());
  return full;
}

std::string describe(py::error_already_set& e) {
  try {
    return e.type().attr("__name__").cast<std::string>() + ": " + py::str(e.value()).cast<std::string>();
  } catch (const std::exception&) {  // its own __str__ failed
    return "an exception without text";
  }
}

}  // namespace

const char* PythonDenoiser::call(void* user, const float* x, const float* t, const int64_t* label, size_t count, float* out) {
  auto& self = *static_cast<PythonDenoiser*>(user);
  py::gil_scoped_acquire gil;
  InsideGuard guard(*self.inside);
  try {
    const Shape shape = batch_shape(count, self.shape);
    const Shape column = batch_shape(count, {});
    py::object labels = label ? py::object(copied(column, label)) : py::object(py::none());
    py::object result = self.fn(copied(shape, x), copied(column, t), labels);
    auto eps = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(result);
    if (!eps)
      raise_error(DDPM_RT_SHAPE_ERROR, "denoiser: expected an array of numbers, got " +
                                           py::repr(py::type::of(result)).cast<std::string>());
    if (!std::equal(shape.begin(), shape.end(), eps.shape(), eps.shape() + eps.ndim()))
      raise_error(DDPM_RT_SHAPE_ERROR, "denoiser: expected eps of shape " + py::repr(py::cast(shape)).cast<std::string>() +
                                           ", got " + py::repr(py::array(eps).attr("shape")).cast<std::string>());
    std::memcpy(out, eps.data(), sizeof(float) * static_cast<size_t>(eps.size()));
    return nullptr;
  } catch (py::error_already_set& e) {
    self.error = e.value();
    self.message = describe(e);
  } catch (const std::exception& e) {
    self.error = py::none();
    self.message = e.what();
  }
  return self.message.c_str();
}

int PythonCallback::call(void* user, int64_t row, int64_t rows, const float* x0, size_t images) {
  auto& self = *static_cast<PythonCallback*>(user);
  py::gil_scoped_acquire gil;
  InsideGuard guard(*self.inside);
  try {
    py::array view = copied(batch_shape(images, self.shape), x0);
    view.attr("flags").attr("writeable") = false;
    py::object answer = self.fn(row, rows, view);
    if (answer.is_none()) return 0;
    const int go_on = PyObject_IsTrue(answer.ptr());
    if (go_on < 0) throw py::error_already_set();
    return go_on == 0;
  } catch (py::error_already_set& e) {
    self.error = e.value();
  }
  return 1;
}

void log_to_python(void*, int level, const char* message) {
  if (!Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;
  try {
    py::module_::import("logging").attr("getLogger")("ddpm_rt").attr("log")(10 * (level + 1), "%s", message);
  } catch (py::error_already_set&) {  // a failing log handler must not fail a sample
  }
}
