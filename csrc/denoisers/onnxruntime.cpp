// The denoiser on ONNX Runtime's CPU provider. The batch dimension stays dynamic, so a bucket needs no compilation;
// what is kept per stretch of rows is an I/O binding over the lane's memory.
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "denoiser.h"
#include "denoisers/graph_ports.h"
#include "denoisers/onnx_check.h"
#include "denoisers/onnxruntime_api.h"
#include "dynamic_library.h"
#include "error.h"

namespace ddpm_rt {
namespace {

template <class T>
using Owned = std::unique_ptr<T, void(DDPM_RT_ORT_CALL*)(T*)>;

constexpr const char* kInstall = "; `pip install onnxruntime`, or name libonnxruntime in BackendOptions.library";

DynamicLibrary open_library(const std::string& path) {
  std::string why;
  if (!path.empty()) {
    DynamicLibrary library = DynamicLibrary::open(path, &why);
    if (!library) throw Error(Code::kBackend, "onnxruntime: expected a library, got: " + why + kInstall);
    return library;
  }
#if defined(_WIN32)
  const std::vector<std::string> names{"onnxruntime.dll"};
#elif defined(__APPLE__)
  const std::vector<std::string> names{"libonnxruntime.dylib"};
#else
  const std::vector<std::string> names{"libonnxruntime.so", "libonnxruntime.so.1"};
#endif
  std::string tried;
  for (const std::string& name : names) {
    DynamicLibrary library = DynamicLibrary::open(name, &why);
    if (library) return library;
    tried += (tried.empty() ? "" : ", ") + why;
  }
  throw Error(Code::kBackend, "onnxruntime: expected a library on the loader's path, got: " + tried + kInstall);
}

// The library with one environment, its errors as exceptions.
class Runtime {
 public:
  explicit Runtime(const std::string& path) : library_(open_library(path)) {
    using GetBase = const ort::ApiBase* DDPM_RT_ORT_CALL();
    auto* get_base = library_.symbol<GetBase>("OrtGetApiBase");
    const ort::ApiBase* base = get_base != nullptr ? get_base() : nullptr;
    if (base == nullptr) throw Error(Code::kBackend, "onnxruntime: expected a library with OrtGetApiBase" + at(path));
    version_ = base->version_string();
    const void* const* table = base->get_api(ort::kApiVersion);
    if (table == nullptr) {
      throw Error(Code::kBackend, "onnxruntime: expected version 1." + std::to_string(ort::kApiVersion) +
                                      " or later, got " + version_ + at(path));
    }
    api_ = ort::resolve(table);
    env_ = make<ort::Env>("CreateEnv", api_.release_env, api_.create_env, int{ort::kLogFatal}, "ddpm_rt");
    memory_ = make<ort::MemoryInfo>("CreateCpuMemoryInfo", api_.release_memory_info, api_.create_cpu_memory_info,
                                    int{ort::kDeviceAllocator}, int{ort::kDefaultMemory});
    check(api_.get_allocator_with_default_options(&allocator_), "GetAllocatorWithDefaultOptions");
  }

  const ort::Api& api() const { return api_; }
  const ort::Env* env() const { return env_.get(); }
  const ort::MemoryInfo* memory() const { return memory_.get(); }
  ort::Allocator* allocator() const { return allocator_; }
  const std::string& version() const { return version_; }

  void check(ort::Status* status, const char* function) const {
    if (status == nullptr) return;
    const std::string message = api_.get_error_message(status);
    api_.release_status(status);
    throw Error(Code::kBackend, (std::string("onnxruntime: ") + function + " failed: " + message).substr(0, 2000));
  }

  template <class T, class Function, class... Arguments>
  Owned<T> make(const char* name, void(DDPM_RT_ORT_CALL* release)(T*), Function function,
                Arguments... arguments) const {
    T* object = nullptr;
    check(function(arguments..., &object), name);
    return Owned<T>(object, release);
  }

 private:
  static std::string at(const std::string& path) { return path.empty() ? "" : " at " + path; }

