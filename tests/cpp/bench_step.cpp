// Step kernel against a copy, in one run: bytes per second beyond the last-level cache with noise off, and time per
// element with noise on. Medians of interleaved rounds, one thread, in processor time: on a shared machine the wall
// clock would mostly tell what else ran.
//   bench_step [million elements, default 64] [rounds, default 7]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "step.h"

using namespace ddpm_rt;

namespace {

constexpr size_t kElements = 3 * 32 * 32;

template <typename Work>
double seconds(Work work) {
  const std::clock_t start = std::clock();
  work();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

StepRow ddim_row(float noise_weight) {
  StepRow row{};
  row.flags = kClip;
  row.gs = 1.0f;
  row.c_in = 1.0f;
  row.p = 1.02f;
  row.q = -0.2f;
  row.clip_lo = -1.0f;
  row.clip_hi = 1.0f;
  row.wx[kX] = 0.3f;
  row.wx[kX0] = 0.69f;
  row.wx[kZ] = noise_weight;
  return row;
}

// Aligned to a cache line, as the engine's own buffers are.
struct Buffer {
  std::vector<float> storage;
  float* data = nullptr;

  Buffer(size_t size, float value) : storage(size == 0 ? 0 : size + 16, value) {
    data = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64 / sizeof(float);
  }
};

struct Batch {
  Buffer x, cond, uncond, in0, in1;
  std::vector<StepSlot> slots;
  std::vector<uint8_t> bad;

  Batch(size_t count, const StepRow* row, bool is_guided)
      : x(count * kElements, 0.5f), cond(count * kElements, 0.25f), uncond(is_guided ? count * kElements : 0, 0.125f),
        in0(count * kElements, 1.0f), in1(is_guided ? count * kElements : 0, 1.0f), slots(count), bad(count) {
    for (size_t s = 0; s < count; ++s) {
      StepSlot& slot = slots[s];
      slot.row = slot.next = row;
      slot.seed = s;
      slot.scale = 3.0f;
      slot.x = x.data + s * kElements;
      slot.cond = cond.data + s * kElements;
      slot.in[0] = in0.data + s * kElements;
      if (is_guided) slot.uncond = uncond.data + s * kElements;
      if (is_guided) slot.in[1] = in1.data + s * kElements;
    }
  }
  void step() { step_cpu(slots.data(), slots.size(), kElements, bad.data()); }
};

void bench_bandwidth(size_t count, int rounds, bool is_guided) {
  const StepRow row = ddim_row(0.0f);
  Batch batch(count, &row, is_guided);
  const double elements = static_cast<double>(count * kElements);
  const double bytes = elements * (is_guided ? 24.0 : 16.0);
  std::vector<double> copies, steps, ratios;
  for (int round = -1; round < rounds; ++round) {
    const double copy = seconds([&] { memcpy(batch.in0.data, batch.cond.data, count * kElements * sizeof(float)); });
    const double step = seconds([&] { batch.step(); });
    if (round < 0) continue;  // the first round maps pages
    copies.push_back(8.0 * elements / copy / 1e9);
    steps.push_back(bytes / step / 1e9);
    ratios.push_back(steps.back() / copies.back());
  }
  printf("%-28s copy %6.2f GB/s   step %6.2f GB/s   ratio %.3f\n", is_guided ? "noise off, guided (24 B/el)"
                                                                             : "noise off, unguided (16 B/el)",
         median(copies), median(steps), median(ratios));
}

// In the second-level cache; `flags` beyond CLIP change the row's arithmetic, nothing else.
void bench_arithmetic(const char* what, int rounds, float noise_weight, uint32_t flags) {
  StepRow row = ddim_row(noise_weight);
  row.flags |= flags;
  row.phi = 0.7f;
  row.threshold_p = 0.995f;
  row.threshold_cap = 100.0f;
  Batch batch(4, &row, true);  // 240 KB
  fill_normals(2, 0, kStreamInit, 0, 4 * kElements, batch.cond.data);
  std::vector<double> times, fills;
  const Buffer normals(4 * kElements, 0.0f);
  const double per_round = 100.0 * 4 * kElements;
  for (int round = -1; round < 5 * rounds; ++round) {
    fill_normals(1, 0, kStreamInit, 0, 4 * kElements, batch.x.data);
    const double step = seconds([&] {
      for (int i = 0; i < 100; ++i) batch.step();
    });
    const double fill = seconds([&] {
      for (uint32_t i = 0; i < 100; ++i) fill_normals(1, i, kStreamInit, 0, 4 * kElements, normals.data);
    });
    if (round < 0) continue;
    times.push_back(step / per_round * 1e9);
    fills.push_back(fill / per_round * 1e9);
  }
  printf("%-28s %.3f ns/element (step, guided, in cache)", what, median(times));
  if (noise_weight != 0.0f) printf("   %.3f ns/normal (fill_normals)", median(fills));
  printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const double millions = argc > 1 ? atof(argv[1]) : 64.0;
  const int rounds = argc > 2 ? std::max(1, atoi(argv[2])) : 7;
  const size_t count = std::max<size_t>(1, static_cast<size_t>(millions * 1e6 / kElements) + 1);
  bench_bandwidth(count, rounds, false);
  bench_bandwidth(count, rounds, true);
  bench_arithmetic("noise off", rounds, 0.0f, 0);
  bench_arithmetic("noise on", rounds, 0.1f, 0);
  bench_arithmetic("rescale", rounds, 0.0f, kRescale);
  bench_arithmetic("threshold", rounds, 0.0f, kThreshold);
  return 0;
}
