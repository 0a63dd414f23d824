// The denoiser on TensorRT 11 or TensorRT-RTX: engines that `ddpm-rt build` made, on the lane's own lists and stream.
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <sstream>
#include <utility>

#include "denoisers/tensorrt_graph.h"
#include "device_denoiser.h"

namespace ddpm_rt {
namespace {

constexpr size_t kRowsAlign = 16;  // GpuNetwork: of a place's embedding

GpuType gpu_type(nv::DataType type) { return type == nv::kHalf ? kGpuF16 : type == nv::kBf16 ? kGpuBF16 : kGpuF32; }

std::string capability_of(const Device& device) {
  return std::to_string(device.facts().major) + "." + std::to_string(device.facts().minor);
}

std::string list_text(const std::vector<std::string>& list) {
  std::string text;
  for (const std::string& item : list) text += (text.empty() ? "" : ", ") + item;
  return text;
}

bool fits_library(const NativeEngine& e, const nv::Runtime& r) {
  return e.library == r.kind() && (e.version.empty() || e.version == r.version());
}

bool fits_device(const NativeEngine& e, const Device& device) {
  return e.capabilities.empty() ||
         std::find(e.capabilities.begin(), e.capabilities.end(), capability_of(device)) != e.capabilities.end();
}

// The first library that built one of the engines, else the first that opens: what it lacks is then told of it.
nv::Runtime open_library(const NativeOptions& options) {
  std::optional<nv::Runtime> first;
  std::string refused;
  std::istringstream names(options.library);
  for (std::string name; std::getline(names, name, ':');) {
    if (name.empty()) continue;
    try {
      nv::Runtime runtime(name);
      const auto fits = [&](const NativeEngine& e) { return fits_library(e, runtime); };
      if (std::any_of(options.engines.begin(), options.engines.end(), fits)) return runtime;
      if (!first) first.emplace(std::move(runtime));
    } catch (const Error& e) {
      refused += (refused.empty() ? "" : "; ") + std::string(e.what());
    }
  }
  if (first) return std::move(*first);
  if (!refused.empty()) throw Error(Code::kBackend, refused);
  return nv::Runtime("");
}

// The engine of a network that this library and this GPU can run; one made for this GPU by name before one for many. Where
// there is none, the error says what the nearest one lacks.
const NativeEngine& choose(const NativeOptions& options, const std::string& network, const std::string& precision,
                           const nv::Runtime& runtime, const Device& device) {
  const NativeEngine *best = nullptr, *other_version = nullptr, *other_gpu = nullptr;
  for (const NativeEngine& e : options.engines) {
    if (e.network != network || e.precision != precision) continue;
    if (!fits_library(e, runtime)) {
      if (other_version == nullptr) other_version = &e;
    } else if (!fits_device(e, device)) {
      if (other_gpu == nullptr) other_gpu = &e;
    } else if (best == nullptr || (best->capabilities.empty() && !e.capabilities.empty())) {
      best = &e;
    }
  }
  if (best != nullptr) return *best;
  const std::string field = "engine of " + network + " in " + precision;
  if (other_gpu != nullptr) {
    throw Error(Code::kDevice, field + ": expected one for compute capability " + capability_of(device) + " (" + device.facts().name +
                                   "), got one for " + list_text(other_gpu->capabilities) + ": " + other_gpu->where + options.remedy_for_gpu);
  }
  if (other_version != nullptr) {
    throw Error(Code::kBackend, field + ": expected one built by " + runtime.kind() + " " + runtime.version() + ", which is at " +
                                    runtime.path() + ", got one of " + other_version->library + " " + other_version->version + ": " +
                                    other_version->where + options.remedy);
  }
  throw Error(Code::kBackend, field + ": expected one built for this plan, got none" + options.remedy);
}

class TensorRt final : public DeviceDenoiser {
 public:
  TensorRt(const ModelSpec& spec, const NativeOptions& options, const DevicePtr& device)
      : device_(device), precision_(options.precision), runtime_(open_library(options)) {
    const NativeEngine& unet = choose(options, "unet", precision_, runtime_, *device);
    digest_ = unet.digest;
    unet_ = open(unet, input_ports(spec.network, spec), output_port(spec.network, "eps"), options);
    if (spec.has_temb) {
      // Always float32: it runs once per table, and t times a frequency has no digits to spare.
      const NativeEngine& temb = choose(options, "temb", "fp32", runtime_, *device);
      temb_ = open(temb, input_ports(spec.temb, spec), output_port(spec.temb, "rows"), options);
    }
    read_limits(spec);
    const size_t bytes = std::max(unet_->scratch_bytes(), temb_ ? temb_->scratch_bytes() : 0);
    scratch_ = DeviceBuffer(device, bytes, "engine scratch");
    for (nv::TensorRtGraph* graph : {unet_.get(), temb_.get()}) {
      if (graph != nullptr) graph->set_scratch(scratch_.as<void>(), bytes);
    }
    if (temb_) open_embedding();
  }

