// What every device must show of launch_step: the CPU's bytes, and nothing else touched. Run on the emulation by
// test_step_cuda_emulated.cpp and on a GPU by test_step_cuda.cu.
#ifndef DDPM_RT_TESTS_GPU_STEP_CHECKS_H_
#define DDPM_RT_TESTS_GPU_STEP_CHECKS_H_

#include "check.h"
#include "gpu_case.h"

namespace gpu_case {

constexpr uint32_t kAllNeeds = kNeedPair | kNeedNoise | kNeedRegisters | kNeedRare | kNeedReductions;

inline bool step_equals_cpu(const Device& device, const Setup& setup, uint64_t seed, uint32_t more_needs, void* stream,
                            const std::function<void(Case*)>& alter = nullptr) {
  Random random(seed);
  World world(device, setup, &random, alter);
  world.arena().upload();
  CHECK(launch_step(world.lane(), world.needs() | more_needs, stream) == 0);
  world.expect_step();
  const size_t differing = world.differing();
  if (differing != 0) {
    std::printf("step: %zu bytes differ; %u x %u, types %d %d, layout %d, seed %d, needs %#x + %#x\n", differing,
                setup.channels, setup.pixels, setup.in_type, setup.out_type, setup.layout, static_cast<int>(seed),
                world.needs(), more_needs);
  }
  return differing == 0;
}

// Shapes for each way of access, odd ones among them; every type of input with every type of output.
inline void check_step(const Device& device, uint64_t first_seed, int rounds, void* stream) {
  const std::pair<uint32_t, uint32_t> kShapes[] = {{1, 1}, {1, 5}, {3, 4},  {3, 25}, {1, 784}, {3, 64}, {4, 36},
                                                   {2, 8}, {8, 20}, {5, 7}, {3, 257}, {16, 4}, {3, 1024}};
  constexpr GpuType kTypes[] = {kGpuF32, kGpuF16, kGpuBF16};
  uint64_t seed = first_seed;
  bool same = true;
  for (int round = 0; round < rounds; ++round) {
    for (const auto& [channels, pixels] : kShapes) {
      for (GpuLayout layout : {kGpuNchw, kGpuNhwc}) {
        for (int third = 0; third < 3; ++third) {  // of the nine pairs of types, all of them over the shapes
          Random random(++seed);
          const uint64_t types = seed % 9;
          Setup setup{channels, pixels};
          setup.layout = layout;
          setup.in_type = kTypes[types % 3];
          setup.out_type = kTypes[types / 3];
          setup.is_rare = seed % 2 == 0;
          setup.has_learned = setup.is_rare && random.coin();
          setup.extra_inputs = random.below(4) == 0 ? 1 + random.below(4) : 0;
          setup.has_own_guide = random.coin();
          setup.shift = random.below(5) == 0 ? 1 : 0;
          const uint32_t more = random.coin() ? 0 : random.next() & kAllNeeds;
          same = step_equals_cpu(device, setup, seed, more, stream) && same;
        }
      }
    }
  }
  CHECK(same);
}

// Each variant is forced on plain rows, as by a stranger in the lane that needs it.
inline void check_variants(const Device& device, void* stream) {
  bool same = true;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    for (GpuLayout layout : {kGpuNchw, kGpuNhwc}) {
      for (uint32_t channels : {1u, 3u, 4u}) {
        for (uint32_t needs = 0; needs < 16; ++needs) {
          Setup setup{channels, 64};
          setup.layout = layout;
          setup.in_type = setup.out_type = seed % 2 ? kGpuF16 : kGpuF32;
          setup.is_rare = false;
          same = step_equals_cpu(device, setup, seed, needs, stream) && same;
        }
      }
    }
  }
  CHECK(same);
}

