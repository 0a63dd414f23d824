// The GPU step against a device-to-device copy of the same run: bytes moved per second, cold second-level cache (each
// pass moves far more than it holds), medians of interleaved rounds.
//   bench_step_cuda [million elements, default 64] [rounds, default 21]     prints one line of JSON per shape and row
// Bytes are those of step_gpu.h: what a pass cannot do without. A share of 1 is the copy's speed. For THRESHOLD, RESCALE
// the bytes of the step alone are counted, so that the share shows what the reductions cost. Not yet run on a GPU.
#include "cuda_device.h"

#include <algorithm>
#include <vector>

#include "step_gpu.h"

using namespace ddpm_rt;

namespace {

constexpr uint32_t kNoFlags = 0;

struct Shape {
  const char* name;
  uint32_t channels, pixels;
};

struct Kind {
  const char* name;
  uint32_t flags;
  float weight_z;
  bool is_guided, has_history;
};

const Shape kShapes[] = {{"cifar10 3x32x32", 3, 1024}, {"latent 4x64x64", 4, 4096}, {"pixels 3x256x256", 3, 65536}};
const Kind kKinds[] = {
    {"plain", kNoFlags, 0.0f, false, false},      {"noise", kNoFlags, 0.1f, false, false},
    {"guided", kNoFlags, 0.0f, true, false},      {"guided noise", kNoFlags, 0.1f, true, false},
    {"guided history", kPush, 0.0f, true, true},  {"guided rescale", kRescale, 0.0f, true, false},
    {"guided threshold", kThreshold, 0.0f, true, false},
};

template <typename T>
T* device_array(size_t size, int byte) {
  void* memory = nullptr;
  cuda_device::expect(cudaMalloc(&memory, size * sizeof(T)), "cudaMalloc");
  cuda_device::expect(cudaMemset(memory, byte, size * sizeof(T)), "cudaMemset");
  return static_cast<T*>(memory);
}

struct Batch {
  GpuLane lane{};
  StepRow* table = nullptr;
  uint32_t needs = 0;
  double bytes_per_element = 0.0;
  std::vector<void*> owned;

