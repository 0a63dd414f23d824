// A host program in C++: a plan of one Gaussian, written, sampled, measured.
#include <ddpm_rt/ddpm_rt.hpp>

#include <cmath>
#include <cstdio>

int main() {
  const char* const path = "embed_cpp.plan";
  const std::vector<double> means{0.5, -0.25}, stds{0.1}, weights{1.0}, alpha_bar = ddpm_rt::alpha_bar("linear");
  ddpm_rt::PlanWriter writer;
  writer.add("alpha_bar", alpha_bar.data(), alpha_bar.size() * sizeof(double));
  writer.add("means", means.data(), sizeof(double) * 2);
  writer.add("stds", stds.data(), sizeof(double));
  writer.add("weights", weights.data(), sizeof(double));
  writer.finish(R"({"format": 1, "row_version": 1, "rng_version": 1, "name": "gaussian",
    "networks": {"unet": {"kind": "gaussian_mixture", "means": "means", "stds": "stds", "weights": "weights", "K": 1}},
    "stages": [{"kind": "diffusion", "network": "unet"}],
    "sample": {"shape": [2], "role": "vector", "range": [-1, 1]},
    "schedule": {"section": "alpha_bar", "T": 1000}, "prediction": "eps",
    "defaults": {"sampler": "ddpm", "steps": 200, "clip": "none"}})", path);

  ddpm_rt::Engine engine(path);
  std::remove(path);
  ddpm_rt::SampleOptions options;
  options.n = 500;
  options.seed = 0;
  options.output = DDPM_RT_FLOAT_NCHW;
  std::vector<float> samples(2 * 500);
  engine.sample(options, samples.data(), samples.size() * sizeof(float));
  double mean[2] = {0, 0};
  for (std::size_t i = 0; i < samples.size(); ++i) mean[i % 2] += samples[i] / 500.0;
  std::printf("means %.4f %.4f of 0.5 -0.25\n", mean[0], mean[1]);
  const double five_sigma = 5 * 0.1 / std::sqrt(500.0);
  return std::fabs(mean[0] - 0.5) < five_sigma && std::fabs(mean[1] + 0.25) < five_sigma ? 0 : 1;
}