// Samples of several chunks, and of several blocks of the selection.
inline void check_large_samples(const Device& device, void* stream) {
  bool same = true;
  uint64_t seed = 1000;
  for (const auto& [channels, pixels] : {std::pair<uint32_t, uint32_t>{3, 1600}, {3, 6400}, {4, 9216}, {1, 50001}}) {
    for (GpuLayout layout : {kGpuNchw, kGpuNhwc}) {
      Setup setup{channels, pixels};
      setup.layout = layout;
      setup.samples = 2;
      setup.has_learned = true;
      setup.out_type = kGpuF16;
      same = step_equals_cpu(device, setup, ++seed, 0, stream) && same;
    }
  }
  CHECK(same);
}

// Quantiles among ties and neighbours in the last bits, where digits of the selection are shared.
inline void check_ties(const Device& device, void* stream) {
  bool same = true;
  for (uint64_t seed = 1; seed <= 36; ++seed) {
    Random values(seed + 77);
    const uint32_t kind = values.below(3);
    const auto alter = [&](Case* c) {
      c->row.flags = kThreshold;
      c->row.p = 1.0f;
      c->row.q = 0.0f;
      c->row.threshold_cap = 100.0f;
      c->row.wx[kX0] = 1.0f;
      for (float& v : c->arrays[step_case::kStateX]) {
        if (kind == 0) v = bits_float(float_bits(1.25f) + values.below(900));
        if (kind == 1) v = static_cast<float>(values.below(4));
        if (kind == 2) v = bits_float(float_bits(1.0f) - 400 + values.below(800));
      }
    };
    Setup setup{3, seed % 6 == 0 ? 6400u : 77u};
    same = step_equals_cpu(device, setup, seed, 0, stream, alter) && same;
  }
  CHECK(same);
}

// Twice in a row: scratch is as before, so that a graph may replay.
inline void check_scratch_is_left_clean(const Device& device, void* stream) {
  Random random(5);
  Setup setup{3, 6400};
  setup.has_learned = true;
  World world(device, setup, &random);
  for (size_t k = 0; k < setup.samples; ++k) CHECK(world.sample(k).elements == 3 * 6400);
  world.arena().upload();
  const std::vector<uint8_t> before(world.arena().twin(), world.arena().twin() + world.arena().used());
  const auto state_after = [&] {
    CHECK(launch_step(world.lane(), kAllNeeds, stream) == 0);
    return world.arena().download();
  };
  const std::vector<uint8_t> once = state_after();
  const size_t scratch = world.arena().offset(world.scratch());
  world.arena().restore(before, scratch);
  const std::vector<uint8_t> twice = state_after();
  CHECK(std::equal(once.begin(), once.begin() + static_cast<std::ptrdiff_t>(scratch), twice.begin()));
  CHECK(once != before);
}

// A row that needs what launch_step was not told is reported.
inline void check_needs_are_reported(const Device& device, void* stream) {
  Random random(8);
  Setup setup{3, 64};
  setup.samples = 3;
  World world(device, setup, &random);
  world.arena().upload();
  CHECK(world.needs() != 0);
  CHECK(launch_step(world.lane(), 0, stream) == 0);
  world.arena().pull();
  bool is_reported = false;
  for (uint32_t s = 0; s < world.lane().slot_count; ++s) is_reported = is_reported || (world.status(s) & kStatusNeeds);
  CHECK(is_reported);
  CHECK(world.status(1) == 0 && world.status(3) == 0);
  GpuLane lane = world.lane();
  lane.scratch = nullptr;
  CHECK(launch_step(lane, kNeedThreshold, stream) != 0);
}

inline void check_all_of_step(const Device& device, uint64_t first_seed, int rounds, void* stream) {
  check_step(device, first_seed, rounds, stream);
  check_variants(device, stream);
  check_large_samples(device, stream);
  check_ties(device, stream);
  check_scratch_is_left_clean(device, stream);
  check_needs_are_reported(device, stream);
}

}  // namespace gpu_case

#endif  // DDPM_RT_TESTS_GPU_STEP_CHECKS_H_
