// What every device must show of the pieces: normals and guidance with the CPU's bits, the mixture to float32 rounding.
#ifndef DDPM_RT_TESTS_GPU_PIECES_CHECKS_H_
#define DDPM_RT_TESTS_GPU_PIECES_CHECKS_H_

#include <cmath>

#include "check.h"
#include "gpu_case.h"

namespace gpu_case {

inline bool same_bytes(const Arena& arena) {
  const std::vector<uint8_t> got = arena.download();
  return std::memcmp(got.data(), arena.twin(), got.size()) == 0;
}

inline void check_normals(const Device& device, void* stream) {
  for (const auto& [first, count] : {std::pair<uint64_t, uint64_t>{0, 1}, {0, 1024}, {3, 777}, {4096, 4097}, {1, 2}}) {
    Arena arena(device, 1 << 17);
    const Array<float> out = arena.take<float>(count);
    arena.upload();
    CHECK(launch_normals(0x123456789ABCDEFull + count, 7, kStreamKnown, first, count, out.device, stream) == 0);
    fill_normals(0x123456789ABCDEFull + count, 7, kStreamKnown, first, count, out.host);
    CHECK(same_bytes(arena));
  }
}

inline void check_combine(const Device& device, void* stream) {
  Random random(3);
  bool same = true;
  for (uint32_t n : {1u, 3u, 16u, 255u, 784u, 4096u, 5000u, 12288u}) {
    for (GpuType type : {kGpuF32, kGpuF16, kGpuBF16}) {
      for (float phi : {0.0f, 0.7f, 1.0f}) {
        constexpr uint32_t kCount = 3;
        Arena arena(device, 1 << 20);
        const List cond(&arena, type, kGpuNchw, 1, n, kCount, 0), uncond(&arena, type, kGpuNchw, 1, n, kCount, 0);
        const List out(&arena, type, kGpuNchw, 1, n, kCount, n % 2);
        const Array<float> scale = arena.take<float>(kCount);
        const Array<uint8_t> scratch = arena.take<uint8_t>(gpu_scratch_bytes(kCount, n));
        std::memset(scratch.host, 0, scratch.size);
        std::vector<float> c(kCount * n), u(kCount * n), e(kCount * n);
        for (size_t i = 0; i < c.size(); ++i) {
          cond.write(i, random.uniform());
          uncond.write(i, random.uniform());
          c[i] = cond.read(i);
          u[i] = uncond.read(i);
        }
        for (size_t s = 0; s < kCount; ++s) scale[s] = random.uniform() * 3.0f;
        arena.upload();
        cfg_combine_cpu(c.data(), u.data(), scale.host, phi, kCount, n, e.data());
        const auto combine = [&](void* to) {
          CHECK(launch_cfg_combine(cond.tensor.data, uncond.tensor.data, scale.device, phi, type, kCount, n, to,
                                   phi != 0.0f ? scratch.device : nullptr, stream) == 0);
          arena.pull();
        };
        const auto equals = [&](const List& list) {
          for (size_t i = 0; i < e.size(); ++i) {
            if (float_bits(list.read(i)) != float_bits(rounded(type, e[i]))) return false;
          }
          return true;
        };
        combine(out.tensor.data);
        same = same && equals(out);
        combine(cond.tensor.data);  // in place
        same = same && equals(cond);
      }
    }
  }
  CHECK(same);
}

// The formulas of csrc/denoisers/gaussian_mixture.cpp, written out.
inline double mixture_value(const GpuMixture& m, const double* means, const std::vector<double>& stds,
                            const std::vector<double>& weights, double ab, const std::vector<float>& x, size_t i, int64_t label) {
  const double a = std::sqrt(ab), s = std::sqrt(1.0 - ab);
  const size_t n = x.size();
  std::vector<double> log_density;
  size_t from = 0, to = m.components;
  if (m.num_classes > 0 && label >= 0 && label < static_cast<int64_t>(m.num_classes)) from = static_cast<size_t>(label), to = from + 1;
  for (size_t k = from; k < to; ++k) {
    const double v = ab * stds[k] * stds[k] + 1.0 - ab;
    double distance = 0.0;
    for (size_t j = 0; j < n; ++j) distance += (x[j] - a * means[k * n + j]) * (x[j] - a * means[k * n + j]);
    log_density.push_back(std::log(weights[k]) - 0.5 * distance / v - 0.5 * static_cast<double>(n) * std::log(v));
  }
  const double most = *std::max_element(log_density.begin(), log_density.end());
  double total = 0.0, eps = 0.0, x0 = 0.0;
  for (double& d : log_density) total += d = std::exp(d - most);
  for (size_t k = from; k < to; ++k) {
    const double r = log_density[k - from] / total, mu = means[k * n + i];
    const double pull = (x[i] - a * mu) / (ab * stds[k] * stds[k] + 1.0 - ab);
    eps += r * s * pull;
    x0 += r * (mu + a * stds[k] * stds[k] * pull);
  }
  return m.prediction == 0 ? eps : m.prediction == 1 ? x0 : a * eps - s * x0;
}

inline void check_mixture(const Device& device, void* stream) {
  Random random(4);
  double worst = 0.0;
  for (uint32_t n : {1u, 77u, 784u, 5000u}) {
    for (uint32_t prediction = 0; prediction < 3; ++prediction) {
      constexpr uint32_t kComponents = 3, kPlaces = 5, kT = 20;
      Arena arena(device, 1 << 20);
      const Array<double> means = arena.take<double>(kComponents * n), stds = arena.take<double>(kComponents);
      const Array<double> weights = arena.take<double>(kComponents), alpha_bar = arena.take<double>(kT);
      for (size_t i = 0; i < means.size; ++i) means[i] = random.uniform();
      for (size_t k = 0; k < kComponents; ++k) stds[k] = 0.1 + 0.2 * static_cast<double>(k), weights[k] = 1.0 / (k + 2.0);
      for (size_t t = 0; t < kT; ++t) alpha_bar[t] = 1.0 - 0.045 * static_cast<double>(t + 1);
      const List in(&arena, kGpuF32, kGpuNchw, 1, n, kPlaces, 0), out(&arena, kGpuF32, kGpuNchw, 1, n, kPlaces, 0);
      const Array<float> t = arena.take<float>(kPlaces);
      const Array<int64_t> label = arena.take<int64_t>(kPlaces);
      for (size_t i = 0; i < kPlaces * n; ++i) in.write(i, random.uniform());
      for (size_t p = 0; p < kPlaces; ++p) t[p] = 2.0f * static_cast<float>(random.below(kT)), label[p] = random.below(4);
      t[0] = 1000.0f;  // beyond the schedule: its end
      GpuMixture m{means.device, stds.device, weights.device, alpha_bar.device, kComponents, kT, prediction, kComponents, 2.0};
      GpuNetwork network{};
      network.in = in.tensor;
      network.out = out.tensor;
      network.t = t.device;
      network.label = label.device;
      arena.upload();
      CHECK(launch_gaussian_mixture(m, network, n, 0, kPlaces - 1, stream) == 0);
      arena.pull();
      const std::vector<double> std_values(stds.host, stds.host + kComponents), weight_values(weights.host, weights.host + kComponents);
      for (size_t p = 0; p + 1 < kPlaces; ++p) {
        std::vector<float> x(n);
        for (size_t i = 0; i < n; ++i) x[i] = in.read(p * n + i);
        const double ab = alpha_bar[std::min<size_t>(kT - 1, static_cast<size_t>(t[p] / 2.0f))];
        for (size_t i = 0; i < n; i += 1 + n / 50) {
          const double want = mixture_value(m, means.host, std_values, weight_values, ab, x, i, label[p]);
          worst = std::max(worst, std::fabs(out.read(p * n + i) - want) / (std::fabs(want) + 1e-3));
        }
      }
      CHECK(std::isnan(out.read((kPlaces - 1) * n)));  // the place after the last one asked for
      m.components = 5000;
      CHECK(launch_gaussian_mixture(m, network, n, 0, 1, stream) != 0);
    }
  }
  std::printf("mixture: worst relative error %.3g\n", worst);
  CHECK(worst <= 2e-7);
}

inline void check_all_pieces(const Device& device, void* stream) {
  check_normals(device, stream);
  check_combine(device, stream);
  check_mixture(device, stream);
}

}  // namespace gpu_case

#endif  // DDPM_RT_TESTS_GPU_PIECES_CHECKS_H_