  DynamicLibrary library_;
  ort::Api api_{};
  Owned<ort::Env> env_{nullptr, nullptr};
  Owned<ort::MemoryInfo> memory_{nullptr, nullptr};
  ort::Allocator* allocator_ = nullptr;
  std::string version_;
};

class Graph {
 public:
  Graph(const Runtime& runtime, const std::string& section, const std::vector<uint8_t>& onnx, std::vector<Port> inputs,
        Port output, int threads)
      : runtime_(runtime), api_(runtime.api()), section_(section), ports_(std::move(inputs)) {
    OnnxCheck::run(section_, onnx);
    const auto options = runtime_.make<ort::SessionOptions>("CreateSessionOptions", api_.release_session_options,
                                                            api_.create_session_options);
    runtime_.check(api_.set_intra_op_num_threads(options.get(), threads), "SetIntraOpNumThreads");
    session_ = runtime_.make<ort::Session>(
        "CreateSessionFromArray", api_.release_session, api_.create_session_from_array, runtime_.env(),
        static_cast<const void*>(onnx.data()), onnx.size(), static_cast<const ort::SessionOptions*>(options.get()));
    size_t inputs_size = 0;
    runtime_.check(api_.session_get_input_count(session_.get(), &inputs_size), "SessionGetInputCount");
    if (inputs_size != ports_.size()) {
      throw Error(Code::kBackend, section_ + ": expected " + std::to_string(ports_.size()) + " inputs, got " +
                                      std::to_string(inputs_size));
    }
    for (const Port& port : ports_) {
      const std::vector<int64_t> got = dims(port, true);
      const std::vector<int64_t> want = port.dims(-1);
      if (got != want) {
        throw Error(Code::kBackend, section_ + ": " + port.name + ": expected shape " + dims_text(want) +
                                        " (-1: any), got " + dims_text(got));
      }
    }
    const std::vector<int64_t> got = dims(output, false);
    bool fits = !got.empty() && got[0] < 0;
    for (size_t i = 1; i < got.size(); ++i) fits = fits && got[i] > 0;
    if (!fits) {
      throw Error(Code::kBackend, section_ + ": " + output.name +
                                      ": expected a shape static behind a dynamic batch dimension, got " +
                                      dims_text(got));
    }
    output.row.assign(got.begin() + 1, got.end());
    ports_.push_back(std::move(output));
  }

  const Port& output() const { return ports_.back(); }

  void bind(const Evaluations& evaluations) {
    bound_ = evaluations;
    stretches_.clear();
  }

  void run(const Call* calls, size_t count) {
    if (count == 0) return;
    check_calls(calls, count, bound_);
    if (count != 1) throw Error(Code::kInternal, "calls: expected 1 on onnxruntime, got " + std::to_string(count));
    runtime_.check(api_.run_with_binding(session_.get(), nullptr, stretch(calls[0]).binding.get()), "RunWithBinding");
  }

 private:
  struct Stretch {
    std::vector<Owned<ort::Value>> values;
    Owned<ort::Binding> binding;
  };

  // Shape of the port with this name, -1 for dynamic sizes; its element type is checked.
  std::vector<int64_t> dims(const Port& port, bool is_input) const {
    size_t count = 0;
    runtime_.check(is_input ? api_.session_get_input_count(session_.get(), &count)
                            : api_.session_get_output_count(session_.get(), &count),
                   "SessionGetCount");
    std::string seen;
    for (size_t i = 0; i < count; ++i) {
      char* raw = nullptr;
      runtime_.check(is_input ? api_.session_get_input_name(session_.get(), i, runtime_.allocator(), &raw)
                              : api_.session_get_output_name(session_.get(), i, runtime_.allocator(), &raw),
                     "SessionGetName");
      const std::string name = raw;
      runtime_.check(api_.allocator_free(runtime_.allocator(), raw), "AllocatorFree");
      if (name == port.name) return dims_at(port, is_input, i);
      seen += (i ? ", " : "") + name;
    }
    throw Error(Code::kBackend, section_ + ": expected an " + (is_input ? "input" : "output") + " named " + port.name +
                                    " (" + port.role + "), got " + seen);
  }

  std::vector<int64_t> dims_at(const Port& port, bool is_input, size_t i) const {
    const auto type =
        runtime_.make<ort::TypeInfo>("SessionGetTypeInfo", api_.release_type_info,
                                     is_input ? api_.session_get_input_type_info : api_.session_get_output_type_info,
                                     static_cast<const ort::Session*>(session_.get()), i);
    const ort::TensorInfo* tensor = nullptr;  // a view into `type`
    runtime_.check(api_.cast_type_info_to_tensor_info(type.get(), &tensor), "CastTypeInfoToTensorInfo");
    if (tensor == nullptr) throw Error(Code::kBackend, section_ + ": " + port.name + ": expected a tensor");
    int element = 0;
    runtime_.check(api_.get_tensor_element_type(tensor, &element), "GetTensorElementType");
    const int want = element_type(port);
    if (element != want) {
      throw Error(Code::kBackend, section_ + ": " + port.name + ": expected element type " + std::to_string(want) +
                                      ", got " + std::to_string(element) + " (1 is float32, 7 is int64)");
    }
    size_t rank = 0;
    runtime_.check(api_.get_dimensions_count(tensor, &rank), "GetDimensionsCount");
    std::vector<int64_t> dims(rank);
    runtime_.check(api_.get_dimensions(tensor, dims.data(), rank), "GetDimensions");
    return dims;
  }

