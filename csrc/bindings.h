// Shared by the files of the Python extension. They see the public headers only; what these throw becomes the class of
// ddpm_rt/errors.py.
#ifndef DDPM_RT_BINDINGS_H_
#define DDPM_RT_BINDINGS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "ddpm_rt/ddpm_rt.hpp"

namespace py = pybind11;

using FloatArray = py::array_t<float, py::array::c_style>;
using DoubleArray = py::array_t<double, py::array::c_style>;
using Int64Array = py::array_t<int64_t, py::array::c_style>;
using UInt64Array = py::array_t<uint64_t, py::array::c_style>;
using Shape = std::vector<py::ssize_t>;

// Runs f without the GIL: every call into the library goes through here, so that the engine's threads can take the GIL
// for a callback while this one waits on a mutex of theirs.
template <typename F>
auto unlocked(F&& f) {
  py::gil_scoped_release release;
  return f();
}

void bind_device_kernels(py::module_& m);
void bind_engine(py::module_& m);
void bind_pieces(py::module_& m);

#endif  // DDPM_RT_BINDINGS_H_
