// What every device must show of the loop around the step: ticks, packets, copies, what is reported of a bad sample.
#ifndef DDPM_RT_TESTS_GPU_LANE_CHECKS_H_
#define DDPM_RT_TESTS_GPU_LANE_CHECKS_H_

#include <limits>
#include <utility>

#include "gpu_lane_world.h"

namespace gpu_case {

inline void check_ticks(const Device& device, void* stream) {
  uint64_t seed = 0;
  for (const auto& [channels, pixels] : {std::pair<uint32_t, uint32_t>{1, 49}, {3, 64}, {4, 16}, {3, 25}}) {
    for (GpuLayout layout : {kGpuNchw, kGpuNhwc}) {
      for (GpuType type : {kGpuF32, kGpuF16, kGpuBF16}) {
        ++seed;
        const uint32_t rows_bytes = seed % 3 == 0 ? 0 : seed % 3 == 1 ? 24 : 64;
        TickWorld world(device, {channels, pixels, type, seed % 2 ? type : kGpuF32, layout, rows_bytes}, seed, stream);
        CHECK(world.run());
      }
    }
  }
}

// Copies of any length and alignment, and zeros from null.
inline void check_copies(const Device& device, void* stream) {
  Random random(1);
  Arena arena(device, 1 << 20);
  const GpuLane lane{};
  std::vector<GpuCopy> list;
  std::vector<std::pair<Array<uint8_t>, Array<uint8_t>>> pairs;
  for (size_t bytes : {size_t{1}, size_t{15}, size_t{16}, size_t{17}, size_t{4096}, size_t{100003}}) {
    for (size_t shift : {size_t{0}, size_t{3}}) {
      pairs.emplace_back(arena.take<uint8_t>(bytes, shift), arena.take<uint8_t>(bytes));
      for (size_t i = 0; i < bytes; ++i) pairs.back().first[i] = static_cast<uint8_t>(random.next());
      list.push_back({pairs.size() % 3 == 0 ? nullptr : pairs.back().first.device, pairs.back().second.device, bytes});
    }
  }
  const Array<GpuCopy> copies = arena.take<GpuCopy>(list.size());
  std::copy(list.begin(), list.end(), copies.host);
  arena.upload();
  GpuPacket packet{};
  packet.copies = copies.device;
  packet.copy_count = static_cast<uint32_t>(list.size());
  CHECK(launch_apply(lane, packet, stream) == 0);
  for (size_t k = 0; k < pairs.size(); ++k) {
    for (size_t i = 0; i < pairs[k].second.size; ++i) pairs[k].second[i] = list[k].from == nullptr ? 0 : pairs[k].first[i];
  }
  const std::vector<uint8_t> got = arena.download();
  CHECK(std::memcmp(got.data(), arena.twin(), got.size()) == 0);
}

// An infinity in a finished state is reported though no row computed it, and becomes a level of its own.
inline void check_bad_results(const Device& device, void* stream) {
  Arena arena(device, 1 << 16);
  GpuLane lane{};
  lane.slot_count = 2;
  lane.channels = 3;
  lane.pixels = 10;
  lane.stride = 64;
  const Array<float> x = arena.take<float>(128);
  for (size_t i = 0; i < 128; ++i) x[i] = 0.5f;
  x[64 + 17] = std::numeric_limits<float>::infinity();
  const Array<uint32_t> status = arena.take<uint32_t>(2), reported = arena.take<uint32_t>(2);
  status[0] = kStatusNeeds;
  status[1] = 0;
  const Array<uint8_t> images = arena.take<uint8_t>(60);
  const Array<GpuFinish> items = arena.take<GpuFinish>(2);
  for (uint32_t s = 0; s < 2; ++s) items[s] = {s, kFinishRounded, 0.0f, 1.0f, images.device + 30 * s, reported.device + s};
  lane.x = x.device;
  lane.status = status.device;
  arena.upload();
  CHECK(launch_finish(lane, items.device, 2, stream) == 0);
  arena.pull();
  CHECK(reported[0] == kStatusNeeds && reported[1] == kStatusNonfinite);
  CHECK(images[0] == 128 && images[30] == 128 && images[30 + 3 * 7 + 1] == 255);
}

inline void check_all_of_lane(const Device& device, void* stream) {
  check_ticks(device, stream);
  check_copies(device, stream);
  check_bad_results(device, stream);
}

}  // namespace gpu_case

#endif  // DDPM_RT_TESTS_GPU_LANE_CHECKS_H_
