// Engine: which device, and the networks that run on it.
#include <cstring>
#include <utility>

#include <nlohmann/json.hpp>

#include "capi_structs.h"
#include "engine.h"
#include "gpu_lane.h"

namespace ddpm_rt {
namespace {

constexpr size_t kMostFunctions = 8, kAlign = 16;

[[noreturn]] void refuse(const std::string& message) { throw Error(Code::kOption, message); }

// "cuda" or "cuda:N" -> N; -1: another device.
int cuda_ordinal(const std::string& device) {
  if (device == "cuda") return 0;
  if (device.compare(0, 5, "cuda:") != 0 || device.size() == 5 || device.size() > 9) return -1;
  for (size_t i = 5; i < device.size(); ++i) {
    if (device[i] < '0' || device[i] > '9') return -1;
  }
  return std::stoi(device.substr(5));
}

std::string checked_text(const char* text, const std::string& field) {
  const std::string value = text != nullptr ? text : "";
  const char* const known = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-";
  if (value.size() <= 64 && value.find_first_not_of(known) == std::string::npos) return value;
  refuse(field + ": expected at most 64 letters, digits, dots, underscores, plus and minus signs, got \"" + value + "\"");
}

GpuType checked_type(int32_t type, const std::string& field) {
  if (type >= DDPM_RT_FLOAT32 && type <= DDPM_RT_BFLOAT16) return static_cast<GpuType>(type);
  refuse(field + ": expected 0 (float32), 1 (float16) or 2 (bfloat16), got " + std::to_string(type));
}

ddpm_rt_device_call as_c(const DeviceFunctions::Call& call) {
  return {sizeof(ddpm_rt_device_call), call.x, call.t, call.label, call.rows, call.out, call.count, call.stream};
}

DeviceFunctions read_functions(const ddpm_rt_device_denoiser* given, const std::string& field) {
  if (given == nullptr) refuse(field + ": expected a pointer, got null");
  const ddpm_rt_device_denoiser read = read_struct(given, field.c_str(), &ddpm_rt_device_denoiser_init);
  DeviceFunctions f;
  f.name = checked_text(read.name, field + ".name");
  f.version = checked_text(read.version, field + ".version");
  f.precision = checked_text(read.precision, field + ".precision");
  f.limits.in_type = checked_type(read.x_type, field + ".x_type");
  f.limits.out_type = checked_type(read.out_type, field + ".out_type");
  f.limits.layout = read.channels_last != 0 ? kGpuNhwc : kGpuNchw;
  f.limits.any_batch = read.any_count != 0;
  f.limits.is_capturable = read.capturable != 0;
  if (read.max_count > 0) f.limits.max_bucket = static_cast<int>(std::min<size_t>(read.max_count, 1 << 20));
  if (read.rows_bytes % kAlign != 0 || read.rows_bytes > (size_t{1} << 30)) {
    refuse(field + ".rows_bytes: expected a multiple of 16 up to 2^30, got " + std::to_string(read.rows_bytes));
  }
  f.limits.rows_bytes = read.rows_bytes;
  if (read.enqueue == nullptr) refuse(field + ".enqueue: expected a function, got null");
  if (read.rows_bytes > 0 && read.embed == nullptr) refuse(field + ".embed: expected a function where rows_bytes is above 0, got null");
  f.enqueue = [run = read.enqueue, user = read.user](const DeviceFunctions::Call& call) {
    const ddpm_rt_device_call c = as_c(call);
    return run(user, &c);
  };
  if (read.capture != nullptr) {
    f.capture = [capture = read.capture, user = read.user](const DeviceFunctions::Call& call, void** graph) {
      const ddpm_rt_device_call c = as_c(call);
      return capture(user, &c, graph);
    };
  }
  if (read.embed != nullptr) {
    f.embed = [embed = read.embed, user = read.user](const float* t, const int64_t* label, size_t count, void* rows, void* stream) {
      return embed(user, t, label, count, rows, stream);
    };
  }
  return f;
}

// JSON object text.
std::string facts_of(const Device& device) {
  const DeviceFacts& facts = device.facts();
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  return nlohmann::json({{"kind", device.api().name},
                         {"name", facts.name},
                         {"compute_capability", std::to_string(facts.major) + "." + std::to_string(facts.minor)},
                         {"multiprocessors", facts.multiprocessors},
                         {"memory_bytes", facts.memory_bytes},
                         {"driver", version(device.driver_version())},
                         {"runtime", version(device.runtime_version())},
                         {"library", device.library()}})
      .dump();
}

}  // namespace

DevicePtr open_named(const std::string& device, const std::string& library) {
  const int ordinal = cuda_ordinal(device);
  if (ordinal < 0) refuse("device: expected one of auto, cpu, cuda, cuda:N, got \"" + device + "\"");
  return Device::open(library, ordinal);
}

std::string device_info(const std::string& device, const std::string& library) { return facts_of(*open_named(device, library)); }

void Engine::open_device(const ddpm_rt_engine_options& options) {
  const std::string device = options.device != nullptr ? options.device : "auto";
  const std::string library = options.cuda_library != nullptr ? options.cuda_library : "";
  if (options.device_denoiser_count > kMostFunctions) {
    refuse("device_denoiser_count: expected at most " + std::to_string(kMostFunctions) + ", got " +
           std::to_string(options.device_denoiser_count));
  }
  if (device == "cpu") return;
  const bool has_conditions = !spec_.conditions.empty();
  if (has_conditions && (device != "auto" || wants_native(options))) {
    throw Error(Code::kDevice, "device: expected cpu for a plan with conditions beside the label, got " + device +
                                   ": the loop on a GPU does not carry them yet");
  }
  if (device == "auto") {
    if (has_conditions) return;
    const bool is_asked = wants_native(options);
    if (options.device_denoiser_count == 0 && native_.empty() && !is_asked) return;  // nothing here would run on a GPU: do not ask for one
    try {
      device_ = Device::open(library, 0);
    } catch (const Error& e) {
      if (is_asked) throw;
      skipped_ += (skipped_.empty() ? "" : "; ") + std::string("cuda: ") + e.what();
    }
    return;
  }
  device_ = open_named(device, library);
}

bool Engine::start_functions(const ddpm_rt_engine_options& options, const std::string& digest) {
  if (device_ == nullptr || options.device_denoiser_count == 0) return false;
  if (options.device_denoisers == nullptr) refuse("device_denoisers: expected a pointer, got null");
  std::vector<DeviceCandidate> candidates;
  for (size_t i = 0; i < options.device_denoiser_count; ++i) {
    const DeviceFunctions f = read_functions(options.device_denoisers[i], "device_denoisers[" + std::to_string(i) + "]");
    candidates.push_back({f.precision, [this, f](const DevicePtr& device, const DeviceStream&) {
                            return make_device_callable(spec_, f, device);
                          }});
  }
  start_on_device(std::move(candidates), digest);
  return true;
}

void Engine::start_mixture_on_device(const std::string& digest) {
  start_on_device({{"fp32", [this](const DevicePtr& device, const DeviceStream& stream) {
                      return make_gaussian_mixture_gpu(spec_, *plan_, device, stream);
                    }}},
                  digest);
}

void Engine::start_on_device(std::vector<DeviceCandidate> candidates, const std::string& digest) {
  if (spec_.output_elements() != spec_.elements()) {
    throw Error(Code::kDevice, "device: expected a network of fixed variance without a classifier on a GPU, got another: the loop there "
                               "does not read those parts of an output yet; use device cpu");
  }
  digest_ = digest;
  DeviceLaneOptions options;
  options.max_batch = max_batch_;
  options.batch_invariant = batch_invariant_;
  options.cache_dir = cache_dir_;
  options.digest = digest + "\n" + device_class();
  options.log = log_;
  auto lane = std::make_unique<DeviceLane>(spec_, plan_.get(), device_, std::move(candidates), std::move(options));
  max_batch_ = lane->max_batch();
  lane_ = std::move(lane);
}

std::string Engine::device_class() const {
  if (device_ == nullptr) return isa_class();
  const DeviceFacts& facts = device_->facts();
  return std::string(facts.name) + " " + std::to_string(facts.major) + "." + std::to_string(facts.minor);
}

std::string Engine::device_name() const {
  return device_ == nullptr ? "cpu" : std::string(device_->api().name) + ":" + std::to_string(device_->ordinal());
}

std::string Engine::device_facts() const { return device_ == nullptr ? "null" : facts_of(*device_); }

}  // namespace ddpm_rt
