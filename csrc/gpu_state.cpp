#include "gpu_state.h"

#include <string>

namespace ddpm_rt {
namespace {

constexpr uint64_t kStrideFloats = 64;  // GpuLane: registers of neighbours share no cache line
constexpr uint32_t kReductions = kNeedRescale | kNeedNorm | kNeedThreshold | kNeedVlb;

uint64_t stride_of(size_t elements) { return (elements + kStrideFloats - 1) / kStrideFloats * kStrideFloats; }
}  // namespace

uint64_t GpuState::bytes_for(size_t elements, int slots, int overhang) {
  constexpr uint64_t kRegisters = 6, kLists = 2;
  const uint64_t floats = kRegisters * static_cast<uint64_t>(slots) * stride_of(elements) +
                          kLists * (2 * static_cast<uint64_t>(slots) + static_cast<uint64_t>(overhang)) * elements;
  return floats * sizeof(float);
}

GpuState::GpuState(const DevicePtr& device, const DeviceStream& stream, const std::vector<int64_t>& shape, int slots)
    : device_(device), stream_(stream), elements_(1) {
  for (int64_t size : shape) elements_ *= static_cast<size_t>(size);
  const size_t n = static_cast<size_t>(slots);
  lane_.slot_count = static_cast<uint32_t>(slots);
  lane_.channels = static_cast<uint32_t>(shape.size() > 1 ? shape[0] : 1);
  lane_.pixels = static_cast<uint32_t>(elements_ / lane_.channels);
  lane_.stride = stride_of(elements_);
  slots_ = DeviceBuffer(device, n * sizeof(GpuSlot), "slots");
  status_ = DeviceBuffer(device, n * sizeof(uint32_t), "status words");
  x_ = DeviceBuffer(device, n * lane_.stride * sizeof(float), "states");
  stream_.zero(slots_.as<void>(), slots_.bytes());
  stream_.zero(status_.as<void>(), status_.bytes());
  stream_.zero(x_.as<void>(), x_.bytes());
  lane_.slots = slots_.as<GpuSlot>();
  lane_.status = status_.as<uint32_t>();
  lane_.x = x_.as<float>();
}

// Where a lane's constructor fails, what was put on the stream for this memory may not have run yet.
GpuState::~GpuState() {
  try {
    stream_.synchronize();
  } catch (const Error&) {  // a device that has failed runs nothing more
  }
}

void GpuState::adopt(DeviceDenoiser* denoiser, int places) {
  const DeviceLimits& limits = denoiser->limits();
  const size_t n = static_cast<size_t>(places);
  const auto list = [&](DeviceBuffer* buffer, size_t bytes, const char* what) {
    *buffer = DeviceBuffer(device_, n * bytes, what);
    if (bytes > 0) stream_.zero(buffer->as<void>(), n * bytes);
  };
  list(&in_, limits.in_elements * bytes_of(limits.in_type), "network inputs");
  list(&out_, limits.out_elements * bytes_of(limits.out_type), "network outputs");
  list(&t_, sizeof(float), "times");
  list(&label_, limits.takes_label ? sizeof(int64_t) : 0, "labels");
  list(&rows_, limits.rows_bytes, "embeddings");
  GpuNetwork network{};
  network.in = {in_.as<void>(), limits.in_type, limits.layout, static_cast<uint32_t>(limits.in_elements / lane_.pixels),
                limits.in_elements};
  network.out = {out_.as<void>(), limits.out_type, limits.layout, static_cast<uint32_t>(limits.out_elements / lane_.pixels),
                 limits.out_elements};
  network.t = t_.as<float>();
  network.label = label_.as<int64_t>();
  network.rows = rows_.as<void>();
  network.rows_bytes = limits.rows_bytes;
  places_ = places;
  lane_.network[0] = network;
  denoiser_ = denoiser;
  denoiser->bind(network);
}

bool GpuState::provide_register(DeviceBuffer* buffer, float** field, const char* what) {
  if (*field != nullptr) return false;
  *buffer = DeviceBuffer(device_, lane_.slot_count * lane_.stride * sizeof(float), what);
  stream_.zero(buffer->as<void>(), buffer->bytes());
  *field = buffer->as<float>();
  return true;
}

bool GpuState::provide(const Table& table, uint32_t needs, bool has_preview) {
  bool is_new = false;
  for (int k = 0; table.uses_history && k < 3; ++k) {
    is_new = provide_register(&history_[k], &lane_.history[k], "history") || is_new;
  }
  if (table.uses_anchor) is_new = provide_register(&anchor_, &lane_.anchor, "anchors") || is_new;
  if (has_preview) is_new = provide_register(&preview_, &lane_.preview, "previews") || is_new;
  if ((needs & kReductions) && lane_.scratch == nullptr) {
    scratch_ = DeviceBuffer(device_, device_->api().scratch_bytes(lane_.slot_count, elements_), "reductions");
    stream_.zero(scratch_.as<void>(), scratch_.bytes());
    lane_.scratch = scratch_.as<void>();
    is_new = true;
  }
  return is_new;
}

}  // namespace ddpm_rt