  static int element_type(const Port& port) {
    return port.element_bytes == sizeof(int64_t) ? int{ort::kInt64} : int{ort::kFloat};
  }

  const Stretch& stretch(const Call& call) {
    const auto found = stretches_.find({call.bucket, call.first});
    if (found != stretches_.end()) return found->second;
    Stretch made{{},
                 runtime_.make<ort::Binding>("CreateIoBinding", api_.release_io_binding, api_.create_io_binding,
                                             session_.get())};
    for (const Port& port : ports_) {
      const std::vector<int64_t> dims = port.dims(call.bucket);
      made.values.push_back(runtime_.make<ort::Value>(
          "CreateTensorWithDataAsOrtValue", api_.release_value, api_.create_tensor_with_data, runtime_.memory(),
          port.at(bound_, call.first), call.bucket * port.row_elements() * port.element_bytes, dims.data(), dims.size(),
          element_type(port)));
      const bool is_output = &port == &ports_.back();
      runtime_.check(is_output ? api_.bind_output(made.binding.get(), port.name.c_str(), made.values.back().get())
                               : api_.bind_input(made.binding.get(), port.name.c_str(), made.values.back().get()),
                     is_output ? "BindOutput" : "BindInput");
    }
    return stretches_.emplace(std::make_pair(call.bucket, call.first), std::move(made)).first->second;
  }

  const Runtime& runtime_;
  const ort::Api& api_;
  std::string section_;
  std::vector<Port> ports_;  // the inputs, then the output
  Owned<ort::Session> session_{nullptr, nullptr};
  std::map<std::pair<int, int>, Stretch> stretches_;  // by (bucket, first)
  Evaluations bound_;
};

class OnnxRuntime : public Denoiser {
 public:
  OnnxRuntime(const ModelSpec& spec, const Plan& plan, const BackendOptions& options)
      : runtime_(options.library),
        threads_(options.threads > 0 ? options.threads : default_threads()),
        unet_(runtime_, spec.network.section, plan.read(spec.network.section), input_ports(spec.network, spec),
              output_port(spec.network, "eps"), threads_) {
    if (spec.has_temb) {
      temb_ = std::make_unique<Graph>(runtime_, spec.temb.section, plan.read(spec.temb.section),
                                      input_ports(spec.temb, spec), output_port(spec.temb, "rows"), threads_);
    }
    limits_ = graph_limits(spec, unet_.output(), temb_ ? &temb_->output() : nullptr);
    if (temb_) {
      embed_ = std::make_unique<EmbedBatch>(limits_.rows_width);
      temb_->bind(embed_->evaluations());
    }
  }

  const Limits& limits() const override { return limits_; }
  std::string describe() const override {
    return "{\"backend\":\"onnxruntime\",\"version\":\"" + runtime_.version() +
           "\",\"device\":\"CPU\",\"precision\":\"fp32\",\"threads\":" + std::to_string(threads_) + "}";
  }
  void prepare(int bucket, int streams) override {
    if (bucket < 1 || streams != 1) {
      throw Error(Code::kInternal, "prepare: expected one stream on onnxruntime, got " + std::to_string(streams));
    }
  }
  void bind(const Evaluations& evaluations) override { unet_.bind(evaluations); }
  void run(const Call* calls, size_t count) override { unet_.run(calls, count); }
  void embed(const float* t, const int64_t* label, size_t n, float* rows) override {
    if (!temb_) throw Error(Code::kInternal, "embed: expected a model with a temb network");
    embed_->run(*temb_, t, label, n, rows);
  }

 private:
  Runtime runtime_;
  int threads_;
  Limits limits_;
  std::unique_ptr<EmbedBatch> embed_;  // outlives the tensors that wrap it
  Graph unet_;
  std::unique_ptr<Graph> temb_;
};

// Telemetry is on by default in the Linux wheels since 1.29; a user who set the variable has decided.
void disable_telemetry() {
#ifdef _WIN32
  if (std::getenv("ORT_DISABLE_TELEMETRY") == nullptr) _putenv_s("ORT_DISABLE_TELEMETRY", "1");
#else
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
}

}  // namespace

std::unique_ptr<Denoiser> make_onnxruntime(const ModelSpec& spec, const Plan& plan, const BackendOptions& options) {
  if (options.precision != "auto" && options.precision != "fp32") {
    throw Error(Code::kBackend, "precision: expected fp32 for onnxruntime on the CPU, got " + options.precision);
  }
  disable_telemetry();
  return std::make_unique<OnnxRuntime>(spec, plan, options);
}

}  // namespace ddpm_rt
