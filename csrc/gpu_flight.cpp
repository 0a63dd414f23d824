#include "gpu_flight.h"

#include "step_gpu.h"

namespace ddpm_rt {

void GpuFlight::open(const DevicePtr& device, size_t slots) {
  done = DeviceEvent(device, false);
  previewed = DeviceEvent(device, false);
  status = PinnedBuffer(device, slots * sizeof(uint32_t), "status words");
  executed.reserve(slots);
  results.reserve(slots);
  previews.reserve(slots);
  kept.reserve(4 * slots);
}

void GpuFlight::clear() {
  executed.clear();
  results.clear();
  previews.clear();
  kept.clear();
  staging_used = 0;
  evaluations = images = 0;
  network_seconds = 0;
}

void GpuFlight::add_executed(const std::shared_ptr<Request>& request) {
  for (auto it = executed.rbegin(); it != executed.rend(); ++it) {  // most often the last one
    if (it->request == request) {
      ++it->rows;
      return;
    }
  }
  executed.push_back({request, 1});
}

void GpuFlight::land(size_t elements) {
  for (const Executed& e : executed) e.request->add_rows_done(e.rows);
  for (const Preview& p : previews) p.request->call_back(preview_rows.as<float>() + p.first * elements, p.count);
  leave_outputs();
  for (const Result& r : results) {
    const uint32_t word = status.as<uint32_t>()[r.status];
    if (word & kStatusNeeds) {
      r.request->finish(static_cast<int>(Code::kInternal), "step: expected to be told all that a row needs, got less");
    }
    r.request->deliver_finished(r.image, r.data, (word & kStatusNonfinite) != 0);
  }
}

void GpuFlight::abandon(int code, const std::string& message) {
  for (const Executed& e : executed) e.request->finish(code, message);
  for (const Result& r : results) r.request->finish(code, message);
  leave_outputs();
  clear();
}

void GpuFlight::leave_outputs() {
  for (const Result& r : results) {
    if (r.data == nullptr) r.request->leave();
  }
}

}  // namespace ddpm_rt
