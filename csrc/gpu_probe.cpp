#include "gpu_probe.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "float16.h"

namespace ddpm_rt {
namespace {

void put(GpuType type, void* to, size_t index, float value) {
  if (type == kGpuF32) static_cast<float*>(to)[index] = value;
  else static_cast<uint16_t*>(to)[index] = type == kGpuF16 ? float_to_half(value) : float_to_bfloat16(value);
}

float get(GpuType type, const void* from, size_t index) {
  if (type == kGpuF32) return static_cast<const float*>(from)[index];
  const uint16_t bits = static_cast<const uint16_t*>(from)[index];
  return type == kGpuF16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

// Where canonical element i of a row lies.
size_t place_of(GpuLayout layout, size_t channels, size_t pixels, size_t i) {
  return layout == kGpuNchw ? i : i % pixels * channels + i / pixels;
}

}  // namespace

ThroughHost::ThroughHost(std::unique_ptr<DeviceDenoiser> made, const DevicePtr& device, const DeviceStream& stream, GpuState* state,
                         int places)
    : made_(std::move(made)), device_(device), stream_(stream), state_(state), places_(places), start_(device, true), end_(device, true) {
  const DeviceLimits& of = made_->limits();
  limits_.in_elements = of.in_elements;
  limits_.out_elements = of.out_elements;
  limits_.rows_width = of.rows_bytes / sizeof(float);
  limits_.takes_label = of.takes_label;
  limits_.any_batch = of.any_batch;
  limits_.max_bucket = of.max_bucket;
  if (of.rows_bytes % sizeof(float) != 0) {
    throw Error(Code::kOption, "rows_bytes: expected a multiple of 4, got " + std::to_string(of.rows_bytes));
  }
}

void ThroughHost::bind(const Evaluations& evaluations) {
  host_ = evaluations;
  state_->adopt(made_.get(), places_);
  const DeviceLimits& of = made_->limits();
  const GpuNetwork& network = state_->lane().network[0];
  inputs_[0] = {network.in.data, of.in_elements * bytes_of(of.in_type)};
  inputs_[1] = {network.t, sizeof(float)};
  inputs_[2] = {network.label, network.label != nullptr ? sizeof(int64_t) : 0};
  inputs_[3] = {network.rows, of.rows_bytes};
  size_t widest = of.out_elements * bytes_of(of.out_type), all = 0;
  for (const List& list : inputs_) {
    widest = std::max(widest, list.row_bytes);
    all += list.row_bytes;
  }
  staging_ = PinnedBuffer(device_, widest * host_.capacity, "probes");
  saved_ = DeviceBuffer(device_, all * host_.capacity, "probes");
  embedded_ = DeviceBuffer(device_, of.rows_bytes, "probes");
}

void ThroughHost::prepare(int bucket, int) { made_->prepare(bucket, stream_); }

// One list after the other through the staging memory: each copy has ended before the next is made ready.
void ThroughHost::upload(const Call& call) {
  const DeviceLimits& of = made_->limits();
  const size_t bucket = static_cast<size_t>(call.bucket), count = static_cast<size_t>(call.count), N = of.in_elements;
  const size_t pixels = state_->lane().pixels, channels = N / pixels;
  for (size_t k = 0; k < 4; ++k) {
    const List& list = inputs_[k];
    if (list.row_bytes == 0) continue;
    char* const to = staging_.as<char>();
    std::memset(to, 0, bucket * list.row_bytes);
    if (k == 0) {
      for (size_t r = 0; r < count; ++r) {
        for (size_t i = 0; i < N; ++i) {
          put(of.in_type, to, r * N + place_of(of.layout, channels, pixels, i), host_.x[r * N + i]);
        }
      }
    } else {
      const void* const from[4] = {nullptr, host_.t, host_.label, host_.rows};
      std::memcpy(to, from[k], count * list.row_bytes);
    }
    stream_.copy(list.data, to, bucket * list.row_bytes, DeviceCopy::kToDevice);
    stream_.synchronize();
  }
}

void ThroughHost::download(const Call& call) {
  const DeviceLimits& of = made_->limits();
  const size_t count = static_cast<size_t>(call.count), M = of.out_elements;
  const size_t pixels = state_->lane().pixels, channels = M / pixels;
  stream_.copy(staging_.as<void>(), state_->lane().network[0].out.data, count * M * bytes_of(of.out_type), DeviceCopy::kToHost);
  stream_.synchronize();
  for (size_t r = 0; r < count; ++r) {
    for (size_t i = 0; i < M; ++i) {
      host_.out[r * M + i] = get(of.out_type, staging_.as<void>(), r * M + place_of(of.layout, channels, pixels, i));
    }
  }
}

// Empty where there is none to be had: the tick launches such a network piece by piece, and what is wrong with it, if anything
// is, shows there.
DeviceGraph ThroughHost::graph_of(const DeviceCall& call) {
  try {
    void* const raw = made_->limits().has_graphs ? made_->raw_graph(call) : nullptr;
    return DeviceGraph::capture(device_, stream_, [&] {
      if (raw != nullptr) device_->check(device_->api().add_child(stream_.get(), raw), "graph");
      else made_->enqueue(call, stream_);
    });
  } catch (const Error&) {
    return DeviceGraph();
  }
}

double ThroughHost::enqueue(const DeviceCall& call) {
  const DeviceLimits& of = made_->limits();
  const bool has_form = of.has_graphs || of.is_capturable;
  if (has_form && graphs_.find(call.bucket) == graphs_.end()) graphs_[call.bucket] = graph_of(call);
  const bool is_graph = has_form && graphs_[call.bucket];
  start_.record(stream_);
  if (is_graph) graphs_[call.bucket].launch(stream_);
  else made_->enqueue(call, stream_);
  end_.record(stream_);
  stream_.synchronize();
  return DeviceEvent::seconds(start_, end_);
}

double ThroughHost::timed_run(const Call* calls, size_t count) {
  if (count != 1 || calls[0].first != 0) throw Error(Code::kInternal, "probe: expected one call at place 0, got another");
  const size_t bucket = static_cast<size_t>(calls[0].bucket);
  const auto exchange = [&](bool saves) {
    char* at = saved_.as<char>();
    for (const List& list : inputs_) {
      const size_t bytes = bucket * list.row_bytes;
      if (bytes > 0) stream_.copy(saves ? at : list.data, saves ? list.data : at, bytes, DeviceCopy::kOnDevice);
      at += bytes;
    }
  };
  exchange(true);
  upload(calls[0]);
  const double seconds = enqueue({calls[0].bucket, 0});
  download(calls[0]);
  exchange(false);
  return seconds;
}

void ThroughHost::embed(const float* t, const int64_t* label, size_t n, float* rows) {
  const size_t each = made_->limits().rows_bytes;
  for (size_t i = 0; i < n; ++i) {
    made_->embed(t + i, label + i, 1, embedded_.as<void>(), stream_);
    stream_.copy(staging_.as<void>(), embedded_.as<void>(), each, DeviceCopy::kToHost);
    stream_.synchronize();
    std::memcpy(rows + i * (each / sizeof(float)), staging_.as<void>(), each);
  }
}

}  // namespace ddpm_rt
