// The Python extension `ddpm_rt._core`: errors, plan files and the table of options. The rest is in bindings_*.cpp.
#include "bindings.h"

#include <pybind11/stl.h>

#include <memory>
#include <vector>

void raise_error(ddpm_rt_status status, const std::string& message) {
  py::object type = py::module_::import("ddpm_rt.errors").attr("BY_STATUS")[py::int_(static_cast<int>(status))];
  PyErr_SetObject(type.ptr(), type(message).ptr());
  throw py::error_already_set();
}

namespace {

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

class Plan {
 public:
  explicit Plan(const std::string& path) {
    ddpm_rt_plan* plan = nullptr;
    check(unlocked([&] { return ddpm_rt_plan_open(path.c_str(), &plan); }));
    plan_.reset(plan);
  }

  std::string manifest() const { return ddpm_rt_plan_manifest(plan_.get()); }

  py::list sections() const {
    py::list list;
    for (size_t i = 0; i < ddpm_rt_plan_section_count(plan_.get()); ++i) {
      const Section s = section(i);
      list.append(py::dict(py::arg("name") = s.name, py::arg("offset") = s.offset, py::arg("bytes") = s.bytes,
                           py::arg("sha256") = s.sha256));
    }
    return list;
  }

  py::bytes read(const std::string& name) const {
    uint64_t bytes = 0;  // an unknown name keeps 0 here and is the library's own error below
    for (size_t i = 0; i < ddpm_rt_plan_section_count(plan_.get()); ++i) {
      const Section s = section(i);
      if (name == s.name) bytes = s.bytes;
    }
    PyObject* raw = PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(bytes));
    if (!raw) throw py::error_already_set();
    py::bytes data = py::reinterpret_steal<py::bytes>(raw);
    char* out = PyBytes_AS_STRING(raw);
    check(unlocked([&] { return ddpm_rt_plan_section_read(plan_.get(), name.c_str(), out, bytes); }));
    return data;
  }

  void verify() const {
    check(unlocked([&] { return ddpm_rt_plan_verify(plan_.get()); }));
  }

 private:
  struct Section {
    const char* name;
    uint64_t offset, bytes;
    char sha256[65];
  };
  Section section(size_t i) const {
    Section s{};
    check(ddpm_rt_plan_section_info(plan_.get(), i, &s.name, &s.offset, &s.bytes, s.sha256));
    return s;
  }
  struct Release {
    void operator()(ddpm_rt_plan* plan) const { ddpm_rt_plan_release(plan); }
  };
  std::unique_ptr<ddpm_rt_plan, Release> plan_;
};

void write_plan(const std::string& path, const std::string& manifest, const py::dict& sections) {
  ddpm_rt_plan_writer* raw = nullptr;
  check(ddpm_rt_plan_writer_create(&raw));
  std::unique_ptr<ddpm_rt_plan_writer, decltype(&ddpm_rt_plan_writer_release)> writer(raw, ddpm_rt_plan_writer_release);
  for (auto [name, data] : sections) {
    const std::string key = py::cast<std::string>(name);
    const auto view = py::cast<py::buffer>(data).request();
    check(ddpm_rt_plan_writer_add(raw, key.c_str(), view.ptr, static_cast<size_t>(view.size * view.itemsize)));
  }
  check(unlocked([&] { return ddpm_rt_plan_writer_finish(raw, manifest.c_str(), path.c_str()); }));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ engine. Use the names of `ddpm_rt`; this module's may change.";
  m.attr("__version__") = ddpm_rt_version();
  m.def("options", &options);
  py::class_<Plan>(m, "Plan")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def_property_readonly("manifest", &Plan::manifest)
      .def_property_readonly("sections", &Plan::sections)
      .def("read", &Plan::read, py::arg("name"))
      .def("verify", &Plan::verify);
  m.def("write_plan", &write_plan, py::arg("path"), py::arg("manifest"), py::arg("sections"));
  bind_pieces(m);
  bind_engine(m);
}
