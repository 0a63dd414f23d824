// The parts of the manifest's parser, inside spec*.cpp only.
#ifndef DDPM_RT_SPEC_PARTS_H_
#define DDPM_RT_SPEC_PARTS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "json_field.h"
#include "spec.h"

namespace ddpm_rt {

// Where the sections are: a plan, the ones about to be written, or nowhere (a callable).
struct Sections {
  bool exist = false;
  std::map<std::string, uint64_t> bytes;
  std::function<std::vector<uint8_t>(const std::string&)> read;

  Code code() const { return exist ? Code::kPlan : Code::kOption; }
};

// Stages, networks and their sections; needs spec->shape and spec->num_classes.
void parse_networks(const Field& root, const Sections& sections, ModelSpec* spec);
void parse_conditions(const Field& root, const Sections& sections, ModelSpec* spec);  // all but the label
void parse_self_test(const Field& test, const Sections& sections, ModelSpec* spec);

void parse_prediction(const Field& root, bool is_required, Prediction* prediction);
// `given`, if not null nor empty, is a discrete schedule in place of the manifest's.
void parse_schedule(const Field& root, const Sections& sections, const std::vector<double>* given, Schedule* to);
void parse_sampler_options(const Field& field, SolverOptions* options);  // absent: nothing
nlohmann::json parse_json(const std::string& text, Code code, const std::string& what);

// The name of a section that exists, and has exactly `bytes` bytes.
std::string section_name(const Field& field, const Sections& sections);
std::string section_name(const Field& field, const Sections& sections, uint64_t bytes);

}  // namespace ddpm_rt

#endif  // DDPM_RT_SPEC_PARTS_H_
