// Engine: compiled engines, of the user's cache or of a plan that the caller trusts.
#include <algorithm>
#include <utility>

#include "device_denoiser.h"
#include "engine.h"
#include "gpu_lane.h"

namespace ddpm_rt {
namespace {

std::string text(const char* value) { return value != nullptr ? value : ""; }

}  // namespace

// Leaves native_ empty where nothing here asks for engines. Only cards are read.
void Engine::find_native(const ddpm_rt_engine_options& options) {
  const std::string backend = options.backend != nullptr ? options.backend : "auto";
  const bool is_raw = spec_.network.kind == kTensorRt;
  if (is_raw && backend != "auto" && backend != kTensorRt) {
    throw Error(Code::kOption, "backend: expected tensorrt for a compiled engine, got \"" + backend + "\"");
  }
  if (plan_ == nullptr || (backend != "auto" && backend != kTensorRt)) return;
  if (spec_.network.kind != "onnx" && !is_raw) return;
  std::vector<NativeEngine> embedded = engines_in_plan(plan_);
  if (!embedded.empty() && options.trust_native == 0) {
    const std::string refusal = "trust_native: expected true to load the engines in " + plan_->path() +
                                ", which are machine code, got false: only for files from a source you trust";
    if (is_raw || backend == kTensorRt) throw Error(Code::kOption, refusal);
    skipped_ = "tensorrt: " + refusal;
    embedded.clear();
  }
  // An engine of another ONNX section than this plan's is another model's.
  const auto add = [this](std::vector<NativeEngine> engines, const char* network, const std::string& source) {
    for (NativeEngine& e : engines) {
      if (e.network == network && e.source == source) native_.push_back(std::move(e));
    }
  };
  const struct {
    const char* network;
    const NetworkSpec& spec;
    bool is_used;
  } kNetworks[] = {{"unet", spec_.network, true}, {"temb", spec_.temb, spec_.has_temb}};
  for (const auto& n : kNetworks) {
    if (!n.is_used) continue;
    const std::string source = is_raw ? "" : section_digest(*plan_, n.spec.section);
    add(embedded, n.network, source);
    if (is_raw || cache_dir_.empty()) continue;
    std::string why;
    add(engines_in_cache(cache_dir_ + "/engines", source, &why), n.network, source);
    if (!why.empty() && log_) log_(2, "engine cache: " + why);
  }
}

std::string Engine::build_command(const std::string& options) const {
  if (spec_.network.kind == kTensorRt) return "; build the engine again, with the library and for the GPU that run it";
  return "; ddpm-rt build " + plan_->path() + " --backend tensorrt" + options;
}

bool Engine::wants_native(const ddpm_rt_engine_options& options) const {
  return spec_.network.kind == kTensorRt || (spec_.network.kind == "onnx" && text(options.backend) == kTensorRt);
}

// False: no engine of this plan is here, and none was asked for by name.
bool Engine::start_native(const ddpm_rt_engine_options& options) {
  const bool is_asked = wants_native(options);
  if (device_ == nullptr || (native_.empty() && !is_asked)) return false;
  const std::string asked = options.precision != nullptr ? options.precision : "auto";
  std::vector<DeviceCandidate> candidates;
  for (const char* precision : {"fp16", "bf16", "fp32"}) {  // as fast as bf16, and nearer to float32
    if (asked != "auto" && asked != precision) continue;
    const bool has_one = std::any_of(native_.begin(), native_.end(), [&](const NativeEngine& e) {
      return e.network == "unet" && e.precision == precision;
    });
    if (!has_one) continue;
    const std::string flags = std::string(" --precision ") + precision;
    const NativeOptions o{native_, precision, text(options.tensorrt_library), build_command(flags), build_command(flags + " --cc current")};
    candidates.push_back({precision, [this, o](const DevicePtr& device, const DeviceStream&) { return make_tensorrt(spec_, o, device); }});
  }
  try {
    if (candidates.empty()) {
      throw Error(Code::kBackend, "backend: expected an engine of this plan" + (asked != "auto" ? " in " + asked : "") + " in " +
                                      (cache_dir_.empty() ? "its sections" : cache_dir_ + "/engines") + ", got none" +
                                      build_command(asked != "auto" ? " --precision " + asked : ""));
    }
    start_on_device(std::move(candidates), section_digest(*plan_, spec_.network.section));
    return true;
  } catch (const Error& e) {
    if (is_asked) throw;
    skipped_ += (skipped_.empty() ? "" : "; ") + std::string("tensorrt: ") + e.what();
    return false;
  }
}

}  // namespace ddpm_rt
