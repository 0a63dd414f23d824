// DeviceLane: what one tick queues, and the mirror's step to the next.
#include <algorithm>

#include "gpu_lane.h"

namespace ddpm_rt {

void DeviceLane::fill_packet(GpuFlight* flight) {
  add_installs();
  for (int place = m_; place < high_water_; ++place) packets_.padding.push_back({0, place});
  high_water_ = m_;
  for (int index : resident_) {
    const Slot& slot = slots_[static_cast<size_t>(index)];
    if (slot.row + 1 == slot.end()) add_result(index, flight);
  }
}

void DeviceLane::add_installs() {
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].is_sent) packets_.installs.push_back(install_of(static_cast<int>(i)));
  }
}

GpuInstall DeviceLane::install_of(int index) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  GpuInstall install{};
  install.slot = static_cast<uint32_t>(index);
  GpuSlot& value = install.value;
  std::fill_n(value.places, kRoles, kNoPlace);
  std::fill_n(value.next, kRoles, kNoPlace);
  slot.is_sent = true;
  if (slot.request == nullptr) return install;
  install.apply = (slot.begins ? kApplyBegin : 0u) | (slot.moves ? kApplyPlace : 0u);
  install.sigma = slot.sigma;
  if (slot.begins && slot.start != nullptr) install.start = packets_.add_start(slot.start);
  slot.begins = slot.moves = false;
  value.table = slot.table->rows.as<StepRow>();
  value.row = static_cast<uint32_t>(slot.row - slot.first_row());
  value.row_count = slot.table->row_count();
  value.ring = slot.ring;
  value.flags = kSlotActive | (slot.request->spec().callback != nullptr ? kSlotPreview : 0u);
  value.seed = slot.seed;
  value.scale = slot.scale;
  const int64_t labels[kOwnRoles] = {slot.label, spec_.num_classes};
  for (int role = 0; role < kOwnRoles; ++role) {
    value.places[role] = value.next[role] = slot.places[role];
    value.label[role] = labels[role];
    value.rows[role] = slot.rows[role] != nullptr ? slot.rows[role]->as<void>() : nullptr;
  }
  return install;
}

void DeviceLane::add_result(int index, GpuFlight* flight) {
  const Slot& slot = slots_[static_cast<size_t>(index)];
  const RequestSpec& spec = slot.request->spec();
  const size_t each = spec.image_bytes(), at = flight->results.size();
  GpuFinish finish{};
  finish.slot = static_cast<uint32_t>(index);
  finish.format = !spec.as_uint8 ? kFinishFloat : spec.truncate ? kFinishTruncated : kFinishRounded;
  finish.lo = static_cast<float>(spec.data_lo);
  finish.hi = static_cast<float>(spec.data_hi);
  finish.status = flight->status.as<uint32_t>() + at;
  if (spec.out_is_device) {
    if (!slot.request->enter()) return;  // cancelled: its memory is the caller's again
    finish.out = static_cast<char*>(spec.out) + static_cast<size_t>(slot.image) * each;
  } else {
    finish.out = flight->staging.as<char>() + flight->staging_used;
    flight->staging_used += each;
  }
  flight->results.push_back({slot.request, slot.image, spec.out_is_device ? nullptr : finish.out, at});
  packets_.finishes.push_back(finish);
}

// The calls of this tick, and with the step's needs the key of its graph.
void DeviceLane::plan_calls(GpuFlight* flight) {
  calls_.clear();
  flight->evaluations = m_;
  if (m_ > 0 && state_.denoiser().limits().any_batch) {
    calls_.push_back({m_, 0});
  } else {
    for (const Phase& phase : runner_.phases(m_)) {
      calls_.push_back({phase.variant.bucket, phase.first});
      flight->network_seconds += runner_.phase_seconds(phase);
    }
  }
  needs_ = 0;
  for (int index : resident_) {
    const Slot& slot = slots_[static_cast<size_t>(index)];
    needs_ |= slot.table->needs;
    if (slot.places[kCond] != kNoPlace && slot.places[kUncond] != kNoPlace) needs_ |= kNeedPair;
    if (slot.request->spec().callback != nullptr) needs_ |= kNeedRegisters;
  }
  key_.clear();
  key_.push_back(static_cast<int32_t>(needs_));
  for (const DeviceCall& call : calls_) {
    key_.push_back(call.bucket);
    key_.push_back(call.first);
  }
  runner_.count_tick(m_);
}

// False: this tick has to be launched piece by piece. A call list that is seen once only is not worth a capture.
bool DeviceLane::launch_graph() {
  const DeviceLimits& limits = state_.denoiser().limits();
  if (!options_.captures || !(limits.is_capturable || limits.has_graphs)) return false;
  TickGraph& entry = graphs_.at(key_);
  if (entry.cannot_be_captured || ++entry.sightings < 2) return false;
  try {
    if (!entry.graph) capture(&entry);
    entry.graph.launch(stream_);
    return true;
  } catch (const Error& e) {
    entry.cannot_be_captured = true;
    entry.graph = DeviceGraph();
    log(2, std::string("graph of a tick: launched piece by piece instead: ") + e.what());
    return false;
  }
}

