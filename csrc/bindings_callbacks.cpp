#include "bindings_callbacks.h"

#include <pybind11/stl.h>

#include <algorithm>

namespace {

thread_local int depth = 0;

// Python keeps what it is given, so it gets copies: the engine's buffers change with the next tick.
template <typename T>
py::array_t<T> copied(const Shape& shape, const T* data) {
  py::array_t<T> array(shape);
  std::copy(data, data + array.size(), array.mutable_data());
  return array;
}

Shape batch_of(size_t count, const Shape& shape) {
  Shape full{static_cast<py::ssize_t>(count)};
  full.insert(full.end(), shape.begin(), shape.end());
  return full;
}

[[noreturn]] void raise(PyObject* type, const std::string& message) {
  PyErr_SetString(type, message.c_str());
  throw py::error_already_set();
}

}  // namespace

std::string RaisedError::describe(const py::error_already_set& e) {
  try {
    return e.type().attr("__name__").cast<std::string>() + ": " + py::str(e.value()).cast<std::string>();
  } catch (const std::exception&) {  // its own __str__ failed
    return "an exception without text";
  }
}

InsideCallback::InsideCallback() { ++depth; }
InsideCallback::~InsideCallback() { --depth; }

void PythonDenoiser::evaluate(const float* x, const float* t, const int64_t* label, size_t count, float* out) const {
  const Shape full = batch_of(count, shape);
  const Shape column = batch_of(count, {});
  const py::object labels = label != nullptr ? py::object(copied(column, label)) : py::object(py::none());
  const py::object result = fn(copied(full, x), copied(column, t), labels);
  const auto eps = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(result);
  if (!eps) {
    raise(PyExc_TypeError,
          "denoiser: expected an array of numbers, got " + py::repr(py::type::of(result)).cast<std::string>());
  }
  const Shape expected = batch_of(count, out_shape);
  if (!std::equal(expected.begin(), expected.end(), eps.shape(), eps.shape() + eps.ndim())) {
    raise(PyExc_ValueError, "denoiser: expected eps of shape " + py::str(py::cast(expected)).cast<std::string>() + ", got " +
                                py::str(py::list(eps.attr("shape"))).cast<std::string>());
  }
  std::copy(eps.data(), eps.data() + eps.size(), out);
}

void PythonDenoiser::operator()(const float* x, const float* t, const int64_t* label, size_t count, float* out) {
  py::gil_scoped_acquire gil;
  const InsideCallback inside;
  if (raised.from([&] { evaluate(x, t, label, count, out); })) throw std::runtime_error(raised.message);
}

bool PythonCallback::operator()(int64_t row, int64_t rows, const float* x0, size_t images) const {
  py::gil_scoped_acquire gil;
  const InsideCallback inside;
  py::array view = copied(batch_of(images, shape), x0);
  view.attr("flags").attr("writeable") = false;
  const py::object answer = fn(row, rows, view);
  if (answer.is_none()) return true;
  const int goes_on = PyObject_IsTrue(answer.ptr());
  if (goes_on < 0) throw py::error_already_set();
  return goes_on != 0;
}

bool is_inside_callback() { return depth > 0; }

void log_to_python(int level, const std::string& message) {
  if (!Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;
  try {
    py::module_::import("logging").attr("getLogger")("ddpm_rt").attr("log")(10 * (level + 1), "%s", message);
  } catch (const py::error_already_set&) {  // a failing log handler must not fail a sample
  }
}