  const DeviceLimits& limits() const override { return limits_; }
  std::string describe() const override {
    return R"({"backend":"tensorrt","version":")" + runtime_.kind() + " " + runtime_.version() + R"(","precision":")" + precision_ +
           R"(","device":")" + device_->api().name + R"(","engine":")" + digest_ + "\"}";
  }
  void bind(const GpuNetwork& network) override {
    unet_->bind("x", network.in.data, device_);
    unet_->bind("t", network.t, device_);
    unet_->bind("label", network.label, device_);
    unet_->bind("rows", network.rows, device_);
    unet_->bind("eps", network.out.data, device_);
  }
  void prepare(int bucket, const DeviceStream& stream) override {
    unet_->prepare(bucket, stream);
    limits_.is_capturable = unet_->is_capturable();
  }
  void enqueue(const DeviceCall& call, const DeviceStream& stream) override { unet_->enqueue(call, stream); }
  void embed(const float* t, const int64_t* label, size_t n, void* rows, const DeviceStream& stream) override;

 private:
  std::unique_ptr<nv::TensorRtGraph> open(const NativeEngine& engine, std::vector<Port> inputs, Port output, const NativeOptions& options) {
    return std::make_unique<nv::TensorRtGraph>(runtime_, engine.read(), std::move(inputs), std::move(output), "engine " + engine.where,
                                               nv::Remedy{options.remedy, options.remedy_for_gpu});
  }
  void read_limits(const ModelSpec& spec);
  void open_embedding();

  const DevicePtr device_;
  const std::string precision_;
  const nv::Runtime runtime_;
  std::string digest_;
  DeviceLimits limits_;
  DeviceBuffer scratch_;
  DeviceBuffer t_, label_, rows_;  // of one call of temb_
  PinnedBuffer staging_;
  std::unique_ptr<nv::TensorRtGraph> unet_, temb_;
};

void TensorRt::read_limits(const ModelSpec& spec) {
  const nv::GraphPort &x = unet_->port("x"), &eps = unet_->port("eps");
  Port row;
  if (temb_) row = temb_->port("rows").port;
  const Limits limits = graph_limits(spec, eps.port, temb_ ? &row : nullptr);
  limits_.in_elements = limits.in_elements;
  limits_.out_elements = limits.out_elements;
  limits_.in_type = gpu_type(x.type);
  limits_.out_type = gpu_type(eps.type);
  limits_.takes_label = limits.takes_label;
  limits_.rows_bytes = limits.rows_width * sizeof(float);
  limits_.is_capturable = true;
  limits_.max_bucket = unet_->most_rows();
  if (limits_.rows_bytes % kRowsAlign != 0) {
    throw Error(Code::kBackend, "rows_width: expected a multiple of 4 for tensorrt, got " + std::to_string(limits.rows_width) +
                                    ": export the plan with split=False");
  }
}

// Batches of one size, so that a row's bits cannot depend on how many are asked for.
void TensorRt::open_embedding() {
  const size_t most = static_cast<size_t>(temb_->most_rows());
  t_ = DeviceBuffer(device_, most * sizeof(float), "times to embed");
  label_ = DeviceBuffer(device_, most * sizeof(int64_t), "labels to embed");
  rows_ = DeviceBuffer(device_, most * limits_.rows_bytes, "embeddings");
  staging_ = PinnedBuffer(device_, most * (sizeof(int64_t) + sizeof(float)), "embeddings");
  temb_->bind("t", t_.as<void>(), device_);
  temb_->bind("label", label_.as<void>(), device_);
  temb_->bind("rows", rows_.as<void>(), device_);
}

void TensorRt::embed(const float* t, const int64_t* label, size_t n, void* rows, const DeviceStream& stream) {
  if (!temb_) return DeviceDenoiser::embed(t, label, n, rows, stream);
  const int bucket = temb_->most_rows();
  const size_t most = static_cast<size_t>(bucket);
  temb_->prepare(bucket, stream);
  int64_t* const labels = staging_.as<int64_t>();
  float* const times = reinterpret_cast<float*>(labels + most);
  for (size_t done = 0; done < n; done += most) {
    const size_t count = std::min(most, n - done);
    std::fill_n(times, most, 0.0f);
    std::fill_n(labels, most, int64_t{0});
    std::copy_n(t + done, count, times);
    if (label != nullptr) std::copy_n(label + done, count, labels);
    stream.copy(t_.as<void>(), times, t_.bytes(), DeviceCopy::kToDevice);
    stream.copy(label_.as<void>(), labels, label_.bytes(), DeviceCopy::kToDevice);
    temb_->enqueue({bucket, 0}, stream);
    stream.copy(static_cast<char*>(rows) + done * limits_.rows_bytes, rows_.as<void>(), count * limits_.rows_bytes, DeviceCopy::kOnDevice);
    stream.synchronize();  // the staging memory is written again
  }
}

}  // namespace

std::unique_ptr<DeviceDenoiser> make_tensorrt(const ModelSpec& spec, const NativeOptions& options, const DevicePtr& device) {
  return std::make_unique<TensorRt>(spec, options, device);
}

std::string examine_tensorrt(const std::string& library, const std::vector<uint8_t>* engine) {
  const nv::Runtime runtime(library);
  if (engine != nullptr) runtime.deserialize(*engine, "engine", {});
  return R"({"library":")" + runtime.kind() + R"(","version":")" + runtime.version() + "\"}";
}

}  // namespace ddpm_rt
