// C API: engines and requests.
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "capi_edge.h"
#include "device_denoiser.h"
#include "engine.h"

using ddpm_rt::Code;
using ddpm_rt::Error;
using ddpm_rt::expect_given;
using ddpm_rt::guarded;

struct ddpm_rt_engine {
  std::unique_ptr<ddpm_rt::Engine> engine;
};
struct ddpm_rt_request {
  std::shared_ptr<ddpm_rt::Request> request;
  std::vector<int64_t> bad;  // filled once, by the first ddpm_rt_request_result
  std::once_flag bad_filled;
};

const ddpm_rt::Engine& ddpm_rt::engine_of(const ddpm_rt_engine* handle) { return *handle->engine; }

namespace {

ddpm_rt_status status_of(const ddpm_rt::Request& request) {
  const int status = request.status();
  if (status == 0) return DDPM_RT_OK;
  return ddpm_rt::set_last_error(static_cast<ddpm_rt_status>(status), request.message().c_str());
}

}  // namespace

extern "C" {

void ddpm_rt_engine_options_init(ddpm_rt_engine_options* options, size_t struct_size) {
  ddpm_rt_engine_options full{};
  full.device = full.backend = full.precision = "auto";
  full.batch_invariant = -1;
  ddpm_rt::write_struct(full, options, struct_size);
}

void ddpm_rt_device_denoiser_init(ddpm_rt_device_denoiser* denoiser, size_t struct_size) {
  ddpm_rt_device_denoiser full{};
  full.name = "functions";
  full.version = "";
  full.precision = "fp32";
  ddpm_rt::write_struct(full, denoiser, struct_size);
}

void ddpm_rt_condition_init(ddpm_rt_condition* condition, size_t struct_size) {
  ddpm_rt_condition full{};
  full.count = 1;
  ddpm_rt::write_struct(full, condition, struct_size);
}

void ddpm_rt_sample_options_init(ddpm_rt_sample_options* options, size_t struct_size) {
  ddpm_rt_sample_options full{};
  full.n = 1;
  full.scale = full.eta = std::numeric_limits<double>::quiet_NaN();
  full.guidance_rescale = full.guidance_interval_lo = full.guidance_interval_hi = full.eta;
  full.threshold_p = full.threshold_cap = full.classifier_scale = full.eta;
  full.init_sigma = 1;
  full.strength = full.eta;
  ddpm_rt::write_struct(full, options, struct_size);
}

ddpm_rt_status ddpm_rt_device_info(const char* device, const char* cuda_library, ddpm_rt_string** json) {
  return guarded([&] {
    expect_given(json, "json");
    *json = nullptr;
    expect_given(device, "device");
    *json = new ddpm_rt_string{ddpm_rt::device_info(device, cuda_library != nullptr ? cuda_library : "")};
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_engine_open(const char* plan_path, const ddpm_rt_engine_options* options, ddpm_rt_engine** engine) {
  return guarded([&] {
    expect_given(engine, "engine");
    *engine = nullptr;
    expect_given(plan_path, "plan_path");
    const auto read = ddpm_rt::read_struct(options, "engine_options", &ddpm_rt_engine_options_init);
    *engine = new ddpm_rt_engine{ddpm_rt::Engine::open(plan_path, read)};
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_engine_from_callable(const char* manifest_json, const double* alpha_bar, size_t T,
                                            ddpm_rt_denoise_fn fn, void* user, const ddpm_rt_engine_options* options,
                                            ddpm_rt_engine** engine) {
  return guarded([&] {
    expect_given(engine, "engine");
    *engine = nullptr;
    expect_given(manifest_json, "manifest_json");
    if (T > 0) expect_given(alpha_bar, "alpha_bar");
    const auto read = ddpm_rt::read_struct(options, "engine_options", &ddpm_rt_engine_options_init);
    if (fn == nullptr && read.device_denoiser_count == 0) throw Error(Code::kOption, "fn: expected a function, got null");
    const ddpm_rt::DenoiseFn denoise = fn == nullptr ? ddpm_rt::DenoiseFn() : [fn, user](const float* x, const float* t, const int64_t* label, size_t count, float* out) {
      const char* message = fn(user, x, t, label, count, out);
      if (message != nullptr) throw Error(Code::kBackend, message);
    };
    *engine = new ddpm_rt_engine{
        ddpm_rt::Engine::from_callable(manifest_json, std::vector<double>(alpha_bar, alpha_bar + T), denoise, read)};
    return DDPM_RT_OK;
  });
}

void ddpm_rt_engine_release(ddpm_rt_engine* engine) {
  if (engine == nullptr) return;
  // A forked child has no lane to join, and a lane cannot join itself: both leave the memory to the process's end.
  if (engine->engine->in_child() || engine->engine->is_lane_thread()) return;
  delete engine;
}

ddpm_rt_status ddpm_rt_tensorrt_examine(const char* tensorrt_library, const void* engine, size_t bytes, ddpm_rt_string** json) {
  return guarded([&] {
    expect_given(json, "json");
    const uint8_t* data = static_cast<const uint8_t*>(engine);
    const std::vector<uint8_t> copy(data, data + (engine != nullptr ? bytes : 0));
    const std::string library = tensorrt_library != nullptr ? tensorrt_library : "";
    *json = new ddpm_rt_string{ddpm_rt::examine_tensorrt(library, engine != nullptr ? &copy : nullptr)};
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_engine_info(ddpm_rt_engine* engine, ddpm_rt_string** json) {
  return guarded([&] {
    expect_given(engine, "engine");
    expect_given(json, "json");
    *json = new ddpm_rt_string{engine->engine->info()};
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_engine_model(ddpm_rt_engine* engine, ddpm_rt_string** json) {
  return guarded([&] {
    expect_given(engine, "engine");
    expect_given(json, "json");
    *json = new ddpm_rt_string{engine->engine->model()};
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_engine_submit(ddpm_rt_engine* engine, const ddpm_rt_sample_options* options, void* out,
                                     size_t out_bytes, ddpm_rt_request** request) {
  return guarded([&] {
    expect_given(engine, "engine");
    expect_given(request, "request");
    *request = nullptr;
    const auto read = ddpm_rt::read_struct(options, "sample_options", &ddpm_rt_sample_options_init);
    auto handle = std::make_unique<ddpm_rt_request>();
    handle->request = engine->engine->submit(read, out, out_bytes);
    *request = handle.release();
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_request_wait(ddpm_rt_request* request, double seconds) {
  return guarded([&] {
    expect_given(request, "request");
    if (std::isnan(seconds)) throw Error(Code::kOption, "seconds: expected a number, got nan");
    return request->request->wait(seconds) ? status_of(*request->request) : DDPM_RT_PENDING;
  });
}

void ddpm_rt_request_cancel(ddpm_rt_request* request) {
  if (request != nullptr) request->request->cancel();
}

void ddpm_rt_request_progress(const ddpm_rt_request* request, int64_t* row, int64_t* rows) {
  if (row != nullptr) *row = request != nullptr ? request->request->rows_done() : 0;
  if (rows != nullptr) *rows = request != nullptr ? request->request->rows_total() : 0;
}

ddpm_rt_status ddpm_rt_request_result(const ddpm_rt_request* request, ddpm_rt_result* result) {
  return guarded([&] {
    expect_given(request, "request");
    expect_given(result, "result");
    if (result->struct_size < sizeof(size_t)) {
      throw Error(Code::kOption, "result.struct_size: expected the struct's size, got " + std::to_string(result->struct_size));
    }
    const ddpm_rt::Request& r = *request->request;
    if (!r.is_finished()) throw Error(Code::kOption, "request: expected a finished one, got one that is running");
    auto* handle = const_cast<ddpm_rt_request*>(request);
    std::call_once(handle->bad_filled, [&] { handle->bad = r.bad(); });
    ddpm_rt_result full{};
    full.n = r.spec().n;
    full.labels = r.result_labels().data();
    full.seeds = r.spec().seeds.data();
    full.bad = request->bad.data();
    full.bad_count = request->bad.size();
    full.nfe = r.spec().nfe;
    full.seconds = r.seconds();
    full.steps = r.spec().table->steps;
    if (r.status() == 0 && !r.x0().empty()) full.x0 = r.x0().data(), full.x0_elements = r.x0().size();
    ddpm_rt::write_struct(full, result, result->struct_size);
    return DDPM_RT_OK;
  });
}

void ddpm_rt_request_release(ddpm_rt_request* request) {
  if (request == nullptr || request->request->in_child()) return;  // a child may hold a copy of a locked mutex
  request->request->cancel();
  request->request->let_go();
  delete request;
}

ddpm_rt_status ddpm_rt_engine_sample(ddpm_rt_engine* engine, const ddpm_rt_sample_options* options, void* out,
                                     size_t out_bytes) {
  ddpm_rt_request* request = nullptr;
  ddpm_rt_status status = ddpm_rt_engine_submit(engine, options, out, out_bytes, &request);
  if (status == DDPM_RT_OK) status = ddpm_rt_request_wait(request, -1);
  ddpm_rt_request_release(request);
  return status;
}

}  // extern "C"
