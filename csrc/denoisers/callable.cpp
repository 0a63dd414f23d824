// A denoiser supplied by the host program.
#include <utility>

#include "denoiser.h"
#include "error.h"

namespace ddpm_rt {
namespace {

class Callable final : public Denoiser {
 public:
  Callable(const ModelSpec& spec, DenoiseFn fn) : fn_(std::move(fn)), has_labels_(spec.num_classes > 0) {
    limits_.in_elements = spec.elements();
    limits_.out_elements = spec.output_elements();
    limits_.takes_label = has_labels_;
    limits_.any_batch = true;
  }
  const Limits& limits() const override { return limits_; }
  std::string describe() const override { return R"({"backend":"callable","version":"","precision":"fp32","device":"cpu"})"; }
  void prepare(int, int) override {}
  void bind(const Evaluations& evaluations) override { bound_ = evaluations; }
  void run(const Call* calls, size_t count) override {
    for (size_t i = 0; i < count; ++i) {
      const size_t first = static_cast<size_t>(calls[i].first);
      fn_(bound_.x + first * limits_.in_elements, bound_.t + first, has_labels_ ? bound_.label + first : nullptr,
          static_cast<size_t>(calls[i].count), bound_.out + first * limits_.out_elements);
    }
  }

 private:
  DenoiseFn fn_;
  bool has_labels_;
  Limits limits_;
  Evaluations bound_;
};

}  // namespace

std::unique_ptr<Denoiser> make_callable(const ModelSpec& spec, DenoiseFn fn) {
  if (!fn) throw Error(Code::kOption, "denoiser: expected a function, got null");
  return std::make_unique<Callable>(spec, std::move(fn));
}

}  // namespace ddpm_rt
