#include "gpu_lane.h"

#include <algorithm>
#include <chrono>

#include "clock.h"
#include "gpu_probe.h"

namespace ddpm_rt {
namespace {

constexpr int kMostSlots = 256, kFewestSlots = 8, kLargestBucket = 256;
constexpr size_t kBucketElements = size_t{32} << 20;  // of the largest bucket: probes hold it in host memory too
constexpr size_t kVariants = 10;                      // buckets share the network's weights
constexpr uint64_t kShareOfMemory = 4, kShareOfTables = 16;  // of the device's: a fourth, a sixteenth
constexpr int kReconsider = 16;                       // ticks after which more variants may be found to pay
constexpr int kLooks = 64;                            // at a flight, before the thread sleeps between looks
constexpr auto kNap = std::chrono::microseconds(20);

int largest_bucket(size_t elements) {
  int bucket = kLargestBucket;
  while (bucket > kFewestSlots && static_cast<size_t>(bucket) * elements > kBucketElements) bucket /= 2;
  return bucket;
}

int slots_for(const Device& device, size_t elements, int wanted) {
  if (wanted > 0) return wanted;
  const uint64_t room = device.free_memory() / kShareOfMemory;
  int slots = kMostSlots;
  while (slots > kFewestSlots && GpuState::bytes_for(elements, slots, largest_bucket(elements)) > room) slots /= 2;
  return slots;
}

RunnerOptions runner_options(const DeviceLaneOptions& from, size_t elements, int slots) {
  RunnerOptions options;
  options.max_batch = slots;
  options.batch_invariant = from.batch_invariant;
  options.cache_dir = from.cache_dir;
  options.digest = from.digest;
  options.log = from.log;
  const int largest = largest_bucket(elements);
  options.variants = {largest, largest, kVariants, true, static_cast<size_t>(largest)};
  return options;
}

std::vector<Candidate> through_host(std::vector<DeviceCandidate> candidates, const DevicePtr& device, const DeviceStream& stream,
                                    GpuState* state, int places) {
  std::vector<Candidate> all;
  for (DeviceCandidate& c : candidates) {
    all.push_back({c.precision, [make = std::move(c.make), device, &stream, state, places] {
                     return std::make_unique<ThroughHost>(make(device, stream), device, stream, state, places);
                   }});
  }
  return all;
}

}  // namespace

DeviceLane::DeviceLane(const DeviceScope&, const ModelSpec& spec, const Plan* plan, const DevicePtr& device,
                 std::vector<DeviceCandidate> candidates, DeviceLaneOptions options)
    : spec_(spec),
      device_(device),
      options_(std::move(options)),
      stream_(device),
      side_(device),
      N_(spec.elements()),
      slots_(static_cast<size_t>(slots_for(*device, N_, options_.max_batch))),
      places_(2 * slots_.size() + static_cast<size_t>(largest_bucket(N_))),
      state_(device, stream_, spec.shape, max_batch()),
      runner_(spec, plan, through_host(std::move(candidates), device, stream_, &state_, static_cast<int>(places_.size())),
              runner_options(options_, N_, max_batch())),
      packets_(device, slots_.size(), places_.size(), N_, state_.lane().stride),
      tables_(device, stream_, device->facts().memory_bytes / kShareOfTables) {
  if (runner_.limits().out_elements != N_) {
    throw Error(Code::kBackend, "network: expected " + std::to_string(N_) + " outputs per sample, got " +
                                    std::to_string(runner_.limits().out_elements));
  }
  for (int i = max_batch(); i-- > 0;) free_.push_back(i);
  resident_.reserve(slots_.size());
  for (GpuFlight& flight : flights_) flight.open(device, slots_.size());
  stream_.synchronize();
  start();
}

void DeviceLane::on_start() { device_->api().set_device(device_->ordinal()); }  // without one, each call will say so

void DeviceLane::tick() {
  if (in_flight_ == kFlights) retire();
  if (!is_open_) open_runner();
  drop_finished();
  admit();
  if (resident_.empty()) {
    if (in_flight_ > 0) retire();
    return;
  }
  assign_places();
  if (is_changed_ || ++ticks_at_this_membership_ == kReconsider) {
    if (is_changed_) ticks_at_this_membership_ = 0;
    is_changed_ = false;
    runner_.expect(m_, expected_ticks());
  }
  GpuFlight& flight = flights_[(oldest_ + in_flight_) % kFlights];
  launching_ = &flight;
  try {
    launch(&flight);
  } catch (const Error& e) {
    launching_ = nullptr;
    come_to_rest();
    flight.abandon(static_cast<int>(e.code()), e.what());
    throw;
  }
  launching_ = nullptr;
  ++in_flight_;
}

void DeviceLane::launch(GpuFlight* flight) {
  flight->clear();
  flight->launched = now();
  packets_.begin_tick();
  fill_packet(flight);
  const bool has_results = !packets_.finishes.empty();
  const bool has_changes = !packets_.installs.empty() || !packets_.padding.empty();
  GpuPackets::Sent sent{};
  if (has_results || has_changes) sent = packets_.send(stream_);
  if (has_changes) device_->check(device_->api().apply(state_.lane(), sent.packet, stream_.get()), "apply");
  plan_calls(flight);
  if (!launch_graph()) {
    queue_calls();
    queue_step_and_advance();
  }
  if (has_results) {
    device_->check(device_->api().finish(state_.lane(), sent.finishes, sent.finish_count, stream_.get()), "finish");
  }
  queue_previews(flight);
  flight->done.record(stream_);
  advance_mirror(flight);
}

// Looks at the event instead of waiting for it in the driver: nothing between a request's first and last tick holds the
// device up, and with a second tick queued a look that comes late costs nothing.
void DeviceLane::wait_for(const DeviceEvent& event) const {
  for (int looks = 0; !event.is_reached(); ++looks) {
    if (looks < kLooks) std::this_thread::yield();
    else std::this_thread::sleep_for(kNap);
  }
}

void DeviceLane::retire() {
  GpuFlight& flight = flights_[oldest_];
  try {
    wait_for(flight.done);
    if (!flight.previews.empty()) wait_for(flight.previewed);
  } catch (const Error& e) {
    come_to_rest();
    flight.abandon(static_cast<int>(e.code()), e.what());
    oldest_ = (oldest_ + 1) % kFlights;
    --in_flight_;
    throw;
  }
  const double landed = now();
  // Before delivery: who waits for an image finds its ticks counted.
  add_stats({1, flight.evaluations, flight.images, landed - std::max(landed_, flight.launched), flight.network_seconds, 0});
  landed_ = landed;
  flight.land(N_);
  flight.clear();
  oldest_ = (oldest_ + 1) % kFlights;
  --in_flight_;
}

// After a failure: until then the device may write what the flights own, and the caller's memory.
void DeviceLane::come_to_rest() const {
  device_->api().synchronize_stream(stream_.get());
  device_->api().synchronize_stream(side_.get());
}

void DeviceLane::fail_all(Code code, const std::string& message) {
  const auto is_done = [](const std::shared_ptr<Request>& r) { return r->is_finished(); };
  if (!is_open_) {  // nothing was admitted: it is what waits that cannot run
    for (const auto& request : waiting_) request->finish(static_cast<int>(code), message);
  }
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), is_done), waiting_.end());
  while (in_flight_ > 0) {
    try {
      retire();
    } catch (const Error&) {  // what was in flight has failed with its own error
    }
  }
  for (int index : resident_) slots_[static_cast<size_t>(index)].request->finish(static_cast<int>(code), message);
  reset_device_state();
}

double DeviceLane::expected_ticks() const {
  double executions = waiting_rows();
  for (int index : resident_) {
    const Slot& slot = slots_[static_cast<size_t>(index)];
    executions += static_cast<double>(slot.end() - slot.row);
  }
  return executions / static_cast<double>(std::max<size_t>(1, resident_.size()));
}

void DeviceLane::log(int level, const std::string& message) const {
  if (options_.log) options_.log(level, message);
}

}  // namespace ddpm_rt