void DeviceLane::capture(TickGraph* entry) {
  DeviceDenoiser& denoiser = state_.denoiser();
  std::vector<void*> raw;
  // A network may run before it is recorded, and would overwrite outputs that a tick in flight still reads.
  if (denoiser.limits().has_graphs) stream_.synchronize();
  for (const DeviceCall& call : calls_) {
    if (denoiser.limits().has_graphs) raw.push_back(denoiser.raw_graph(call));
  }
  entry->graph = DeviceGraph::capture(device_, stream_, [&] {
    for (size_t i = 0; i < calls_.size(); ++i) {
      if (raw.empty()) denoiser.enqueue(calls_[i], stream_);
      else device_->check(device_->api().add_child(stream_.get(), raw[i]), "graph");
    }
    queue_step_and_advance();
  });
}

void DeviceLane::queue_step_and_advance() {
  device_->check(device_->api().step(state_.lane(), needs_, stream_.get()), "step");
  device_->check(device_->api().advance(state_.lane(), stream_.get()), "advance");
}

// Piece by piece. A call that fails takes only its own requests with it; where batch sizes are free, it is tried again
// request by request, so that one request's fault stays its own.
void DeviceLane::queue_calls() {
  bool has_failed = false;
  for (const DeviceCall& call : calls_) {
    Error error(Code::kBackend, "");
    if (try_call(call, &error)) continue;
    has_failed = true;
    const int end = std::min(call.first + call.bucket, m_);
    const auto request_at = [this](int place) { return slots_[static_cast<size_t>(places_[static_cast<size_t>(place)].slot)].request.get(); };
    for (int first = call.first, next; first < end; first = next) {
      for (next = first + 1; next < end && request_at(next) == request_at(first);) ++next;
      const bool is_alone = first == call.first && next == end;
      const bool is_free = state_.denoiser().limits().any_batch;
      if (is_free && !is_alone && try_call({next - first, first}, &error)) continue;
      request_at(first)->finish(static_cast<int>(error.code()), error.what());
    }
  }
  if (has_failed) withdraw_failed();
}

bool DeviceLane::try_call(const DeviceCall& call, Error* error) {
  try {
    state_.denoiser().enqueue(call, stream_);
    return true;
  } catch (const Error& e) {
    *error = e;
  } catch (const std::exception& e) {
    *error = Error(Code::kBackend, e.what());
  }
  return false;
}

// The failed must not be stepped with what their outputs hold: their slots are switched off before the step.
void DeviceLane::withdraw_failed() {
  drop_finished();
  add_installs();
  const GpuPackets::Sent sent = packets_.send(stream_);
  device_->check(device_->api().apply(state_.lane(), sent.packet, stream_.get()), "apply");
}

// The registers' previews are packed beside them at once, and leave on the side stream while the next tick runs.
void DeviceLane::queue_previews(GpuFlight* flight) {
  size_t rows = 0;
  for (int index : resident_) {
    Request* request = slots_[static_cast<size_t>(index)].request.get();
    const auto is_known = [request](const GpuFlight::Preview& p) { return p.request == request; };
    if (request->spec().callback == nullptr) continue;
    if (std::any_of(flight->previews.begin(), flight->previews.end(), is_known)) continue;
    const size_t first = rows;
    for (int other : resident_) {
      if (slots_[static_cast<size_t>(other)].request.get() != request) continue;
      stream_.copy(flight->preview_copy.as<float>() + rows++ * N_, state_.preview(other), N_ * sizeof(float), DeviceCopy::kOnDevice);
    }
    flight->previews.push_back({request, first, rows - first});
  }
  if (rows == 0) return;
  flight->done.record(stream_);
  side_.wait(flight->done);
  side_.copy(flight->preview_rows.as<void>(), flight->preview_copy.as<void>(), rows * N_ * sizeof(float), DeviceCopy::kToHost);
  flight->previewed.record(side_);
}

void DeviceLane::advance_mirror(GpuFlight* flight) {
  const size_t before = resident_.size();
  const auto kept = std::remove_if(resident_.begin(), resident_.end(), [&](int index) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    flight->add_executed(slot.request);
    if (slot.row->flags & kPush) slot.ring = (slot.ring + 2) % 3;
    if (++slot.row != slot.end()) return false;
    release(index);
    return true;
  });
  resident_.erase(kept, resident_.end());
  flight->images = static_cast<int64_t>(before - resident_.size());
  is_changed_ = is_changed_ || before != resident_.size();
}

}  // namespace ddpm_rt
