// The GPU kernels on a GPU, held against step_cpu by the same checks that the emulation runs; then what only a GPU can
// show: the 16-bit conversions of the hardware, replay as a graph, and the same bits on every run.
//   test_step_cuda [rounds, default 2]      prints one line of JSON; status 77 where there is no GPU
// Not yet run on a GPU. Run it also under compute-sanitizer, and compute-sanitizer --tool racecheck.
#include "cuda_device.h"
#include "gpu_lane_checks.h"
#include "gpu_pieces_checks.h"
#include "gpu_step_checks.h"

namespace {

using namespace ddpm_rt;
using namespace gpu_case;

__global__ void conversions_kernel(float* from_half, float* from_bfloat, uint16_t* to_half, uint16_t* to_bfloat,
                                   uint32_t* pairs, const float* values) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  from_half[i] = half_to_float(static_cast<uint16_t>(i));
  from_bfloat[i] = bfloat16_to_float(static_cast<uint16_t>(i));
  to_half[i] = float_to_half(values[i]);
  to_bfloat[i] = float_to_bfloat16(values[i]);
  pairs[2 * i] = floats_to_halves(values[i], values[i ^ 1]);
  pairs[2 * i + 1] = floats_to_bfloat16s(values[i], values[i ^ 1]);
}

void check_conversions(const Device& device) {
  constexpr uint32_t kCount = 65536;
  Arena arena(device, 1 << 22);
  const Array<float> from_half = arena.take<float>(kCount), from_bfloat = arena.take<float>(kCount);
  const Array<float> values = arena.take<float>(kCount);
  const Array<uint16_t> to_half = arena.take<uint16_t>(kCount), to_bfloat = arena.take<uint16_t>(kCount);
  const Array<uint32_t> pairs = arena.take<uint32_t>(2 * kCount);
  Random random(1);
  for (int round = 0; round < 64; ++round) {  // every exponent and sign, random mantissas, half of them near the middles
    for (uint32_t i = 0; i < kCount; ++i) {
      const uint32_t bits = i << 16 | (random.next() & 0xFFFF);
      values[i] = bits_float(random.coin() ? bits : (bits & ~0x1FFFu) | (0x0FFFu + random.below(3)));
    }
    arena.upload();
    conversions_kernel<<<kCount / 256, 256>>>(from_half.device, from_bfloat.device, to_half.device, to_bfloat.device,
                                              pairs.device, values.device);
    arena.pull();
    bool same = true;
    for (uint32_t i = 0; i < kCount; ++i) {
      const auto equal = [](float a, float b) { return float_bits(a) == float_bits(b) || (a != a && b != b); };
      same = same && equal(from_half[i], half_to_float(static_cast<uint16_t>(i)));
      same = same && equal(from_bfloat[i], bfloat16_to_float(static_cast<uint16_t>(i)));
      same = same && to_half[i] == float_to_half(values[i]) && to_bfloat[i] == float_to_bfloat16(values[i]);
      same = same && pairs[2 * i] == floats_to_halves(values[i], values[i ^ 1]);
      same = same && pairs[2 * i + 1] == floats_to_bfloat16s(values[i], values[i ^ 1]);
    }
    CHECK(same);
  }
}

// Reductions and step captured once and replayed: the CPU's bytes; and again, the same bytes.
void check_graph(const Device& device, cudaStream_t stream) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    Random random(seed);
    Setup setup{3, seed % 2 ? 6400u : 1024u};
    setup.has_learned = true;
    setup.out_type = kGpuF16;
    World world(device, setup, &random);
    world.arena().upload();
    const std::vector<uint8_t> before(world.arena().twin(), world.arena().twin() + world.arena().used());
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cuda_device::expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    CHECK(launch_step(world.lane(), kAllNeeds, stream) == 0);
    cuda_device::expect(cudaStreamEndCapture(stream, &graph), "capture");
    cuda_device::expect(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
    world.expect_step();
    for (int replay = 0; replay < 20; ++replay) {
      cuda_device::expect(cudaGraphLaunch(executable, stream), "replay");
      CHECK(world.differing() == 0);
      world.arena().restore(before, world.arena().offset(world.scratch()));
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp properties;
  if (!cuda_device::is_there(&properties)) return cuda_device::kSkipped;
  const Device device = cuda_device::device();
  cudaStream_t stream;
  cuda_device::expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 2;
  check_conversions(device);
  check_all_of_step(device, 0, rounds, stream);
  check_all_of_lane(device, stream);
  check_all_pieces(device, stream);
  check_graph(device, stream);
  std::printf("{\"test\": \"step_cuda\", ");
  cuda_device::print_versions(properties);
  std::printf(", \"passed\": %d, \"failed\": %d}\n", checks_passed, checks_failed);
  cudaStreamDestroy(stream);
  return checks_failed == 0 && checks_passed > 0 ? 0 : 1;
}
