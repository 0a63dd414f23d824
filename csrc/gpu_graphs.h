// Captured ticks, by what they depend on: the list of calls and the step's needs. All else they read from device memory.
#ifndef DDPM_RT_GPU_GRAPHS_H_
#define DDPM_RT_GPU_GRAPHS_H_

#include <cstdint>
#include <vector>

#include "device.h"

namespace ddpm_rt {

using GraphKey = std::vector<int32_t>;

struct TickGraph {
  GraphKey key;
  DeviceGraph graph;               // empty: not captured
  int sightings = 0;
  bool cannot_be_captured = false;
  uint64_t used = 0;
};

// The least recently used goes first. One thread.
class GpuGraphs {
 public:
  static constexpr size_t kMost = 16;

  // The entry of this key, made if there is none; valid until the next call.
  TickGraph& at(const GraphKey& key) {
    ++clock_;
    TickGraph* oldest = nullptr;
    for (TickGraph& entry : entries_) {
      if (entry.key == key) {
        entry.used = clock_;
        return entry;
      }
      if (oldest == nullptr || entry.used < oldest->used) oldest = &entry;
    }
    if (entries_.size() < kMost) {
      entries_.emplace_back();
      oldest = &entries_.back();
    } else {
      *oldest = TickGraph();
    }
    oldest->key = key;
    oldest->used = clock_;
    return *oldest;
  }
  void clear() { entries_.clear(); }

 private:
  std::vector<TickGraph> entries_;
  uint64_t clock_ = 0;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_GPU_GRAPHS_H_
