// Engine and Request for Python.
#include <pybind11/stl.h>

#include <limits>
#include <memory>

#include "bindings_callbacks.h"

#ifdef _WIN32
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

namespace {

class Request {
 public:
  Request(ddpm_rt_request* handle, py::array out, std::unique_ptr<PythonCallback> callback)
      : handle_(handle), out_(std::move(out)), callback_(std::move(callback)), pid_(getpid()) {}
  ~Request() {
    if (pid_ != getpid()) return;  // a forked child has no engine thread to wait for
    unlocked([this] {
      ddpm_rt_request_release(handle_);
      return 0;
    });
  }
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  bool wait(double seconds) {
    const ddpm_rt_status status = unlocked([&] { return ddpm_rt_request_wait(handle_, seconds); });
    if (status == DDPM_RT_PENDING) return false;
    check(status);
    return true;
  }
  void cancel() {
    unlocked([this] {
      ddpm_rt_request_cancel(handle_);
      return 0;
    });
  }
  py::tuple progress() const {
    int64_t row = 0, rows = 0;
    unlocked([&] {
      ddpm_rt_request_progress(handle_, &row, &rows);
      return 0;
    });
    return py::make_tuple(row, rows);
  }
  py::dict result() const {
    ddpm_rt_result r{};
    r.struct_size = sizeof r;
    check(ddpm_rt_request_result(handle_, &r));
    const Shape column{static_cast<py::ssize_t>(r.n)};
    py::tuple bad(r.bad_count);
    for (size_t i = 0; i < r.bad_count; ++i) bad[i] = r.bad[i];
    return py::dict(py::arg("labels") = copied(column, r.labels), py::arg("seeds") = copied(column, r.seeds),
                    py::arg("bad") = bad, py::arg("nfe") = r.nfe, py::arg("seconds") = r.seconds);
  }
  py::object callback_error() const { return callback_ ? callback_->error : py::none(); }

 private:
  ddpm_rt_request* handle_;
  py::array out_;  // the engine writes it until the request is released
  std::unique_ptr<PythonCallback> callback_;
  int pid_;
};

class Engine {
 public:
  static std::unique_ptr<Engine> open(const std::string& path, const py::dict& options) {
    auto engine = std::make_unique<Engine>();
    const Options o(options);
    ddpm_rt_engine* handle = nullptr;
    check(unlocked([&] { return ddpm_rt_engine_open(path.c_str(), &o.c, &handle); }));
    engine->own(handle);
    return engine;
  }

  static std::unique_ptr<Engine> from_callable(const std::string& manifest, const DoubleArray& alpha_bar, py::object fn,
                                               const Shape& shape, const py::dict& options) {
    auto engine = std::make_unique<Engine>();
    engine->denoiser_ = std::make_unique<PythonDenoiser>();
    engine->denoiser_->fn = std::move(fn);
    engine->denoiser_->shape = shape;
    engine->denoiser_->inside = &engine->inside_;
    const Options o(options);
    ddpm_rt_engine* handle = nullptr;
    const double* data = alpha_bar.data();
    const size_t T = static_cast<size_t>(alpha_bar.size());
    check(unlocked([&] {
      return ddpm_rt_engine_from_callable(manifest.c_str(), data, T, &PythonDenoiser::call, engine->denoiser_.get(), &o.c,
                                          &handle);
    }));
    engine->own(handle);
    return engine;
  }

  // From inside its own callable the threads cannot be joined: the handle is then left to the end of the process.
  ~Engine() {
    if (is_inside()) {
      new std::shared_ptr<ddpm_rt_engine>(std::move(handle_));
      (void)denoiser_.release();
    } else {
      release();
    }
  }

  void close() {
    if (is_inside())
      raise_error(DDPM_RT_OPTION_ERROR, "engine: expected close() from elsewhere, got it from inside its own callable");
    release();
  }

  std::string info() const {
    const auto handle = get();
    ddpm_rt_string* json = nullptr;
    check(unlocked([&] { return ddpm_rt_engine_info(handle.get(), &json); }));
    std::string text = ddpm_rt_string_data(json);
    ddpm_rt_string_release(json);
    return text;
  }

  std::unique_ptr<Request> submit(py::array out, const Shape& shape, int64_t n, std::optional<Int64Array> labels,
                                  std::optional<double> scale, std::optional<std::string> sampler,
                                  std::optional<int32_t> steps, std::optional<double> eta, std::optional<std::string> clip,
                                  std::optional<std::string> variance, std::optional<std::string> grid,
                                  std::optional<uint64_t> seed, std::optional<UInt64Array> seeds,
                                  std::optional<FloatArray> latents, std::optional<FloatArray> x_init, int32_t output,
                                  bool keep_nonfinite, py::object callback) {
    if (is_inside())
      raise_error(DDPM_RT_OPTION_ERROR, "engine: expected another engine, got sample() from inside this one's own callable");
    const auto handle = get();
    constexpr double kPlans = std::numeric_limits<double>::quiet_NaN();
    ddpm_rt_sample_options o;
    ddpm_rt_sample_options_init(&o, sizeof o);
    o.n = n;
    o.labels = labels ? labels->data() : nullptr;
    o.label_count = labels ? static_cast<size_t>(labels->size()) : 0;
    o.scale = scale.value_or(kPlans);
    o.sampler = text_or_null(sampler);
    o.steps = steps.value_or(0);
    o.eta = eta.value_or(kPlans);
    o.clip = text_or_null(clip);
    o.variance = text_or_null(variance);
    o.grid = text_or_null(grid);
    o.has_seed = seed.has_value();
    o.seed = seed.value_or(0);
    o.seeds = seeds ? seeds->data() : nullptr;
    o.seed_count = seeds ? static_cast<size_t>(seeds->size()) : 0;
    o.latents = latents ? latents->data() : nullptr;
    o.latent_elements = latents ? static_cast<size_t>(latents->size()) : 0;
    o.x_init = x_init ? x_init->data() : nullptr;
    o.x_init_elements = x_init ? static_cast<size_t>(x_init->size()) : 0;
    o.output = output;
    o.keep_nonfinite = keep_nonfinite;
    std::unique_ptr<PythonCallback> trampoline;
    if (!callback.is_none()) {
      trampoline = std::make_unique<PythonCallback>();
      trampoline->fn = std::move(callback);
      trampoline->shape = shape;
      trampoline->inside = &inside_;
      o.callback = &PythonCallback::call;
      o.callback_user = trampoline.get();
    }
    void* data = out.mutable_data();
    const size_t bytes = static_cast<size_t>(out.nbytes());
    ddpm_rt_request* request = nullptr;
    check(unlocked([&] { return ddpm_rt_engine_submit(handle.get(), &o, data, bytes, &request); }));
    return std::make_unique<Request>(request, std::move(out), std::move(trampoline));
  }

