// DeviceLane: who is resident, and where its evaluations lie in the packed list.
#include <algorithm>
#include <cstring>

#include "gpu_lane.h"

namespace ddpm_rt {

// Before anything is on the device: the self-test may choose another candidate, with other lists.
void DeviceLane::open_runner() {
  drop_waiting_finished();
  if (waiting_.empty()) return;
  double rows = 0;
  for (const auto& r : waiting_) rows += static_cast<double>(r->spec().n - r->next_image);
  const int m = static_cast<int>(std::min(rows, static_cast<double>(slots_.size()))) * (spec_.num_classes > 0 ? 2 : 1);
  runner_.expect(m, waiting_rows() / std::max(1.0, rows));
  graphs_.clear();
  is_open_ = true;
}

void DeviceLane::drop_finished() {
  drop_waiting_finished();
  const auto kept = std::remove_if(resident_.begin(), resident_.end(), [this](int index) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    if (!slot.request->is_finished()) return false;
    slot.is_sent = false;  // the device still steps it
    release(index);
    return true;
  });
  if (kept == resident_.end()) return;
  resident_.erase(kept, resident_.end());
  is_changed_ = true;
}

// The slot is free for the mirror. What the device reads stays with the last flight that may read it.
void DeviceLane::release(int index) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  GpuFlight& last = launching_ != nullptr ? *launching_ : flights_[(oldest_ + kFlights - 1 + in_flight_) % kFlights];
  last.kept.push_back(std::move(slot.table));
  for (auto& rows : slot.rows) {
    if (rows != nullptr) last.kept.push_back(std::move(rows));
  }
  result_bytes_ -= slot.request->spec().out_is_device ? 0 : slot.request->spec().image_bytes();
  const bool is_sent = slot.is_sent;
  for (int place : slot.places) {
    if (place != kNoPlace) places_[static_cast<size_t>(place)] = Place();
  }
  slot = Slot();
  slot.is_sent = is_sent;
  free_.push_back(index);
}

void DeviceLane::admit() {
  while (!free_.empty()) {
    const std::shared_ptr<Request> request = next_waiting();
    if (request == nullptr) return;
    const int index = free_.back();
    Slot fresh;
    fresh.image = request->next_image++;
    if (request->is_finished()) continue;  // an image of it failed a moment ago
    try {
      begin(&fresh, request);
    } catch (const Error& e) {
      request->finish(static_cast<int>(e.code()), e.what());
      continue;
    }
    free_.pop_back();
    slots_[static_cast<size_t>(index)] = std::move(fresh);
    result_bytes_ += request->spec().out_is_device ? 0 : request->spec().image_bytes();
    resident_.push_back(index);
    is_changed_ = true;
  }
}

// All that may fail for want of memory, before anything of the lane has changed but the memory itself.
void DeviceLane::begin(Slot* slot, const std::shared_ptr<Request>& request) {
  const RequestSpec& spec = request->spec();
  const size_t image = static_cast<size_t>(slot->image);
  slot->table = tables_.table(spec.table);
  if (state_.provide(*spec.table, slot->table->needs, spec.callback != nullptr)) graphs_.clear();
  provide_results(spec.out_is_device ? 0 : spec.image_bytes());
  if (spec.callback != nullptr) provide_previews();
  slot->label = spec.labels[image];
  slot->scale = spec.scale;
  if (state_.denoiser().limits().rows_bytes > 0) {
    Evaluated any{false, false};
    const bool is_conditional = spec_.num_classes > 0 && slot->label != spec_.num_classes;
    for (const StepRow& row : spec.table->rows) {
      const Evaluated needed = evaluated(row, slot->scale, is_conditional);
      any = {any.cond || needed.cond, any.uncond || needed.uncond};
    }
    if (any.cond) slot->rows[kCond] = tables_.embeddings(slot->table, slot->label, state_.denoiser());
    if (any.uncond) slot->rows[kUncond] = tables_.embeddings(slot->table, spec_.num_classes, state_.denoiser());
  }
  slot->row = slot->first_row();
  slot->seed = spec.seeds[image];
  slot->sigma = spec.start_is_state ? 1.0f : static_cast<float>(spec.table->init_sigma);
  slot->start = spec.start.empty() ? nullptr : spec.start.data() + image * N_;
  slot->begins = true;
  slot->is_sent = false;
  slot->request = request;
}

