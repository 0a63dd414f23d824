// The manifest, typed: what the engine knows of a model. Parsed once, at the edge, from plan JSON (version 1).
#ifndef DDPM_RT_SPEC_H_
#define DDPM_RT_SPEC_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plan.h"
#include "schedule.h"
#include "solver.h"

namespace ddpm_rt {

// A network of the plan. kind "onnx": `section` holds the model; "gaussian_mixture": sections hold float64 arrays;
// "callable": supplied by the host program.
struct NetworkSpec {
  std::string kind, section;
  // names of the graph's inputs and outputs by role: "x" "t" "label" "rows" -> tensor name
  std::map<std::string, std::string> inputs, outputs;
  size_t rows_width = 0;  // kind onnx with a "rows" input: elements per row of `temb`'s output
};

struct ModelSpec {
  std::vector<int64_t> shape;          // sample shape without batch, rank 1 to 4; images are [C, H, W]
  std::string role = "image";          // image | latent | vector
  double data_lo = -1, data_hi = 1;
  bool truncate_uint8 = false;
  Schedule schedule;
  Prediction prediction;
  int64_t num_classes = 0;             // 0: unconditional. The null label is num_classes.
  std::vector<std::string> class_names;
  SolverOptions defaults;              // sampler, steps, eta, clip, grid, variance
  double default_scale = 1.0;
  NetworkSpec network;                 // the denoiser: x, t[, label] -> eps, or x, rows -> eps
  bool has_temb = false;
  NetworkSpec temb;                    // t[, label] -> rows
  std::string name;                    // of the model, for messages

  size_t elements() const;             // product of shape
};

// Throws Error(kPlan) naming the field, what was expected and what was found; an entry of `requires` that this library
// does not know is refused; unknown other keys are ignored. `alpha_bar` null: read from the plan's section.
ModelSpec parse_manifest(const std::string& manifest_json, const Plan* plan, const std::vector<double>* alpha_bar);

}  // namespace ddpm_rt

#endif  // DDPM_RT_SPEC_H_
