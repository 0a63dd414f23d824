// Engine and Request for Python.
#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "bindings_device.h"
#include "bindings_options.h"

namespace {

class Request {
 public:
  Request(ddpm_rt::Request request, py::object out, std::shared_ptr<PythonCallback> callback)
      : out_(std::move(out)),
        callback_(std::move(callback)),
        request_(std::make_unique<ddpm_rt::Request>(std::move(request))) {}
  // Releasing waits for a callback in progress, which needs the GIL.
  ~Request() {
    unlocked([this] { request_.reset(); });
  }

  bool wait(double seconds) {
    return unlocked([&] { return request_->wait(seconds); });
  }
  void cancel() {
    unlocked([this] { request_->cancel(); });
  }
  std::pair<int64_t, int64_t> progress() const { return request_->progress(); }
  py::dict result() const {
    const ddpm_rt::Result r = request_->result();
    return py::dict(py::arg("labels") = Int64Array(static_cast<py::ssize_t>(r.labels.size()), r.labels.data()),
                    py::arg("seeds") = UInt64Array(static_cast<py::ssize_t>(r.seeds.size()), r.seeds.data()),
                    py::arg("bad") = py::tuple(py::cast(r.bad)), py::arg("nfe") = r.nfe, py::arg("seconds") = r.seconds,
                    py::arg("steps") = r.steps, py::arg("x0") = FloatArray(static_cast<py::ssize_t>(r.x0.size()), r.x0.data()));
  }

 private:
  py::object out_;  // the engine writes it until the request is finished
  std::shared_ptr<PythonCallback> callback_;  // the last reference to Python objects is dropped here, with the GIL
  std::unique_ptr<ddpm_rt::Request> request_;
};

// The last owner may be a call in progress on any thread, with or without the GIL; what it joins may be waiting for it.
struct Join {
  void operator()(ddpm_rt::Engine* engine) const {
    if (PyGILState_Check()) {
      unlocked([&] { delete engine; });
    } else {
      delete engine;
    }
  }
};

class Engine {
 public:
  static std::unique_ptr<Engine> open(const std::string& path, const py::dict& options, const py::list& networks) {
    auto self = std::make_unique<Engine>();
    const ddpm_rt::EngineOptions o = self->engine_options(options, networks);
    self->engine_.reset(unlocked([&] { return new ddpm_rt::Engine(path, o); }), Join());
    return self;
  }

  static std::unique_ptr<Engine> from_callable(const std::string& manifest, const DoubleArray& alpha_bar,
                                               py::object fn, Shape shape, Shape out_shape, const py::dict& options,
                                               const py::list& networks) {
    auto self = std::make_unique<Engine>();
    const ddpm_rt::EngineOptions o = self->engine_options(options, networks);
    ddpm_rt::DenoiseFunction denoise;
    if (!fn.is_none()) {
      self->denoiser_ = std::make_unique<PythonDenoiser>();
      self->denoiser_->fn = std::move(fn);
      self->denoiser_->shape = std::move(shape);
      self->denoiser_->out_shape = std::move(out_shape);
      denoise = [denoiser = self->denoiser_.get()](auto... arguments) { (*denoiser)(arguments...); };
    }
    const std::vector<double> schedule(alpha_bar.data(), alpha_bar.data() + alpha_bar.size());
    self->engine_.reset(unlocked([&] { return new ddpm_rt::Engine(manifest, schedule, denoise, o); }), Join());
    return self;
  }

  // Collected inside a callback: an engine cannot join its own thread and is then left to the end of the process.
  ~Engine() {
    if (is_inside_callback()) {
      (void)denoiser_.release();
      for (auto& network : networks_) (void)network.release();
    }
    release();
  }

  void close() {
    if (is_inside_callback()) {
      throw ddpm_rt::Exception(DDPM_RT_OPTION_ERROR, "engine: expected close() from elsewhere, got it inside a callback");
    }
    release();
  }

  void release() { std::shared_ptr<ddpm_rt::Engine>(std::move(engine_)).reset(); }

  std::string info() const {
    const auto engine = opened();
    return unlocked([&] { return engine->info(); });
  }

  std::string model() const { return opened()->model(); }