// Pinned memory for the images of one tick. Grows at admission only; a flight that writes the old memory lands first.
void DeviceLane::provide_results(size_t bytes) {
  const size_t wanted = result_bytes_ + bytes;
  if (flights_[0].staging.bytes() >= wanted) return;
  while (in_flight_ > 0) retire();
  const size_t most = slots_.size() * N_ * sizeof(float);
  const size_t grown = std::min(most, std::max(2 * wanted, size_t{1} << 20));
  PinnedBuffer made[kFlights];
  for (PinnedBuffer& buffer : made) buffer = PinnedBuffer(device_, std::max(grown, wanted), "results");
  for (int i = 0; i < kFlights; ++i) flights_[i].staging = std::move(made[i]);
}

void DeviceLane::provide_previews() {
  if (flights_[kFlights - 1].preview_rows) return;
  while (in_flight_ > 0) retire();
  const size_t bytes = slots_.size() * N_ * sizeof(float);
  for (GpuFlight& flight : flights_) {
    flight.preview_copy = DeviceBuffer(device_, bytes, "previews");
    flight.preview_rows = PinnedBuffer(device_, bytes, "previews");
  }
}

// Gives every resident the places its row needs and takes the rest away; places are kept while they are needed, and the
// list stays dense.
void DeviceLane::assign_places() {
  for (int index : resident_) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    const bool is_conditional = spec_.num_classes > 0 && slot.label != spec_.num_classes;
    const Evaluated need = evaluated(*slot.row, slot.scale, is_conditional);
    const bool needs[kOwnRoles] = {need.cond, need.uncond};
    for (int role = 0; role < kOwnRoles; ++role) {
      int& place = slot.places[role];
      if ((place != kNoPlace) == needs[role]) continue;
      if (place != kNoPlace) places_[static_cast<size_t>(place)] = Place();
      place = needs[role] ? kWanted : kNoPlace;
      slot.is_sent = false;
    }
  }
  int hole = 0;
  m_ = 0;
  for (const Place& place : places_) m_ += place.slot >= 0;
  for (int index : resident_) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    for (int role = 0; role < kOwnRoles; ++role) {
      if (slot.places[role] != kWanted) continue;
      while (places_[static_cast<size_t>(hole)].slot >= 0) ++hole;
      take_place(index, role, hole);
      ++m_;
    }
  }
  close_holes();
}

void DeviceLane::take_place(int index, int role, int place) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  places_[static_cast<size_t>(place)] = {index, role};
  slot.places[role] = place;
  slot.moves = true;
  slot.is_sent = false;
}

// The last evaluations of the list fill the holes before m_.
void DeviceLane::close_holes() {
  int last = static_cast<int>(places_.size()) - 1;
  for (int hole = 0; hole < m_; ++hole) {
    if (places_[static_cast<size_t>(hole)].slot >= 0) continue;
    while (places_[static_cast<size_t>(last)].slot < 0) --last;
    const Place mover = places_[static_cast<size_t>(last)];
    places_[static_cast<size_t>(last)] = Place();
    take_place(mover.slot, mover.role, hole);
  }
}

// After a failure nothing is known of what the device holds: the next packet says it all.
void DeviceLane::reset_device_state() {
  while (!resident_.empty()) {
    release(resident_.back());
    resident_.pop_back();
  }
  for (Slot& slot : slots_) slot.is_sent = false;
  for (GpuFlight& flight : flights_) flight.clear();
  m_ = 0;
  high_water_ = static_cast<int>(places_.size());
  is_changed_ = true;
}

}  // namespace ddpm_rt
