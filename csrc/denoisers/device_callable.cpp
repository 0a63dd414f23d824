// A network of the host program on a device: functions that get device pointers, sizes and the stream.
#include <utility>

#include "device_denoiser.h"
#include "error.h"

namespace ddpm_rt {

void* DeviceDenoiser::raw_graph(const DeviceCall&) {
  throw Error(Code::kInternal, "raw_graph: expected a network that has graphs, got one without");
}

void DeviceDenoiser::embed(const float*, const int64_t*, size_t, void*, const DeviceStream&) {
  throw Error(Code::kInternal, "embed: expected a network that reads rows, got one without");
}

namespace {

class DeviceCallable final : public DeviceDenoiser {
 public:
  DeviceCallable(const ModelSpec& spec, DeviceFunctions functions, DevicePtr device)
      : functions_(std::move(functions)), limits_(functions_.limits), device_(std::move(device)) {
    if (!functions_.enqueue) throw Error(Code::kOption, "device_denoiser.enqueue: expected a function, got null");
    limits_.in_elements = limits_.out_elements = spec.elements();
    limits_.takes_label = spec.num_classes > 0;
    limits_.has_graphs = functions_.capture != nullptr;
    if (limits_.rows_bytes > 0 && !functions_.embed) {
      throw Error(Code::kOption, "device_denoiser.embed: expected a function where rows_bytes is above 0, got null");
    }
    // There the functions work on the host, at once: recorded they would run when they must not.
    if (device_->facts().is_host_memory) limits_.has_graphs = limits_.is_capturable = false;
  }

  const DeviceLimits& limits() const override { return limits_; }
  std::string describe() const override {
    return R"({"backend":")" + functions_.name + R"(","version":")" + functions_.version + R"(","precision":")" +
           functions_.precision + R"(","device":")" + device_->api().name + "\"}";
  }
  void bind(const GpuNetwork& network) override { network_ = network; }
  void prepare(int bucket, const DeviceStream& stream) override {
    enqueue({bucket, 0}, stream);
    stream.synchronize();
  }
  void enqueue(const DeviceCall& call, const DeviceStream& stream) override {
    if (device_->facts().is_host_memory) stream.synchronize();
    expect_none(functions_.enqueue(call_of(call, stream.get())));
  }
  void* raw_graph(const DeviceCall& call) override {
    void* graph = nullptr;
    expect_none(functions_.capture(call_of(call, nullptr), &graph));
    if (graph == nullptr) throw Error(Code::kBackend, "device_denoiser.capture: expected a graph, got null");
    return graph;
  }
  void embed(const float* t, const int64_t* label, size_t n, void* rows, const DeviceStream& stream) override {
    if (device_->facts().is_host_memory) stream.synchronize();
    expect_none(functions_.embed(t, label, n, rows, stream.get()));
  }

 private:
  static void expect_none(const char* message) {
    if (message != nullptr) throw Error(Code::kBackend, message);
  }
  DeviceFunctions::Call call_of(const DeviceCall& call, void* stream) const {
    const size_t first = static_cast<size_t>(call.first);
    const auto at = [first](void* list, size_t row) -> char* {
      return list != nullptr ? static_cast<char*>(list) + first * row : nullptr;
    };
    return {at(network_.in.data, limits_.in_elements * bytes_of(limits_.in_type)),
            reinterpret_cast<const float*>(at(network_.t, sizeof(float))),
            reinterpret_cast<const int64_t*>(at(network_.label, sizeof(int64_t))),
            at(network_.rows, limits_.rows_bytes),
            at(network_.out.data, limits_.out_elements * bytes_of(limits_.out_type)),
            static_cast<size_t>(call.bucket),
            stream};
  }

  const DeviceFunctions functions_;
  DeviceLimits limits_;
  const DevicePtr device_;
  GpuNetwork network_{};
};

}  // namespace

std::unique_ptr<DeviceDenoiser> make_device_callable(const ModelSpec& spec, const DeviceFunctions& functions,
                                                     const DevicePtr& device) {
  return std::make_unique<DeviceCallable>(spec, functions, device);
}

}  // namespace ddpm_rt
