// The exact denoiser of a Gaussian mixture on a device (gaussian_mixture.cpp has the formulas).
#include <cstring>

#include "device_denoiser.h"
#include "error.h"
#include "gaussian_mixture.h"

namespace ddpm_rt {
namespace {

class GaussianMixtureGpu final : public DeviceDenoiser {
 public:
  GaussianMixtureGpu(const ModelSpec& spec, const Plan& plan, const DevicePtr& device, const DeviceStream& stream) : device_(device) {
    const MixtureArrays arrays = read_mixture(spec, plan);
    const std::string& time = spec.prediction.time;
    if (!spec.schedule.is_discrete() || !(time.empty() || time == "index" || time == "t")) {
      throw Error(Code::kPlan, "schedule: expected timesteps, and the network's time to be their index, with networks of kind "
                               "gaussian_mixture on a GPU, got another: use device cpu");
    }
    limits_.in_elements = limits_.out_elements = spec.elements();
    limits_.takes_label = spec.num_classes > 0;
    limits_.any_batch = limits_.is_capturable = true;
    const std::vector<double>* const parts[] = {&arrays.means, &arrays.stds, &arrays.weights, &spec.schedule.alpha_bar};
    size_t count = 0;
    for (const auto* part : parts) count += part->size();
    values_ = DeviceBuffer(device, count * sizeof(double), "mixture");
    const PinnedBuffer staging(device, count * sizeof(double), "mixture");
    const double* addresses[4];
    size_t at = 0;
    for (size_t k = 0; k < 4; ++k) {
      std::memcpy(staging.as<double>() + at, parts[k]->data(), parts[k]->size() * sizeof(double));
      addresses[k] = values_.as<double>() + at;
      at += parts[k]->size();
    }
    stream.copy(values_.as<void>(), staging.as<void>(), values_.bytes(), DeviceCopy::kToDevice);
    stream.synchronize();
    mixture_ = {addresses[0], addresses[1], addresses[2], addresses[3], static_cast<uint32_t>(arrays.stds.size()),
                static_cast<uint32_t>(spec.schedule.T()), prediction_of(spec), static_cast<uint32_t>(spec.num_classes),
                spec.prediction.time_scale};
  }

  const DeviceLimits& limits() const override { return limits_; }
  std::string describe() const override {
    return R"({"backend":"analytic","version":"1","precision":"fp32","device":")" + std::string(device_->api().name) + "\"}";
  }
  void bind(const GpuNetwork& network) override { network_ = network; }
  void prepare(int, const DeviceStream&) override {}
  void enqueue(const DeviceCall& call, const DeviceStream& stream) override {
    const int error = device_->api().gaussian_mixture(mixture_, network_, limits_.in_elements, call.first,
                                                      static_cast<uint32_t>(call.bucket), stream.get());
    device_->check(error, "mixture");
  }

 private:
  static uint32_t prediction_of(const ModelSpec& spec) {
    constexpr const char* kKnown[] = {"eps", "x0", "v"};
    for (uint32_t k = 0; k < 3; ++k) {
      if (spec.prediction.type == kKnown[k]) return k;
    }
    throw Error(Code::kPlan, "prediction: expected eps, x0 or v with networks of kind gaussian_mixture on a GPU, got \"" +
                                 spec.prediction.type + "\"");
  }

  DevicePtr device_;
  DeviceLimits limits_;
  DeviceBuffer values_;
  GpuMixture mixture_{};
  GpuNetwork network_{};
};

}  // namespace

std::unique_ptr<DeviceDenoiser> make_gaussian_mixture_gpu(const ModelSpec& spec, const Plan& plan, const DevicePtr& device,
                                                          const DeviceStream& stream) {
  return std::make_unique<GaussianMixtureGpu>(spec, plan, device, stream);
}

}  // namespace ddpm_rt
