// The options of a call, from a dict that ddpm_rt/call.py has checked.
#ifndef DDPM_RT_BINDINGS_OPTIONS_H_
#define DDPM_RT_BINDINGS_OPTIONS_H_

#include <deque>
#include <string>
#include <vector>

#include "bindings.h"

constexpr size_t kRowBytes = 256;

// `options` points into arrays that this holds.
class SampleCall {
 public:
  explicit SampleCall(const py::dict& given);  // None: not given
  ddpm_rt::SampleOptions options;

 private:
  struct Condition {
    std::string name;
    py::object array;
    std::vector<int64_t> lengths;
    ddpm_rt_condition value;
  };
  void read(const std::string& name, const py::handle& value);
  void read_conditions(const py::handle& value, std::vector<const ddpm_rt_condition*>* to);

  std::vector<py::array> held_;
  std::deque<Condition> conditions_;
  std::string table_;
  bool is_known_ = false;
};

#endif  // DDPM_RT_BINDINGS_OPTIONS_H_
