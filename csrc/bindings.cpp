// The Python extension `ddpm_rt._core`: errors, plan files and the table of options. The rest is in bindings_*.cpp.
#include "bindings.h"

#include <pybind11/stl.h>

namespace {

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const ddpm_rt::Exception& e) {
    const int status = static_cast<int>(e.status());
    py::object type = py::module_::import("ddpm_rt.errors").attr("BY_STATUS")[py::int_(status)];
    PyErr_SetObject(type.ptr(), type(e.what()).ptr());
  }
}

py::list options() {
  py::list table;
  for (size_t i = 0; i < ddpm_rt_option_count(); ++i) {
    const ddpm_rt_option_info& o = *ddpm_rt_option_at(i);
    table.append(py::dict(py::arg("name") = o.name, py::arg("aliases") = o.aliases, py::arg("type") = o.type,
                          py::arg("range") = o.range, py::arg("default") = o.default_value, py::arg("scope") = o.scope,
                          py::arg("help") = o.help));
  }
  return table;
}

py::list sections(const ddpm_rt::Plan& plan) {
  py::list list;
  for (const auto& s : plan.sections()) {
    list.append(py::dict(py::arg("name") = s.name, py::arg("offset") = s.offset, py::arg("bytes") = s.bytes,
                         py::arg("sha256") = s.sha256));
  }
  return list;
}

py::bytes read_section(const ddpm_rt::Plan& plan, const std::string& name) {
  const auto data = unlocked([&] { return plan.read(name); });
  return py::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

void write_plan(const std::string& path, const std::string& manifest, const py::dict& sections) {
  ddpm_rt::PlanWriter writer;
  for (auto [name, data] : sections) {
    const auto view = py::cast<py::buffer>(data).request();
    writer.add(py::cast<std::string>(name), view.ptr, static_cast<size_t>(view.size * view.itemsize));
  }
  unlocked([&] { writer.finish(manifest, path); });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ engine. Use the names of `ddpm_rt`; this module's may change.";
  m.attr("__version__") = ddpm_rt::version();
  py::register_local_exception_translator(&translate);
  m.def("options", &options);
  m.def("device_info", &ddpm_rt::device_info, py::arg("device"), py::arg("library") = "",
        py::call_guard<py::gil_scoped_release>());
  py::class_<ddpm_rt::Plan>(m, "Plan")
      .def(py::init<const std::string&>(), py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("manifest", &ddpm_rt::Plan::manifest)
      .def_property_readonly("sections", &sections)
      .def("read", &read_section, py::arg("name"))
      .def("verify", &ddpm_rt::Plan::verify, py::call_guard<py::gil_scoped_release>());
  m.def("write_plan", &write_plan, py::arg("path"), py::arg("manifest"), py::arg("sections"));
  bind_pieces(m);
  bind_device_kernels(m);
  bind_engine(m);
}
