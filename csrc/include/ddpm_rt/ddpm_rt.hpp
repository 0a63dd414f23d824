// ddpm_rt for C++17: header-only owners and exceptions over the C API (ddpm_rt.h is the manual).
//
//   #include <ddpm_rt/ddpm_rt.hpp>
//   #include <cstdio>
//
//   int main(int argc, char** argv) {
//     ddpm_rt::Engine engine(argc > 1 ? argv[1] : "digits.plan");
//     ddpm_rt::SampleOptions options;
//     options.n = 4;
//     options.seed = 0;
//     std::vector<unsigned char> images(4 * 28 * 28);
//     ddpm_rt::Result result = engine.sample(options, images.data(), images.size());
//     for (std::int64_t label : result.labels) std::printf("%d ", static_cast<int>(label));
//     std::FILE* file = std::fopen("digits.pgm", "wb");
//     std::fprintf(file, "P5 28 %d 255\n", 4 * 28);
//     return std::fwrite(images.data(), images.size(), 1, file) == 1 && std::fclose(file) == 0 ? 0 : 1;
//   }
//
// Owners are move-only. Every function throws ddpm_rt::Exception; what a callback throws is thrown again by wait().
#ifndef DDPM_RT_DDPM_RT_HPP_
#define DDPM_RT_DDPM_RT_HPP_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ddpm_rt.h"

