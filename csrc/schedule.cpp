// | symbol    | meaning                                              |
// |-----------|------------------------------------------------------|
// | beta      | variance added by one step, in [0, 1]                |
// | alpha_bar | product of 1 - beta up to t; index 0 .. T-1          |
// Sources: Ho et al. 2006.11239, Nichol & Dhariwal 2102.09672, Rombach et al. 2112.10752, Jabri et al. 2212.11972,
// Lin et al. 2305.08891.
#include "schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "error.h"

namespace ddpm_rt {
namespace {

constexpr int kMaxT = 1 << 16;  // a table of that many rows is 16 MiB
constexpr double kPi = 3.141592653589793;

std::string number(double v) {
  char text[40];
  snprintf(text, sizeof text, "%.17g", v);
  return text;
}

void check_length(size_t T) {
  if (T < 1 || T > static_cast<size_t>(kMaxT)) {
    throw Error(Code::kOption,
                "schedule: expected 1 to " + std::to_string(kMaxT) + " timesteps, got " + std::to_string(T));
  }
}

// torch.linspace: the second half counts back from the end, so that both ends are exact.
std::vector<double> linspace(double start, double end, int n) {
  std::vector<double> v(n, start);
  const double step = n > 1 ? (end - start) / (n - 1) : 0;
  for (int i = 0; i < n; ++i) v[i] = i < (n + 1) / 2 ? start + step * i : end - step * (n - 1 - i);
  return v;
}

// Nichol & Dhariwal, text under eq. 17: beta_t = min(1 - alpha_bar((t+1)/T) / alpha_bar(t/T), 0.999).
template <typename F>
std::vector<double> betas_from_continuous(F alpha_bar_at, int T) {
  std::vector<double> betas(T);
  double left = alpha_bar_at(0.0);
  for (int i = 0; i < T; ++i) {
    const double right = alpha_bar_at(static_cast<double>(i + 1) / T);
    betas[i] = std::min(1 - right / left, 0.999);
    left = right;
  }
  return betas;
}

double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

}  // namespace

Schedule schedule_from_alpha_bar(std::vector<double> alpha_bar) {
  check_length(alpha_bar.size());
  for (size_t t = 0; t < alpha_bar.size(); ++t) {
    const std::string field = "alpha_bar[" + std::to_string(t) + "]";
    const double v = alpha_bar[t];
    if (!(v >= 0 && v <= 1)) throw Error(Code::kOption, field + ": expected a value in [0, 1], got " + number(v));
    if (t > 0 && v > alpha_bar[t - 1]) {
      throw Error(Code::kOption, field + ": expected a non-increasing schedule, got " + number(v) + " after " +
                                     number(alpha_bar[t - 1]));
    }
    if (v == 0 && t + 1 < alpha_bar.size()) {
      throw Error(Code::kOption, field + ": expected 0 at the last timestep only, got 0 before it");
    }
  }
  Schedule schedule;
  schedule.alpha_bar = std::move(alpha_bar);
  return schedule;
}

Schedule schedule_from_betas(const std::vector<double>& betas) {
  check_length(betas.size());
  std::vector<double> alpha_bar(betas.size());
  double product = 1;
  for (size_t t = 0; t < betas.size(); ++t) {
    if (!(betas[t] >= 0 && betas[t] <= 1)) {
      throw Error(Code::kOption,
                  "betas[" + std::to_string(t) + "]: expected a value in [0, 1], got " + number(betas[t]));
    }
    alpha_bar[t] = product *= 1 - betas[t];
  }
  return schedule_from_alpha_bar(std::move(alpha_bar));
}

Schedule make_schedule(const std::string& name, int T) {
  check_length(T < 0 ? 0 : static_cast<size_t>(T));
  if (name == "linear") return schedule_from_betas(linspace(1e-4, 0.02, T));  // DDPM section 4
  if (name == "scaled_linear") {
    std::vector<double> betas = linspace(std::sqrt(0.00085), std::sqrt(0.012), T);
    for (double& b : betas) b *= b;
    return schedule_from_betas(betas);
  }
  if (name == "cosine") {
    return schedule_from_betas(betas_from_continuous(
        [](double u) {
          const double c = std::cos((u + 0.008) / (1 + 0.008) * kPi / 2);
          return c * c;
        },
        T));
  }
  if (name == "sigmoid") {  // Jabri et al. algorithm 1, start -3, end 3, tau 1
    const double low = sigmoid(-3), high = sigmoid(3);
    return schedule_from_betas(
        betas_from_continuous([=](double u) { return (high - sigmoid(u * 6 - 3)) / (high - low); }, T));
  }
  throw Error(Code::kOption, "schedule: expected linear, scaled_linear, cosine or sigmoid, got \"" + name + "\"");
}

Schedule zero_terminal_snr(const Schedule& s) {
  check_length(s.alpha_bar.size());
  const double first = std::sqrt(s.alpha_bar.front()), last = std::sqrt(s.alpha_bar.back());
  if (!(first > last)) {
    throw Error(Code::kOption, "schedule: expected alpha_bar to fall for zero terminal SNR, got " +
                                   number(s.alpha_bar.front()) + " at both ends");
  }
  std::vector<double> alpha_bar(s.alpha_bar.size());
  for (size_t t = 0; t < alpha_bar.size(); ++t) {
    const double root = (std::sqrt(s.alpha_bar[t]) - last) * (first / (first - last));
    alpha_bar[t] = root * root;
  }
  return schedule_from_alpha_bar(std::move(alpha_bar));
}

}  // namespace ddpm_rt