  Batch(const Shape& shape, const Kind& kind, GpuType type, GpuLayout layout, uint32_t count) {
    const uint64_t n = static_cast<uint64_t>(shape.channels) * shape.pixels, stride = (n + 63) / 64 * 64;
    const size_t bytes = type == kGpuF32 ? 4 : 2, evaluations = kind.is_guided ? 2 : 1;
    const auto own = [&](auto* memory) {
      owned.push_back(memory);
      return memory;
    };
    StepRow rows[2]{};
    rows[0].flags = kind.flags | (kind.flags & kThreshold ? kNoFlags : uint32_t{kClip});
    rows[0].gs = rows[0].c_in = rows[1].c_in = 1.0f;
    rows[0].p = 1.02f;
    rows[0].q = -0.2f;
    rows[0].clip_lo = -1.0f;
    rows[0].clip_hi = 1.0f;
    rows[0].threshold_p = 0.995f;
    rows[0].threshold_cap = 100.0f;
    rows[0].phi = 0.7f;
    rows[0].wx[kX] = 0.3f;
    rows[0].wx[kX0] = 0.69f;
    rows[0].wx[kZ] = kind.weight_z;
    rows[0].wh[kX0] = kind.has_history ? 1.0f : 0.0f;
    rows[0].wx[kH1] = kind.has_history ? 0.2f : 0.0f;
    table = own(device_array<StepRow>(2, 0));
    cuda_device::expect(cudaMemcpy(table, rows, sizeof rows, cudaMemcpyHostToDevice), "rows");
    lane.slot_count = count;
    lane.channels = shape.channels;
    lane.pixels = shape.pixels;
    lane.stride = stride;
    lane.x = own(device_array<float>(count * stride, 0));
    for (int k = 0; k < 3 && kind.has_history; ++k) lane.history[k] = own(device_array<float>(count * stride, 0));
    lane.status = own(device_array<uint32_t>(count, 0));
    lane.scratch = own(device_array<uint8_t>(gpu_scratch_bytes(count, n), 0));
    const auto list = [&] {
      return GpuTensor{own(device_array<uint8_t>(count * evaluations * n * bytes, 0x3A)), type, layout, shape.channels, n};
    };
    lane.network[0].in = list();
    lane.network[0].out = list();
    lane.network[1] = lane.network[0];
    std::vector<GpuSlot> slots(count);
    for (uint32_t s = 0; s < count; ++s) {
      GpuSlot& slot = slots[s] = GpuSlot{};
      slot.table = table;
      slot.row_count = 2;
      slot.flags = kSlotActive;
      slot.seed = s;
      slot.scale = 3.0f;
      const int32_t first = static_cast<int32_t>(s * evaluations);
      for (int role = 0; role < kRoles; ++role) {
        slot.places[role] = slot.next[role] = role < static_cast<int>(evaluations) ? first + role : kNoPlace;
      }
    }
    lane.slots = own(device_array<GpuSlot>(count, 0));
    cuda_device::expect(cudaMemcpy(lane.slots, slots.data(), count * sizeof(GpuSlot), cudaMemcpyHostToDevice), "slots");
    needs = gpu_needs(rows[0], kind.is_guided, false, false);
    bytes_per_element = 8.0 + 2.0 * static_cast<double>(evaluations * bytes) + (kind.has_history ? 8.0 : 0.0);
  }
  ~Batch() {
    for (void* memory : owned) cudaFree(memory);
  }
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

template <typename Work>
double milliseconds(cudaEvent_t start, cudaEvent_t stop, Work work) {
  cudaEventRecord(start, nullptr);
  work();
  cudaEventRecord(stop, nullptr);
  cuda_device::expect(cudaEventSynchronize(stop), "a round");
  float elapsed = 0.0f;
  cudaEventElapsedTime(&elapsed, start, stop);
  return elapsed;
}

void bench(const cudaDeviceProp& properties, const Shape& shape, const Kind& kind, GpuType type, GpuLayout layout,
           double elements, int rounds) {
  const double n = static_cast<double>(shape.channels) * shape.pixels;
  const uint32_t count = static_cast<uint32_t>(std::min(65535.0, std::max(1.0, elements / n + 1.0)));
  Batch batch(shape, kind, type, layout, count);
  const double moved = batch.bytes_per_element * n * count;
  const size_t copied = static_cast<size_t>(moved / 2.0);  // a copy reads and writes each byte
  uint8_t* const from = device_array<uint8_t>(copied, 1);
  uint8_t* const to = device_array<uint8_t>(copied, 2);
  cudaEvent_t start, stop;
  cudaEventCreate(&start);
  cudaEventCreate(&stop);
  std::vector<double> copies, steps, shares;
  for (int round = -2; round < rounds; ++round) {
    const double copy = milliseconds(start, stop, [&] { cudaMemcpyAsync(to, from, copied, cudaMemcpyDeviceToDevice, nullptr); });
    const double step = milliseconds(start, stop, [&] {
      if (launch_step(batch.lane, batch.needs, nullptr) != 0) std::exit(1);
    });
    if (round < 0) continue;
    copies.push_back(2.0 * static_cast<double>(copied) / copy / 1e6);
    steps.push_back(moved / step / 1e6);
    shares.push_back(steps.back() / copies.back());
  }
  const char* const types[] = {"fp32", "fp16", "bf16"};
  std::printf("{\"bench\": \"step_cuda\", ");
  cuda_device::print_versions(properties);
  std::printf(", \"shape\": \"%s\", \"row\": \"%s\", \"type\": \"%s\", \"layout\": \"%s\", \"samples\": %u, "
              "\"bytes_per_element\": %g, \"copy_gb_s\": %.1f, \"step_gb_s\": %.1f, \"share\": %.4f, \"share_least\": %.4f, "
              "\"share_most\": %.4f, \"rounds\": %d}\n",
              shape.name, kind.name, types[type], layout == kGpuNchw ? "NCHW" : "NHWC", count, batch.bytes_per_element,
              median(copies), median(steps), median(shares), *std::min_element(shares.begin(), shares.end()),
              *std::max_element(shares.begin(), shares.end()), rounds);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaFree(from);
  cudaFree(to);
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp properties;
  if (!cuda_device::is_there(&properties)) return cuda_device::kSkipped;
  const double elements = 1e6 * (argc > 1 ? std::atof(argv[1]) : 64.0);
  const int rounds = argc > 2 ? std::max(1, std::atoi(argv[2])) : 21;
  for (const Shape& shape : kShapes) {
    for (const Kind& kind : kKinds) {
      for (GpuType type : {kGpuF32, kGpuF16}) {
        for (GpuLayout layout : {kGpuNchw, kGpuNhwc}) bench(properties, shape, kind, type, layout, elements, rounds);
      }
    }
  }
  return 0;
}
