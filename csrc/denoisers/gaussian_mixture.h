// The arrays of a mixture's plan, for its two executors.
#ifndef DDPM_RT_DENOISERS_GAUSSIAN_MIXTURE_H_
#define DDPM_RT_DENOISERS_GAUSSIAN_MIXTURE_H_

#include <vector>

#include "denoiser.h"

namespace ddpm_rt {

struct MixtureArrays {
  std::vector<double> means, stds, weights;  // [K, N], [K], [K]
};
MixtureArrays read_mixture(const ModelSpec& spec, const Plan& plan);  // throws Error(kPlan)

}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISERS_GAUSSIAN_MIXTURE_H_
