// The table of options is complete, unambiguous, and agrees with the solvers.
#include "options.h"

#include <cstring>
#include <set>
#include <sstream>

#include "expect_error.h"
#include "solver.h"

using namespace ddpm_rt;

int main() {
  std::set<std::string> names, canonical;
  for (const OptionInfo& o : option_table()) {
    for (const char* text : {o.name, o.aliases, o.type, o.range, o.default_value, o.scope, o.help}) CHECK(text != nullptr);
    CHECK(std::string(o.scope) == "engine" || std::string(o.scope) == "sample");
    CHECK(std::strlen(o.help) > 0 && std::strlen(o.default_value) > 0);
    canonical.insert(o.name);
    CHECK(names.insert(o.name).second);
    std::stringstream aliases(o.aliases);
    for (std::string alias; std::getline(aliases, alias, ',');) CHECK(names.insert(alias).second);
    const std::string type = o.type;
    const bool is_choice = type.rfind("choice:", 0) == 0;
    CHECK(is_choice || std::set<std::string>({"int", "float", "string", "array", "bool", "callable", "mapping", "pair", "engine"}).count(type));
    if (!is_choice) continue;
    // Every choice of a solver's option compiles, with the sampler that takes it.
    std::stringstream choices(type.substr(7));
    size_t count = 0;
    for (std::string choice; std::getline(choices, choice, '|'); ++count) {
      SolverOptions options;
      const std::string name = o.name;
      if (name == "sampler") options.sampler = choice;
      if (name == "clip") options.clip = choice;
      if (name == "grid") options.grid = choice;
      if (name == "variance") options.sampler = "ddpm", options.variance = choice;
      if (name == "compat") options.compat = choice, options.sampler = choice == "guided-diffusion" ? "ddim" : "heun";
      Schedule schedule = make_schedule("linear", 100);
      Prediction prediction;
      if (name == "variance" && choice.compare(0, 7, "learned") == 0) prediction.variance = choice;
      if (options.sampler == "pc") options.clip = "none";
      CHECK(!compile_table(schedule, prediction, options).rows.empty());
    }
    if (std::string(o.name) == "sampler") CHECK(count == samplers().size());
  }
  for (const char* name :
       {"device", "backend", "precision", "threads", "max_batch", "batch_invariant", "cache_dir", "card", "cuda_library",
         "tensorrt_library", "trust_native",
        "n", "labels", "scale", "steps", "sampler", "eta", "clip", "variance", "grid", "compat", "sampler_options", "guidance_rescale",
         "guidance_interval", "threshold", "negative", "guide", "classifier_scale", "seed", "seeds", "latents", "x_init",
        "image", "strength", "mask", "jump_length", "resamples", "x0_every", "output", "on_error", "progress", "callback"}) {
    CHECK(canonical.count(name) == 1);
  }
  for (const char* alias : {"num_inference_steps", "guidance_scale", "class_labels", "output_type"}) {
    CHECK(names.count(alias) == 1 && canonical.count(alias) == 0);
  }
  for (const char* later : {"prompt"}) {
    CHECK(names.count(later) == 0);
  }
  return finish();
}