  // out: an array, or (address, bytes, is uint8, owner) in the device's memory. guide: another Engine, or null.
  std::unique_ptr<Request> submit(const py::object& out, const Shape& shape, const py::dict& given, py::object callback, Engine* guide) {
    const auto engine = opened();
    const auto guiding = guide != nullptr ? guide->opened() : nullptr;
    SampleCall call(given);
    ddpm_rt::SampleOptions& o = call.options;
    o.guide = guiding.get();
    void* data;
    size_t bytes;
    bool is_uint8;
    if (py::isinstance<py::tuple>(out)) {
      const auto parts = out.cast<std::tuple<uintptr_t, size_t, bool, py::object>>();
      data = reinterpret_cast<void*>(std::get<0>(parts));
      bytes = std::get<1>(parts);
      is_uint8 = std::get<2>(parts);
      o.out_on_device = true;
    } else {
      auto array = out.cast<py::array>();
      data = array.mutable_data();
      bytes = static_cast<size_t>(array.nbytes());
      is_uint8 = py::isinstance<py::array_t<uint8_t>>(array);
    }
    o.output = is_uint8 ? DDPM_RT_UINT8_NHWC : DDPM_RT_FLOAT_NCHW;
    std::shared_ptr<PythonCallback> kept;
    if (!callback.is_none()) {
      kept = std::make_shared<PythonCallback>(PythonCallback{std::move(callback), shape});
      o.callback = [watcher = kept.get()](auto... arguments) { return (*watcher)(arguments...); };
    }
    ddpm_rt::Request request = unlocked([&] { return engine->submit(o, data, bytes); });
    return std::make_unique<Request>(std::move(request), out, std::move(kept));
  }

  // What a denoiser raised last, if `message` (of a BackendError) tells of it; None otherwise.
  py::object denoiser_error(const std::string& message) const {
    if (denoiser_ && denoiser_->raised.tells_of(message)) return denoiser_->raised.error;
    for (const auto& network : networks_) {
      if (network->raised.tells_of(message)) return network->raised.error;
    }
    return py::none();
  }
  void forget_denoiser_error() {  // its traceback keeps the frames' arrays alive
    if (denoiser_) denoiser_->raised.error = py::none();
    for (const auto& network : networks_) network->raised.error = py::none();
  }

 private:
  ddpm_rt::EngineOptions engine_options(const py::dict& given, const py::list& networks) {
    ddpm_rt::EngineOptions o;
    for (const auto network : networks) {
      networks_.push_back(std::make_unique<PythonDeviceNetwork>(py::reinterpret_borrow<py::object>(network)));
      o.device_denoisers.push_back(networks_.back()->functions());
    }
    const auto read = [&](const char* name, auto* field) {
      if (given.contains(name)) *field = py::cast<std::decay_t<decltype(*field)>>(given[name]);
    };
    read("device", &o.device);
    read("backend", &o.backend);
    read("precision", &o.precision);
    read("threads", &o.threads);
    read("max_batch", &o.max_batch);
    read("batch_invariant", &o.batch_invariant);
    read("cache_dir", &o.cache_dir);
    read("openvino_library", &o.openvino_library);
    read("onnxruntime_library", &o.onnxruntime_library);
    read("tensorrt_library", &o.tensorrt_library);
    read("trust_native", &o.trust_native);
    read("cuda_library", &o.cuda_library);
    o.log = &log_to_python;
    return o;
  }

  // A call in progress holds the engine, so that close() on another thread cannot pull it away.
  std::shared_ptr<ddpm_rt::Engine> opened() const {
    if (!engine_) throw ddpm_rt::Exception(DDPM_RT_DEVICE_ERROR, "engine: expected an open engine, got a closed one");
    return engine_;
  }

  std::unique_ptr<PythonDenoiser> denoiser_;  // both outlive engine_, whose release joins the thread that calls them
  std::vector<std::unique_ptr<PythonDeviceNetwork>> networks_;
  std::shared_ptr<ddpm_rt::Engine> engine_;
};

}  // namespace

void bind_engine(py::module_& m) {
  using py::arg;
  m.def(
      "examine_tensorrt",
      [](const std::string& library, const std::optional<py::bytes>& engine) {
        const std::string_view data = engine ? std::string_view(*engine) : std::string_view();
        return unlocked([&] {
          ddpm_rt_string* json = nullptr;
          ddpm_rt::check(ddpm_rt_tensorrt_examine(library.c_str(), engine ? data.data() : nullptr, data.size(), &json));
          return ddpm_rt::take(json);
        });
      },
      arg("library"), arg("engine") = py::none());
  py::class_<Request>(m, "Request")
      .def("wait", &Request::wait, arg("seconds"))
      .def("cancel", &Request::cancel)
      .def("progress", &Request::progress)
      .def("result", &Request::result);
  py::class_<Engine>(m, "Engine")
      .def_static("open", &Engine::open, arg("path"), arg("options"), arg("networks") = py::list())
      .def_static("from_callable", &Engine::from_callable, arg("manifest"), arg("alpha_bar"), arg("fn"), arg("shape"), arg("out_shape"),
                  arg("options"), arg("networks") = py::list())
      .def("close", &Engine::close)
      .def("info", &Engine::info)
      .def("model", &Engine::model)
      .def("submit", &Engine::submit, arg("out"), arg("shape"), arg("options"), arg("callback"), arg("guide").none(true))
      .def("denoiser_error", &Engine::denoiser_error, arg("message"))
      .def("forget_denoiser_error", &Engine::forget_denoiser_error);
}
