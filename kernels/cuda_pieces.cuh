// The pieces by themselves: normals, guidance with rescale, and the exact denoiser of a Gaussian mixture.
#ifndef DDPM_RT_KERNELS_CUDA_PIECES_CUH_
#define DDPM_RT_KERNELS_CUDA_PIECES_CUH_

#include "cuda_reduce.cuh"
#include "cuda_step.cuh"

namespace ddpm_rt {

__global__ void __launch_bounds__(kBlock) normals_kernel(uint64_t seed, uint32_t noise_index, uint32_t noise_stream,
                                                         uint64_t first, uint64_t count, float* out) {
  const uint64_t block = first / 4 + static_cast<uint64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (4 * block >= first + count) return;
  float z[4];
  four_normals(seed, static_cast<uint32_t>(block), noise_index, noise_stream, z);
  for (uint32_t m = 0; m < 4; ++m) {
    const uint64_t at = 4 * block + m;
    if (at >= first && at < first + count) out[at - first] = z[m];
  }
}

struct Combine {
  GpuTensor cond, uncond, out;   // [count, elements], NCHW of one channel
  const float* scale;            // [count]
  float phi;
};

DDPM_RT_DEVICE float combined(const Combine& c, uint64_t base, uint32_t i, float s) {
  return guide(load_element(c.cond, base + i), load_element(c.uncond, base + i), s);
}

// The factor of RESCALE per sample (blockIdx.y), by chunks.
__global__ void __launch_bounds__(kBlock, 4) combine_spread_kernel(const Combine c, uint32_t elements, const Scratch scratch) {
  const uint32_t sample = blockIdx.y;
  const uint64_t base = static_cast<uint64_t>(sample) * elements;
  const float s = c.scale[sample];
  sum_spreads(scratch, sample, elements, [&](uint32_t i) { return load_element(c.cond, base + i); },
              [&](uint32_t i) { return combined(c, base, i, s); }, c.phi, &scratch.slots[sample].factor);
}

template <bool kIsVector>
__global__ void __launch_bounds__(kBlock) combine_kernel(const Combine c, uint32_t elements, const SlotScratch* scratch) {
  const uint32_t at = 4 * (blockIdx.x * kBlock + threadIdx.x), sample = blockIdx.y;
  if (at >= elements) return;
  const uint64_t base = static_cast<uint64_t>(sample) * elements;
  const float s = c.scale[sample], factor = scratch != nullptr ? scratch[sample].factor : 1.0f;
  if constexpr (kIsVector) {
    const RawFour raw_cond = load_raw(c.cond, base + at), raw_uncond = load_raw(c.uncond, base + at);
    float cond[4], uncond[4], e[4];
    decode(raw_cond, c.cond.type, cond);
    decode(raw_uncond, c.uncond.type, uncond);
    for (int m = 0; m < 4; ++m) e[m] = guide(cond[m], uncond[m], s);
    for (int m = 0; m < 4 && scratch != nullptr; ++m) e[m] = factor * e[m];
    store_four(c.out, base + at, e);
  } else {
    for (uint32_t i = at; i < at + 4 && i < elements; ++i) {
      const float e = combined(c, base, i, s);
      store_element(c.out, base + i, scratch != nullptr ? factor * e : e);
    }
  }
}

// ---- x_t ~ sum_k w_k N(a mu_k, v_k I), v_k = a^2 d_k^2 + s^2: the posterior means of eps and x0. One block per
// evaluation (blockIdx.x); float64 inside, the distances summed by reduce.h's tree.

constexpr uint32_t kMostComponents = 1024;

// alpha and sigma at a time of the schedule, as level_at of csrc/schedule.h: between timesteps log(sigma / alpha) is linear.
DDPM_RT_DEVICE void mixture_level(const GpuMixture& mixture, double time, double* alpha, double* sigma) {
  const double last = static_cast<double>(mixture.T) - 1.0;
  const double t = time > 0.0 ? (time < last ? time : last) : 0.0, low = floor(t);
  const double ab = mixture.alpha_bar[static_cast<uint32_t>(low)];
  *alpha = sqrt(ab);
  *sigma = sqrt(1.0 - ab);
  if (t == low) return;
  const double next = mixture.alpha_bar[static_cast<uint32_t>(low) + 1];
  if (next <= 0.0) return;
  if (ab >= 1.0) {
    *alpha = sqrt(next);
    *sigma = sqrt(1.0 - next);
    return;
  }
  const double from = 0.5 * log((1.0 - ab) / ab), to = 0.5 * log((1.0 - next) / next);
  const double ratio = exp_f64(from + (t - low) * (to - from));
  *alpha = 1.0 / sqrt(1.0 + ratio * ratio);
  *sigma = ratio * *alpha;
}

__global__ void __launch_bounds__(kBlock, 2) mixture_kernel(const GpuMixture mixture, const GpuNetwork network, uint32_t n,
                                                         int32_t first_place) {
  __shared__ double responsibility[kMostComponents];
  const uint64_t place = static_cast<uint64_t>(first_place) + blockIdx.x;
  const float* x = static_cast<const float*>(network.in.data) + place * network.in.row;
  float* out = static_cast<float*>(network.out.data) + place * network.out.row;
  double a, s;
  mixture_level(mixture, static_cast<double>(network.t[place]) / mixture.time_scale, &a, &s);
  const auto variance = [&](uint32_t k) {
    const double v = a * a * mixture.stds[k] * mixture.stds[k] + s * s;
    return v > 1e-300 ? v : 1e-300;
  };
  uint32_t from = 0, to = mixture.components;
  if (mixture.num_classes > 0 && network.label != nullptr) {
    const int64_t label = network.label[place];
    if (label >= 0 && label < static_cast<int64_t>(mixture.num_classes)) from = static_cast<uint32_t>(label), to = from + 1;
  }
  for (uint32_t k = from; k < to; ++k) {
    const double* mean = mixture.means + static_cast<uint64_t>(k) * n;
    double distance = 0.0;
    for (uint32_t chunk = 0; chunk * kSumChunk < n; ++chunk) {
      double sum[1];
      const auto terms = [&](uint32_t i, double (&values)[1]) {
        const double d = static_cast<double>(x[i]) - a * mean[i];
        values[0] = d * d;
      };
      __syncthreads();  // the chunk before is still being read
      sum_chunk<1>(chunk, n, terms, sum);
      distance += sum[0];
    }
    if (threadIdx.x == 0) {
      const double v = variance(k);
      responsibility[k - from] = log(mixture.weights[k]) - 0.5 * distance / v - 0.5 * static_cast<double>(n) * log(v);
    }
  }
  if (threadIdx.x == 0) {
    double greatest = responsibility[0], total = 0.0;
    for (uint32_t k = 1; k < to - from; ++k) greatest = greatest < responsibility[k] ? responsibility[k] : greatest;
    for (uint32_t k = 0; k < to - from; ++k) total += responsibility[k] = exp_f64(responsibility[k] - greatest);
    for (uint32_t k = 0; k < to - from; ++k) responsibility[k] = to - from == 1 ? 1.0 : responsibility[k] / total;
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < n; i += kBlock) {
    double eps = 0.0, x0 = 0.0;
    for (uint32_t k = from; k < to; ++k) {
      const double mu = mixture.means[static_cast<uint64_t>(k) * n + i];
      const double pull = (static_cast<double>(x[i]) - a * mu) / variance(k);
      eps += responsibility[k - from] * s * pull;
      x0 += responsibility[k - from] * (mu + a * mixture.stds[k] * mixture.stds[k] * pull);
    }
    const double value = mixture.prediction == 0 ? eps : mixture.prediction == 1 ? x0 : a * eps - s * x0;
    out[i] = static_cast<float>(value);
  }
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_CUDA_PIECES_CUH_
