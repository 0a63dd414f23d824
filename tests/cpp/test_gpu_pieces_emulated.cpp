// The pieces of the GPU kernels on the host; the mixture also against the engine's own denoiser.
#include "cuda_emulation.h"

#include "denoiser.h"
#include "gpu_pieces_checks.h"
#include "host_device.h"
#include "mixture.h"
#include "plan.h"

namespace {

using namespace gpu_case;

void check_mixture_is_the_engine_s(const Device& device) {
  constexpr const char* kPath = "test_gpu_pieces.plan";
  constexpr size_t kElements = 48, kPlaces = 6;
  Mixture mixture;
  mixture.shape = {3, 4, 4};
  mixture.role = "image";
  mixture.conditional = true;
  Random random(2);
  for (size_t i = 0; i < 3 * kElements; ++i) mixture.means.push_back(random.uniform());
  mixture.stds = {0.1, 0.3, 0.5};
  mixture.weights = {0.2, 0.3, 0.5};
  CHECK(write_mixture(mixture, kPath) == DDPM_RT_OK);
  const auto plan = Plan::open(kPath);
  const ModelSpec spec = parse_manifest(plan->manifest(), plan.get(), nullptr);
  const auto denoiser = make_gaussian_mixture(spec, *plan);
  std::remove(kPath);

  Arena arena(device, 1 << 20);
  const List in(&arena, kGpuF32, kGpuNchw, 3, 16, kPlaces, 0), out(&arena, kGpuF32, kGpuNchw, 3, 16, kPlaces, 0);
  const Array<float> t = arena.take<float>(kPlaces);
  const Array<int64_t> label = arena.take<int64_t>(kPlaces);
  const auto doubles = [&](const std::vector<double>& values) {
    const Array<double> array = arena.take<double>(values.size());
    std::copy(values.begin(), values.end(), array.host);
    return array.device;
  };
  std::vector<float> x(kPlaces * kElements), expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = random.uniform();
    in.write(i, x[i]);
  }
  for (size_t p = 0; p < kPlaces; ++p) t[p] = static_cast<float>(random.below(1000)), label[p] = random.below(4);
  const GpuMixture gpu{doubles(mixture.means), doubles(mixture.stds), doubles(mixture.weights),
                       doubles(spec.schedule.alpha_bar), 3, 1000, 0, 3, 1.0};
  GpuNetwork network{};
  network.in = in.tensor;
  network.out = out.tensor;
  network.t = t.device;
  network.label = label.device;
  Evaluations evaluations;
  evaluations.capacity = kPlaces;
  evaluations.x = x.data();
  evaluations.t = t.host;
  evaluations.label = label.host;
  evaluations.out = expected.data();
  denoiser->bind(evaluations);
  const Call call{static_cast<int>(kPlaces), 1, 0, static_cast<int>(kPlaces)};
  denoiser->run(&call, 1);
  arena.upload();
  CHECK(launch_gaussian_mixture(gpu, network, kElements, 0, kPlaces, nullptr) == 0);
  arena.pull();
  double worst = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    worst = std::max(worst, std::fabs(out.read(i) - double{expected[i]}) / (std::fabs(expected[i]) + 1e-3));
  }
  CHECK(worst <= 2e-7);
}

}  // namespace

int main() {
  const Device device = cuda_emulation::host_device();
  for (bool is_backwards : {false, true}) {
    cuda_emulation::runs_backwards = is_backwards;
    check_all_pieces(device, nullptr);
    check_mixture_is_the_engine_s(device);
  }
  return finish();
}
