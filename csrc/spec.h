// The manifest, typed: what the engine knows of a model. Parsed once, at the edge, from plan JSON (version 1).
#ifndef DDPM_RT_SPEC_H_
#define DDPM_RT_SPEC_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "plan.h"
#include "schedule.h"
#include "solver.h"

namespace ddpm_rt {

// A network of the plan. kind "onnx": `section` holds the model; "tensorrt": a compiled engine, whose card is in the
// manifest's `engines` (native_engine.h); "gaussian_mixture": `arrays` names the sections that
// hold float64 "means" [K, N], "stds" [K] and "weights" [K], whose sizes are checked; "callable": supplied by the host
// program.
struct NetworkSpec {
  std::string kind, section;
  std::map<std::string, std::string> arrays;
  size_t components = 0;  // K; equals num_classes where the mixture is conditional
  // names of the graph's inputs and outputs by role: "x" "t" "label" "rows" -> tensor name
  std::map<std::string, std::string> inputs, outputs;
  size_t rows_width = 0;  // kind onnx with a "rows" input: elements per row of `temb`'s output
};

// A tensor of a request beside its label: float32 [*shape], or of a sequence [L, *shape] with L of 1 to max_length.
struct ConditionSpec {
  enum class Null { kNone, kZero, kSame };  // what stands for no condition: nothing does, zeros, or what the request gives

  std::string name, role;              // text | vector | map
  std::vector<int64_t> shape;
  int64_t max_length = 0;              // 0: no sequence
  bool has_mask = false;               // a sequence may be shorter: the network reads NAME_mask too, 1 for entries that count
  Null null = Null::kZero;

  size_t entry_elements() const;       // product of shape
};

// A condition, or its mask, as the network reads it: [B, *row].
struct ConditionInput {
  std::string role;                    // the condition's name, or NAME_mask
  std::vector<int64_t> row;
  bool is_mask;

  size_t elements() const;
};

// Inputs and expected outputs stored at export: float32, count x [x (N) | t (1) | label (1) | conditions | expected (N)], label
// num_classes is the null label, conditions as condition_inputs() has them. An output passes where max|difference| <= tolerance[precision] * max|expected|.
struct SelfTest {
  std::string section;                 // empty: the plan has none
  int64_t count = 0;
  std::map<std::string, double> tolerance;
};

struct ModelSpec {
  std::vector<int64_t> shape;          // sample shape without batch, rank 1 to 4; images are [C, H, W]
  std::string role = "image";          // image | latent | vector
  double data_lo = -1, data_hi = 1;
  bool truncate_uint8 = false;
  Schedule schedule;
  Prediction prediction;
  int64_t num_classes = 0;             // 0: unconditional. The null label is num_classes.
  std::vector<ConditionSpec> conditions;  // by name
  bool has_classifier = false;         // the output ends in d log p(label | x) / dx
  std::vector<std::string> class_names;
  SolverOptions defaults;              // as the manifest has them
  SolverOptions resolved;              // what they come to
  double default_scale = 1.0;
  NetworkSpec network;                 // the denoiser: x, t[, label] -> eps, or x, rows -> eps
  bool has_temb = false;
  NetworkSpec temb;                    // t[, label] -> rows
  SelfTest self_test;
  std::string name;                    // of the model, for messages

  size_t elements() const;             // product of shape
  std::vector<ConditionInput> condition_inputs() const;  // by name, each mask behind its sequence
  // Of one evaluation: [prediction | learned variance | classifier's gradient], elements() each, what there is of them.
  size_t output_elements() const { return elements() * (1 + (prediction.variance != "fixed") + has_classifier); }
};

// Throws Error(kPlan) naming the field, what was expected and what was found; an entry of `requires` that this library
// does not know is refused; unknown other keys are ignored. `alpha_bar` null: read from the plan's section.
// `plan` null: the manifest of a callable, made of the caller's arguments (sample, prediction, time, class_names,
// num_classes, defaults; alpha_bar is required), whose faults are Error(kOption).
ModelSpec parse_manifest(const std::string& manifest_json, const Plan* plan, const std::vector<double>* alpha_bar);

// The same check for a plan that is about to be written from these sections.
ModelSpec check_manifest(const std::string& manifest_json,
                         const std::vector<std::pair<std::string, std::vector<uint8_t>>>& sections);

// A JSON object of solver_options(), into `options`. Throws Error(kOption).
void read_sampler_options(const std::string& text, SolverOptions* options);
// A prediction by its name, or a JSON object with the manifest's keys prediction, variance, time and schedule (kind and its
// numbers, where `alpha_bar` is empty). Throws Error(kOption).
void read_model(const std::string& text, const std::vector<double>& alpha_bar, Schedule* schedule, Prediction* prediction);
std::string samplers_json();           // {"samplers": [...], "grids": [...]}, for front ends

}  // namespace ddpm_rt

#endif  // DDPM_RT_SPEC_H_