namespace ddpm_rt {
inline namespace v0 {

class Exception : public std::runtime_error {
 public:
  Exception(ddpm_rt_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  ddpm_rt_status status() const noexcept { return status_; }

 private:
  ddpm_rt_status status_;
};

inline void check(ddpm_rt_status status) {
  if (status != DDPM_RT_OK) throw Exception(status, ddpm_rt_last_error());
}

inline std::string take(ddpm_rt_string* owned) {
  std::unique_ptr<ddpm_rt_string, void (*)(ddpm_rt_string*)> holder(owned, &ddpm_rt_string_release);
  return ddpm_rt_string_data(owned);
}

inline std::string version() { return ddpm_rt_version(); }

// JSON; empty library: as installed.
inline std::string device_info(const std::string& device, const std::string& cuda_library = "") {
  ddpm_rt_string* json = nullptr;
  check(ddpm_rt_device_info(device.c_str(), cuda_library.empty() ? nullptr : cuda_library.c_str(), &json));
  return take(json);
}

struct EngineOptions {
  std::string device = "auto", backend = "auto", precision = "auto";
  int threads = 0, max_batch = 0;
  std::optional<bool> batch_invariant;
  std::optional<std::string> cache_dir;  // unset: the user's cache folder; empty: none
  std::string openvino_library, onnxruntime_library, cuda_library, tensorrt_library;
  bool trust_native = false;  // load the engines (machine code) that the plan embeds
  std::vector<const ddpm_rt_device_denoiser*> device_denoisers;  // read by the constructor
  std::function<void(int level, const std::string& message)> log;  // called from the engine's threads
};

// Unset or empty: the plan's. Arrays are copied by submit().
class Engine;
struct SampleOptions {
  std::int64_t n = 1;
  std::vector<std::int64_t> labels;  // empty: drawn from the seeds; else 1 or n, -1 is unconditional
  std::optional<double> scale, eta;
  std::string sampler, clip, variance, grid, sampler_options;
  std::optional<std::string> compat;  // unset: the plan's; empty: none
  const void* rows = nullptr;         // a table of one's own
  std::size_t row_count = 0;
  double init_sigma = 1;
  std::optional<double> guidance_rescale, classifier_scale;
  std::optional<std::pair<double, double>> guidance_interval, threshold;  // (lo, hi], sigma / alpha; (p, cap)
  std::vector<std::int64_t> negative;  // labels in place of the null label, 1 or n
  Engine* guide = nullptr;             // autoguidance; must outlive the request
  std::vector<const ddpm_rt_condition*> conditions, negative_conditions;  // every one of the plan's; in place of null values
  int steps = 0;
  std::optional<std::uint64_t> seed;
  std::vector<std::uint64_t> seeds;
  const float* latents = nullptr;  // [n, elements]
  std::size_t latent_elements = 0;
  const float* x_init = nullptr;   // [n, elements]
  std::size_t x_init_elements = 0;
  const float* image = nullptr;    // [n or 1, elements]: what strength starts from, what mask keeps
  std::size_t image_elements = 0;
  std::optional<double> strength;
  const float* mask = nullptr;     // [n or 1, elements]: 1 keeps
  std::size_t mask_elements = 0;
  int jump_length = 0, resamples = 0;  // of mask; 0: 10
  int invert = 0;                  // evaluations at each level of DDIM backwards; x_init are pictures
  int x0_every = 0;                // keeps the predictions of every k-th evaluation
  ddpm_rt_output output = DDPM_RT_UINT8_NHWC;
  bool keep_nonfinite = false;
  bool out_on_device = false;  // `out` is memory of the engine's GPU
  // After every tick, on the engine's thread; x0 is [images, elements]. False stops.
  std::function<bool(std::int64_t row, std::int64_t rows, const float* x0, std::size_t images)> callback;
};

// The C struct; it points into `o`. Callbacks are left out.
inline ddpm_rt_sample_options c_options(const SampleOptions& o);

struct Result {
  std::vector<std::int64_t> labels;  // [n], -1 unconditional
  std::vector<std::uint64_t> seeds;  // [n]
  std::vector<std::int64_t> bad;     // images that are not finite
  std::int64_t nfe = 0;
  double seconds = 0;
  std::int64_t steps = 0;
  std::vector<float> x0;             // [n, predictions, elements] with x0_every
};

// eps = fn(x, t, label) for `count` samples. label is null for models without classes. May throw.
using DenoiseFunction = std::function<void(const float* x, const float* t, const std::int64_t* label, std::size_t count,
                                           float* out)>;

class Request {
 public:
  // False: not finished within `seconds` (negative: for ever). Throws what the request or its callback came to.
  bool wait(double seconds = -1) {
    const ddpm_rt_status status = ddpm_rt_request_wait(handle_.get(), seconds);
    if (status == DDPM_RT_PENDING) return false;
    if (status == DDPM_RT_CANCELLED && watcher_ && watcher_->error) std::rethrow_exception(watcher_->error);
    check(status);
    return true;
  }
  void cancel() { ddpm_rt_request_cancel(handle_.get()); }
  std::pair<std::int64_t, std::int64_t> progress() const {
    std::pair<std::int64_t, std::int64_t> p;
    ddpm_rt_request_progress(handle_.get(), &p.first, &p.second);
    return p;
  }
  Result result() const {
    ddpm_rt_result r{};
    r.struct_size = sizeof r;
    check(ddpm_rt_request_result(handle_.get(), &r));
    const auto n = static_cast<std::size_t>(r.n);
    return {{r.labels, r.labels + n}, {r.seeds, r.seeds + n}, {r.bad, r.bad + r.bad_count}, r.nfe, r.seconds, r.steps, {r.x0, r.x0 + r.x0_elements}};
  }
  ddpm_rt_request* get() const { return handle_.get(); }

 private:
  friend class Engine;
  struct Watcher {
    decltype(SampleOptions::callback) call;
    std::exception_ptr error;  // written before the request is finished, read after
    static int run(void* user, std::int64_t row, std::int64_t rows, const float* x0, std::size_t images) {
      auto& self = *static_cast<Watcher*>(user);
      try {
        return self.call(row, rows, x0, images) ? 0 : 1;
      } catch (...) {
        self.error = std::current_exception();
        return 1;
      }
    }
  };
  struct Release { void operator()(ddpm_rt_request* request) const { ddpm_rt_request_release(request); } };
  Request() = default;
  std::unique_ptr<Watcher> watcher_;  // outlives handle_, whose release waits for the callback
  std::unique_ptr<ddpm_rt_request, Release> handle_;
};

class Engine {
 public:
  explicit Engine(const std::string& plan_path, const EngineOptions& options = {}) {
    ddpm_rt_engine* engine = nullptr;
    const ddpm_rt_engine_options c = convert(options);
    check(ddpm_rt_engine_open(plan_path.c_str(), &c, &engine));
    handle_.reset(engine);
  }
  // The same loop over a function of the host's; manifest: JSON with sample, prediction, time, num_classes, defaults. An
  // empty fn: options.device_denoisers run.
  Engine(const std::string& manifest, const std::vector<double>& alpha_bar, DenoiseFunction fn,
         const EngineOptions& options = {})
      : denoiser_(std::make_unique<Denoiser>()) {
    denoiser_->call = std::move(fn);
    ddpm_rt_engine* engine = nullptr;
    const ddpm_rt_engine_options c = convert(options);
    check(ddpm_rt_engine_from_callable(manifest.c_str(), alpha_bar.data(), alpha_bar.size(),
                                       denoiser_->call ? &Denoiser::run : nullptr, denoiser_.get(), &c, &engine));
    handle_.reset(engine);
  }

  // `out` must live until the request is finished or released. Never waits for the network.
  Request submit(const SampleOptions& o, void* out, std::size_t out_bytes) {
    ddpm_rt_sample_options c = c_options(o);
    Request request;
    if (o.callback) {
      request.watcher_ = std::make_unique<Request::Watcher>();
      request.watcher_->call = o.callback;
      c.callback = &Request::Watcher::run;
      c.callback_user = request.watcher_.get();
    }
    ddpm_rt_request* handle = nullptr;
    check(ddpm_rt_engine_submit(handle_.get(), &c, out, out_bytes, &handle));
    request.handle_.reset(handle);
    return request;
  }

  Result sample(const SampleOptions& options, void* out, std::size_t out_bytes) {
    Request request = submit(options, out, out_bytes);
    request.wait();
    return request.result();
  }

  std::string info() const {  // JSON
    ddpm_rt_string* json = nullptr;
    check(ddpm_rt_engine_info(handle_.get(), &json));
    return take(json);
  }
  std::string model() const {  // JSON for ddpm_rt_rows
    ddpm_rt_string* json = nullptr;
    check(ddpm_rt_engine_model(handle_.get(), &json));
    return take(json);
  }
  ddpm_rt_engine* get() const { return handle_.get(); }

 private:
  struct Denoiser {
    DenoiseFunction call;
    std::string message;
    static const char* run(void* user, const float* x, const float* t, const std::int64_t* label, std::size_t count,
                           float* out) {
      auto& self = *static_cast<Denoiser*>(user);
      try {
        self.call(x, t, label, count, out);
        return nullptr;
      } catch (const std::exception& e) {
        self.message = e.what();
      } catch (...) {
        self.message = "denoiser: threw something that is not a std::exception";
      }
      return self.message.c_str();
    }
  };
  struct Release { void operator()(ddpm_rt_engine* engine) const { ddpm_rt_engine_release(engine); } };
  using Log = decltype(EngineOptions::log);

  ddpm_rt_engine_options convert(const EngineOptions& o) {
    ddpm_rt_engine_options c;
    ddpm_rt_engine_options_init(&c, sizeof c);
    c.device = o.device.c_str();
    c.backend = o.backend.c_str();
    c.precision = o.precision.c_str();
    c.threads = o.threads;
    c.max_batch = o.max_batch;
    c.batch_invariant = o.batch_invariant ? (*o.batch_invariant ? 1 : 0) : -1;
    c.cache_dir = o.cache_dir ? o.cache_dir->c_str() : nullptr;
    c.openvino_library = o.openvino_library.empty() ? nullptr : o.openvino_library.c_str();
    c.onnxruntime_library = o.onnxruntime_library.empty() ? nullptr : o.onnxruntime_library.c_str();
    c.cuda_library = o.cuda_library.empty() ? nullptr : o.cuda_library.c_str();
    c.device_denoisers = o.device_denoisers.data();
    c.device_denoiser_count = o.device_denoisers.size();
    c.trust_native = o.trust_native ? 1 : 0;
    c.tensorrt_library = o.tensorrt_library.empty() ? nullptr : o.tensorrt_library.c_str();
    if (o.log) {
      log_ = std::make_unique<Log>(o.log);
      c.log_user = log_.get();
      c.log = [](void* user, int level, const char* message) {
        try {
          (*static_cast<Log*>(user))(level, message);
        } catch (...) {  // a failing log handler must not fail a sample
        }
      };
    }
    return c;
  }

  std::unique_ptr<Denoiser> denoiser_;  // both outlive handle_, whose release joins the threads that call them
  std::unique_ptr<Log> log_;
  std::unique_ptr<ddpm_rt_engine, Release> handle_;
};

inline ddpm_rt_sample_options c_options(const SampleOptions& o) {
  ddpm_rt_sample_options c;
  ddpm_rt_sample_options_init(&c, sizeof c);
  const auto text = [](const std::string& s) { return s.empty() ? nullptr : s.c_str(); };
  c.n = o.n;
  c.labels = o.labels.empty() ? nullptr : o.labels.data();
  c.label_count = o.labels.size();
  const auto given = [](const std::optional<double>& from, const char* field, double* to) {
    if (!from) return;
    if (std::isnan(*from)) throw Exception(DDPM_RT_OPTION_ERROR, std::string(field) + ": expected a number, got nan");
    *to = *from;
  };
  const auto pair = [&](const std::optional<std::pair<double, double>>& from, const char* field, double* a, double* b) {
    if (!from) return;
    given(from->first, field, a);
    given(from->second, field, b);
  };
  given(o.scale, "scale", &c.scale);
  given(o.eta, "eta", &c.eta);
  given(o.guidance_rescale, "guidance_rescale", &c.guidance_rescale);
  given(o.classifier_scale, "classifier_scale", &c.classifier_scale);
  pair(o.guidance_interval, "guidance_interval", &c.guidance_interval_lo, &c.guidance_interval_hi);
  pair(o.threshold, "threshold", &c.threshold_p, &c.threshold_cap);
  c.negative = o.negative.empty() ? nullptr : o.negative.data();
  c.negative_count = o.negative.size();
  c.guide = o.guide != nullptr ? o.guide->get() : nullptr;
  c.conditions = o.conditions.data(), c.condition_count = o.conditions.size();
  c.negative_conditions = o.negative_conditions.data(), c.negative_condition_count = o.negative_conditions.size();
  c.sampler = text(o.sampler);
  c.clip = text(o.clip);
  c.variance = text(o.variance);
  c.grid = text(o.grid);
  c.compat = o.compat ? o.compat->c_str() : nullptr;
  c.sampler_options = text(o.sampler_options);
  c.rows = o.rows;
  c.row_count = o.row_count;
  c.init_sigma = o.init_sigma;
  c.steps = o.steps;
  c.has_seed = o.seed.has_value();
  c.seed = o.seed.value_or(0);
  c.seeds = o.seeds.empty() ? nullptr : o.seeds.data();
  c.seed_count = o.seeds.size();
  c.latents = o.latents;
  c.latent_elements = o.latent_elements;
  c.x_init = o.x_init;
  c.x_init_elements = o.x_init_elements;
  c.image = o.image;
  c.image_elements = o.image_elements;
  given(o.strength, "strength", &c.strength);
  c.mask = o.mask;
  c.mask_elements = o.mask_elements;
  c.jump_length = o.jump_length;
  c.resamples = o.resamples;
  c.invert = o.invert;
  c.x0_every = o.x0_every;
  c.output = o.output;
  c.keep_nonfinite = o.keep_nonfinite;
  c.out_on_device = o.out_on_device;
  return c;
}

inline std::vector<double> alpha_bar(const std::string& schedule, std::size_t T = 1000) {
  std::vector<double> values(T);
  check(ddpm_rt_alpha_bar(schedule.c_str(), T, values.data()));
  return values;
}

}  // namespace v0
}  // namespace ddpm_rt

#include "ddpm_rt_plan.hpp"

#endif  // DDPM_RT_DDPM_RT_HPP_
