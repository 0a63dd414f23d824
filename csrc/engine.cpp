#include "engine.h"

#include <cstdlib>
#include <utility>

#ifndef _WIN32
#include <sys/stat.h>
#endif

#include <nlohmann/json.hpp>

#include "cpu.h"
#include "plan.h"

namespace ddpm_rt {
namespace {

constexpr int kDefaultBatch = 32, kMostBatch = 4096, kMostThreads = 1024;

std::string text(const char* value, const char* fallback) { return value != nullptr ? value : fallback; }

[[noreturn]] void refuse(const std::string& message) { throw Error(Code::kOption, message); }

std::string expect_one_of(const char* field, const std::string& value, std::initializer_list<const char*> known) {
  std::string list;
  for (const char* k : known) {
    if (value == k) return value;
    list += list.empty() ? k : std::string(", ") + k;
  }
  refuse(std::string(field) + ": expected one of " + list + ", got \"" + value + "\"");
}

int in_range(const char* field, int value, int lo, int hi) {
  if (value >= lo && value <= hi) return value;
  refuse(std::string(field) + ": expected " + std::to_string(lo) + " to " + std::to_string(hi) + ", got " +
         std::to_string(value));
}

std::string make_folder(const std::string& path) {
#ifndef _WIN32
  mkdir(path.c_str(), 0700);  // of the user alone: what lies there is later loaded; an existing one is as good
#endif
  return path;
}

std::string user_cache() {
#ifdef _WIN32
  return "";
#else
  const char* base = std::getenv("XDG_CACHE_HOME");
  if (base != nullptr && base[0] == '/') return make_folder(std::string(base) + "/ddpm_rt");
  const char* home = std::getenv("HOME");
  if (home == nullptr || home[0] != '/') return "";
  make_folder(std::string(home) + "/.cache");
  return make_folder(std::string(home) + "/.cache/ddpm_rt");
#endif
}

nlohmann::json conditions_json(const std::vector<ConditionSpec>& conditions) {
  nlohmann::json json = nlohmann::json::object();
  for (const ConditionSpec& c : conditions) {
    nlohmann::json& to = json[c.name] = {{"shape", c.shape}, {"max_length", nullptr}, {"mask", c.has_mask}, {"role", c.role}, {"null", nullptr}};
    if (c.max_length > 0) to["max_length"] = c.max_length;
    if (c.null != ConditionSpec::Null::kNone) to["null"] = c.null == ConditionSpec::Null::kZero ? "zero" : "same";
  }
  return json;
}

using Maker = std::unique_ptr<Denoiser> (*)(const ModelSpec&, const Plan&, const BackendOptions&);

}  // namespace

std::string section_digest(const Plan& plan, const std::string& section) {
  for (const SectionInfo& info : plan.sections()) {
    if (info.name == section) return hex(info.sha256);
  }
  return hex(sha256(plan.manifest().data(), plan.manifest().size()));
}

Engine::Engine(ModelSpec spec, std::shared_ptr<const Plan> plan, const ddpm_rt_engine_options& options)
    : source_(std::make_shared<NetworkSource>(NetworkSource{std::move(spec), std::move(plan), {}, {}})),
      spec_(source_->spec),
      plan_(source_->plan),
      pid_(process_id()) {
  expect_one_of("precision", text(options.precision, "auto"), {"auto", "fp32", "bf16", "fp16"});
  expect_one_of("backend", text(options.backend, "auto"), {"auto", "openvino", "onnxruntime", "analytic", "torch", "tensorrt"});
  threads_ = options.threads == 0 ? default_threads() : in_range("threads", options.threads, 1, kMostThreads);
  if (options.cache_dir == nullptr) {
    cache_dir_ = user_cache();
  } else if (options.cache_dir[0] != '\0') {
    cache_dir_ = make_folder(options.cache_dir);
  }
  if (options.log != nullptr) {
    log_ = [log = options.log, user = options.log_user](int level, const std::string& message) {
      log(user, level, message.c_str());
    };
  }
  find_native(options);
  open_device(options);
  set_defaults(options);
}

void Engine::set_defaults(const ddpm_rt_engine_options& options) {
  max_batch_ = options.max_batch == 0 ? (device_ != nullptr ? 0 : kDefaultBatch)
                                      : in_range("max_batch", options.max_batch, 1, kMostBatch);
  const int invariant = in_range("batch_invariant", options.batch_invariant, -1, 1);
  batch_invariant_ = invariant == -1 ? device_ == nullptr : invariant != 0;
}

Engine::~Engine() = default;

std::unique_ptr<Engine> Engine::open(const std::string& plan_path, const ddpm_rt_engine_options& options) {
  std::shared_ptr<const Plan> plan = Plan::open(plan_path);
  ModelSpec spec = parse_manifest(plan->manifest(), plan.get(), nullptr);
  std::unique_ptr<Engine> engine(new Engine(std::move(spec), plan, options));
  const std::string backend = text(options.backend, "auto");
  const bool is_mixture = engine->spec_.network.kind == "gaussian_mixture";
  if (is_mixture) {
    if (backend != "auto" && backend != "analytic") {
      refuse("backend: expected analytic for a plan of kind gaussian_mixture, got \"" + backend + "\"");
    }
    if (text(options.precision, "auto") != "auto" && text(options.precision, "auto") != "fp32") {
      refuse("precision: expected fp32 with backend analytic, got \"" + text(options.precision, "") + "\"");
    }
    const ModelSpec& s = engine->spec_;
    const std::string digest = hex(sha256(plan->manifest().data(), plan->manifest().size()));
    if (engine->device_ != nullptr) {
      engine->start_mixture_on_device(digest);
    } else {
      engine->start({{"fp32", [&s, plan] { return make_gaussian_mixture(s, *plan); }}}, digest);
    }
    return engine;
  }
  if (backend == "analytic") refuse("backend: expected auto, openvino or onnxruntime for a plan of kind onnx, got \"analytic\"");
  if (engine->start_native(options)) return engine;
  if (engine->spec_.network.kind == kTensorRt) {
    throw Error(Code::kDevice, "device: expected a GPU for a compiled engine, got " + engine->device_name() +
                                   (engine->skipped_.empty() ? "" : ": " + engine->skipped_));
  }
  if (engine->start_functions(options, section_digest(*plan, engine->spec_.network.section))) return engine;
  if (engine->device_ != nullptr && text(options.device, "auto") == "auto") {  // only engines could have used it, and none can
    engine->device_ = nullptr;
    engine->set_defaults(options);
  }
  if (engine->device_ != nullptr) {
    throw Error(Code::kBackend, "backend: expected one that runs this plan on " + engine->device_name() + ", got none (backend \"" +
                                    backend + "\"): give device_denoisers, build engines" + engine->build_command("") +
                                    ", or take device \"cpu\"" + (engine->skipped_.empty() ? "" : "; " + engine->skipped_));
  }
  if (backend == "torch" || backend == kTensorRt) {
    refuse("backend: expected auto, openvino or onnxruntime on the CPU, got \"" + backend + "\", which runs on GPUs" +
           (engine->skipped_.empty() ? "" : ": " + engine->skipped_));
  }
  engine->start_onnx(options);
  return engine;
}

void Engine::start_onnx(const ddpm_rt_engine_options& options) {
  const struct {
    const char* name;
    Maker make;
    std::string library;
  } kBackends[] = {{"openvino", &make_openvino, text(options.openvino_library, "")},
                   {"onnxruntime", &make_onnxruntime, text(options.onnxruntime_library, "")}};
  const std::string wanted = text(options.backend, "auto"), precision = text(options.precision, "auto");
  std::vector<std::string> precisions{precision};
  if (precision == "auto") precisions = cpu_has_amx_bf16() ? std::vector<std::string>{"bf16", "fp32"} : std::vector<std::string>{"fp32"};

  for (const auto& backend : kBackends) {
    if (wanted != "auto" && wanted != backend.name) continue;
    std::vector<Candidate> candidates;
    for (const std::string& p : precisions) {
      const BackendOptions o{p, threads_, backend.library};
      candidates.push_back({p, [source = source_.get(), make = backend.make, o] { return make(source->spec, *source->plan, o); }});
    }
    while (!candidates.empty()) {
      try {
        return start(candidates, section_digest(*plan_, spec_.network.section));
      } catch (const Error& e) {
        const bool is_last = candidates.size() == 1;
        if (e.code() != Code::kBackend || (wanted != "auto" && is_last)) throw;
        if (is_last) skipped_ += (skipped_.empty() ? "" : "; ") + std::string(backend.name) + ": " + e.what();
        candidates.erase(candidates.begin());
      }
    }
  }
  throw Error(Code::kBackend, "backend: expected openvino or onnxruntime to run this plan, got neither: " + skipped_);
}

std::unique_ptr<Engine> Engine::from_callable(const std::string& manifest, const std::vector<double>& alpha_bar,
                                              DenoiseFn fn, const ddpm_rt_engine_options& options) {
  ModelSpec spec = parse_manifest(manifest, nullptr, &alpha_bar);
  std::unique_ptr<Engine> engine(new Engine(std::move(spec), nullptr, options));
  const ModelSpec& s = engine->spec_;
  std::string identity = manifest;
  identity.append(reinterpret_cast<const char*>(alpha_bar.data()), alpha_bar.size() * sizeof(double));
  if (engine->start_functions(options, hex(sha256(identity.data(), identity.size())))) return engine;
  if (engine->device_ != nullptr) {
    refuse("device: expected cpu for a function over host memory, got " + engine->device_name() + ": give device_denoisers");
  }
  if (!fn) throw Error(Code::kDevice, "device: expected a GPU for device_denoisers, got none: " + (engine->skipped_.empty() ? "device is cpu" : engine->skipped_));
  engine->start({{"fp32", [&s, fn = std::move(fn)] { return make_callable(s, fn); }}},
                hex(sha256(identity.data(), identity.size())));
  return engine;
}

void Engine::start(std::vector<Candidate> candidates, const std::string& digest) {
  digest_ = digest;
  RunnerOptions options;
  options.max_batch = max_batch_;
  options.threads = threads_;
  options.batch_invariant = batch_invariant_;
  options.cache_dir = cache_dir_;
  options.digest = digest;
  options.log = log_;
  source_->candidates = std::move(candidates);
  source_->options = std::move(options);
  lane_ = std::make_unique<Lane>(source_);
}

std::string Engine::fingerprint(const std::string& report) const {
  const auto json = nlohmann::json::parse(report);
  const std::string parts = json["network"].dump() + "\n" + digest_ + "\n" + json["precision"].get<std::string>() + "\n" +
                            device_class() + "\n" + (batch_invariant_ ? "invariant" : "free") + "\nrow " +
                            std::to_string(kRowVersion) + "\nrng " + std::to_string(kRngVersion);
  return hex(sha256(parts.data(), parts.size()));
}

void Engine::expect_parent() const {
  if (!in_child()) return;
  throw Error(Code::kDevice, "engine: expected the process that opened it, got a forked child; open another engine there");
}

std::string Engine::info() const {
  expect_parent();
  const std::string report = lane_->report();
  auto json = nlohmann::json::parse(report);
  const auto& network = json["network"];
  json["backend"] = network.is_object() ? network.value("backend", "") : "";
  json["backend_version"] = network.is_object() ? network.value("version", "") : "";
  json["backend_skipped"] = skipped_;
  json["version"] = DDPM_RT_VERSION;
  json["device"] = device_name();
  json["gpu"] = nlohmann::json::parse(device_facts());
  json["isa"] = isa_class();
  json["threads"] = threads_;
  json["max_batch"] = max_batch_;
  json["batch_invariant"] = batch_invariant_;
  json["cache_dir"] = cache_dir_;
  json["name"] = spec_.name;
  json["shape"] = spec_.shape;
  json["role"] = spec_.role;
  json["range"] = {spec_.data_lo, spec_.data_hi};
  json["num_classes"] = spec_.num_classes;
  json["class_names"] = spec_.class_names;
  json["prediction"] = spec_.prediction.type;
  json["variance"] = spec_.prediction.variance;
  json["classifier"] = spec_.has_classifier;
  json["conditions"] = conditions_json(spec_.conditions);
  const Level least = level_at(spec_.schedule, last_time(spec_.schedule)), most = level_at(spec_.schedule, first_time(spec_.schedule));
  json["schedule"] = {{"kind", spec_.schedule.kind},
                      {"T", spec_.schedule.T()},
                      {"alpha_bar_first", least.alpha * least.alpha},
                      {"alpha_bar_last", most.alpha * most.alpha}};
  if (spec_.schedule.is_discrete()) {  // exactly as given
    json["schedule"]["alpha_bar_first"] = spec_.schedule.alpha_bar.front();
    json["schedule"]["alpha_bar_last"] = spec_.schedule.alpha_bar.back();
  }
  const SolverOptions& d = spec_.resolved;
  json["defaults"] = {{"sampler", d.sampler}, {"steps", d.steps}, {"scale", spec_.default_scale}, {"eta", d.eta},
                      {"clip", d.clip},       {"grid", d.grid},   {"variance", d.variance},
                      {"guidance_rescale", d.guidance.rescale}, {"classifier_scale", d.guidance.classifier_scale},
                      {"compat", d.compat}};
  json["defaults"]["sampler_options"] = {{"final_sigma", d.final_sigma}, {"steps_offset", d.steps_offset}, {"s_churn", d.s_churn}};
  if (std::isfinite(d.lambda_min)) json["defaults"]["sampler_options"]["lambda_min"] = d.lambda_min;
  if (!std::isnan(d.guidance.threshold_p)) json["defaults"]["threshold"] = {d.guidance.threshold_p, d.guidance.threshold_cap};
  json["row_version"] = kRowVersion;
  json["rng_version"] = kRngVersion;
  json["fingerprint"] = fingerprint(report);
  const LaneBase::Stats s = lane_->stats();
  json["loop"] = {{"ticks", s.ticks},
                  {"evaluations", s.evaluations},
                  {"images", s.images},
                  {"busy_seconds", s.tick_seconds},
                  {"denoiser_seconds", s.run_seconds + s.embed_seconds},
                  {"embed_seconds", s.embed_seconds}};
  return json.dump();
}

}  // namespace ddpm_rt
