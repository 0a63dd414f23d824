// The exact denoiser of a Gaussian mixture: the loop is tested against it without a network.
//
//   x_t = a x_0 + s eps, a and s of the schedule's level t, x_0 ~ sum_k w_k N(mu_k, d_k^2 I)
//   =>  x_t ~ sum_k w_k N(a mu_k, v_k I), v_k = a^2 d_k^2 + s^2; r_k(x) = posterior weight of component k
//   E[eps | x] = -s * score = s sum_k r_k (x - a mu_k) / v_k          E[x0 | x] = sum_k r_k (mu_k + a d_k^2 (x - a mu_k) / v_k)
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "denoiser.h"
#include "error.h"
#include "gaussian_mixture.h"

namespace ddpm_rt {
namespace {

std::vector<double> read_doubles(const Plan& plan, const NetworkSpec& network, const char* role, size_t expected) {
  const auto found = network.arrays.find(role);
  if (found == network.arrays.end()) {
    throw Error(Code::kPlan, std::string("networks.") + role + ": expected the name of a section, got none");
  }
  const std::vector<uint8_t> bytes = plan.read(found->second);
  if (bytes.size() != expected * sizeof(double)) {
    throw Error(Code::kPlan, "section " + found->second + ": expected " + std::to_string(expected) + " float64, got " +
                                 std::to_string(bytes.size()) + " bytes");
  }
  std::vector<double> values(expected);
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

class GaussianMixture final : public Denoiser {
 public:
  GaussianMixture(const ModelSpec& spec, const Plan& plan)
      : K_(spec.network.components),
        N_(spec.elements()),
        prediction_(spec.prediction),
        schedule_(spec.schedule),
        num_classes_(spec.num_classes),
        means_(read_doubles(plan, spec.network, "means", K_ * N_)),
        stds_(read_doubles(plan, spec.network, "stds", K_)),
        weights_(read_doubles(plan, spec.network, "weights", K_)) {
    for (const char* other : {"mean", "edm", "consistency"}) {
      if (prediction_.type == other) {
        throw Error(Code::kPlan, "prediction: expected eps, x0, v, flow, score, scaled_score or energy with networks of kind "
                                 "gaussian_mixture, got \"" + prediction_.type + "\"");
      }
    }
    if (K_ == 0) throw Error(Code::kPlan, "networks: expected a mixture of at least 1 component, got 0");
    limits_.in_elements = limits_.out_elements = N_;
    limits_.takes_label = num_classes_ > 0;
    limits_.any_batch = true;
    log_density_.resize(K_);
  }

  const Limits& limits() const override { return limits_; }
  std::string describe() const override { return R"({"backend":"analytic","version":"1","precision":"fp32","device":"cpu"})"; }
  void prepare(int, int) override {}
  void bind(const Evaluations& evaluations) override { bound_ = evaluations; }

  void run(const Call* calls, size_t count) override {
    for (size_t i = 0; i < count; ++i) {
      for (int row = calls[i].first; row < calls[i].first + calls[i].count; ++row) evaluate(static_cast<size_t>(row));
    }
  }

 private:
  void evaluate(size_t row) {
    const float* x = bound_.x + row * N_;
    float* out = bound_.out + row * N_;
    const Level level = level_of_network_time(schedule_, prediction_, bound_.t[row]);
    const double a = level.alpha, s = level.sigma;

    size_t from = 0, to = K_;
    if (num_classes_ > 0 && bound_.label[row] >= 0 && bound_.label[row] < num_classes_) {
      from = static_cast<size_t>(bound_.label[row]);
      to = from + 1;
    }
    double greatest = -std::numeric_limits<double>::infinity();
    for (size_t k = from; k < to; ++k) {
      const double v = variance(level, k);
      double distance = 0;
      for (size_t j = 0; j < N_; ++j) {
        const double d = x[j] - a * means_[k * N_ + j];
        distance += d * d;
      }
      log_density_[k] = std::log(weights_[k]) - 0.5 * distance / v - 0.5 * static_cast<double>(N_) * std::log(v);
      greatest = std::max(greatest, log_density_[k]);
    }
    double total = 0;
    for (size_t k = from; k < to; ++k) total += log_density_[k] = std::exp(log_density_[k] - greatest);
    for (size_t j = 0; j < N_; ++j) {
      double eps = 0, x0 = 0;
      for (size_t k = from; k < to; ++k) {
        const double r = to - from == 1 ? 1 : log_density_[k] / total, mu = means_[k * N_ + j];
        const double pull = (x[j] - a * mu) / variance(level, k);
        eps += r * s * pull;
        x0 += r * (mu + a * stds_[k] * stds_[k] * pull);
      }
      out[j] = static_cast<float>(output(level, x0, eps));
    }
  }

  // Never 0: a point mass without noise (d_k = 0, alpha_bar = 1) has no density.
  double variance(const Level& l, size_t k) const {
    return std::max(l.alpha * l.alpha * stds_[k] * stds_[k] + l.sigma * l.sigma, 1e-300);
  }

  double output(const Level& l, double x0, double eps) const {
    const std::string& type = prediction_.type;
    if (type == "eps") return eps;
    if (type == "x0") return x0;
    if (type == "v") return l.alpha * eps - l.sigma * x0;
    if (type == "flow") return eps - x0;
    if (type == "scaled_score") return -eps;
    return (type == "score" ? -1 : 1) * eps / l.sigma;
  }

  size_t K_, N_;
  Prediction prediction_;
  Schedule schedule_;
  int64_t num_classes_;
  std::vector<double> means_, stds_, weights_;
  std::vector<double> log_density_;
  Limits limits_;
  Evaluations bound_;
};

}  // namespace

MixtureArrays read_mixture(const ModelSpec& spec, const Plan& plan) {
  const size_t K = spec.network.components;
  return {read_doubles(plan, spec.network, "means", K * spec.elements()), read_doubles(plan, spec.network, "stds", K),
          read_doubles(plan, spec.network, "weights", K)};
}

std::unique_ptr<Denoiser> make_gaussian_mixture(const ModelSpec& spec, const Plan& plan) {
  return std::make_unique<GaussianMixture>(spec, plan);
}

}  // namespace ddpm_rt