  // What the denoiser raised last, if `message` (of a BackendError) tells of it; None otherwise.
  py::object denoiser_error(const std::string& message) const {
    if (!denoiser_ || denoiser_->message.empty() || message.find(denoiser_->message) == std::string::npos) return py::none();
    return denoiser_->error;
  }
  void forget_denoiser_error() {  // its traceback keeps the frames' arrays alive
    if (denoiser_) denoiser_->error = py::none();
  }

 private:
  // Owns the texts that the C struct points to.
  struct Options {
    explicit Options(const py::dict& d) {
      ddpm_rt_engine_options_init(&c, sizeof c);
      const std::pair<const char*, const char**> texts[] = {{"device", &c.device},
                                                            {"backend", &c.backend},
                                                            {"precision", &c.precision},
                                                            {"cache_dir", &c.cache_dir},
                                                            {"openvino_library", &c.openvino_library},
                                                            {"onnxruntime_library", &c.onnxruntime_library}};
      owned.reserve(std::size(texts));  // no reallocation: c points into it
      for (const auto& [name, field] : texts)
        if (d.contains(name) && !d[name].is_none()) *field = owned.emplace_back(py::cast<std::string>(d[name])).c_str();
      const std::pair<const char*, int32_t*> numbers[] = {
          {"threads", &c.threads}, {"max_batch", &c.max_batch}, {"batch_invariant", &c.batch_invariant}};
      for (const auto& [name, field] : numbers)
        if (d.contains(name) && !d[name].is_none()) *field = py::cast<int32_t>(d[name]);
      c.log = &log_to_python;
    }
    Options(const Options&) = delete;
    Options& operator=(const Options&) = delete;
    ddpm_rt_engine_options c;
    std::vector<std::string> owned;
  };

  bool is_inside() const { return inside_ == std::this_thread::get_id(); }
  void release() {
    std::shared_ptr<ddpm_rt_engine> handle = std::move(handle_);
    unlocked([&] {
      handle.reset();  // joins the engine's threads, which may be waiting for the GIL
      return 0;
    });
  }

  // A call in progress holds the handle, so that close() on another thread cannot pull it away.
  void own(ddpm_rt_engine* handle) {
    handle_ = std::shared_ptr<ddpm_rt_engine>(handle, [pid = getpid()](ddpm_rt_engine* engine) {
      if (pid != getpid()) return;  // a forked child must not join threads it does not have
      if (PyGILState_Check()) {
        py::gil_scoped_release release;
        ddpm_rt_engine_release(engine);
      } else {
        ddpm_rt_engine_release(engine);
      }
    });
  }
  std::shared_ptr<ddpm_rt_engine> get() const {
    if (!handle_) raise_error(DDPM_RT_DEVICE_ERROR, "engine: expected an open engine, got a closed one");
    return handle_;
  }

  InsideThread inside_{};
  std::unique_ptr<PythonDenoiser> denoiser_;
  std::shared_ptr<ddpm_rt_engine> handle_;
};

}  // namespace

void bind_engine(py::module_& m) {
  using py::arg;
  py::class_<Request>(m, "Request")
      .def("wait", &Request::wait, arg("seconds"))
      .def("cancel", &Request::cancel)
      .def("progress", &Request::progress)
      .def("result", &Request::result)
      .def_property_readonly("callback_error", &Request::callback_error);
  py::class_<Engine>(m, "Engine")
      .def_static("open", &Engine::open, arg("path"), arg("options"))
      .def_static("from_callable", &Engine::from_callable, arg("manifest"), arg("alpha_bar"), arg("fn"), arg("shape"),
                  arg("options"))
      .def("close", &Engine::close)
      .def("info", &Engine::info)
      .def("submit", &Engine::submit, py::keep_alive<0, 1>(), arg("out").noconvert(), arg("shape"), py::kw_only(), arg("n"),
           arg("labels").noconvert(), arg("scale"), arg("sampler"), arg("steps"), arg("eta"), arg("clip"), arg("variance"),
           arg("grid"), arg("seed"), arg("seeds").noconvert(), arg("latents").noconvert(), arg("x_init").noconvert(),
           arg("output"), arg("keep_nonfinite"), arg("callback"))
      .def("denoiser_error", &Engine::denoiser_error, arg("message"))
      .def("forget_denoiser_error", &Engine::forget_denoiser_error);
}
