// Lane: from the outputs of one tick to the packed inputs of the next.
#include <algorithm>

#include "lane.h"

namespace ddpm_rt {
void Lane::place(Slot* slot) {
  const bool is_conditional = spec_.num_classes > 0 && slot->label != spec_.num_classes;
  const Evaluated need = evaluated(*slot->row, slot->scale, is_conditional);
  slot->cond = need.cond ? m_++ : kNone;
  slot->uncond = need.uncond ? m_++ : kNone;
}

void Lane::finish_packing() {
  const Evaluations& e = runner_.evaluations();
  for (int index : resident_) {
    const Slot& slot = slots_[static_cast<size_t>(index)];
    for (int at : {slot.cond, slot.uncond}) {
      if (at == kNone) continue;
      const int64_t label = at == slot.cond ? slot.label : spec_.num_classes;
      e.t[at] = slot.row->t;
      e.label[at] = label;
      owners_[static_cast<size_t>(at)] = slot.request.get();
      runner_.embed(static_cast<size_t>(at), label, slot.row, slot.end);
    }
  }
  runner_.zero_padding(m_, high_water_);
  high_water_ = m_;
}

// Executes the current row of every slot and packs the next evaluations: the step writes them where they will be read.
void Lane::step() {
  const Evaluations& e = runner_.evaluations();
  steps_.clear();
  bad_.assign(resident_.size(), 0);
  watch();
  m_ = 0;
  for (int index : resident_) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    StepSlot s{};
    s.row = slot.row;
    s.next = slot.row + 1 != slot.end ? slot.row + 1 : nullptr;
    s.seed = slot.seed;
    s.scale = slot.scale;
    s.x = slot.x;
    s.cond = slot.cond != kNone ? e.out + static_cast<size_t>(slot.cond) * N_ : nullptr;
    s.uncond = slot.uncond != kNone ? e.out + static_cast<size_t>(slot.uncond) * N_ : nullptr;
    for (size_t k = 0; k < 3; ++k) s.history[k] = slot.history[k];
    s.ring = slot.ring;
    s.anchor = slot.anchor;
    slot.cond = slot.uncond = kNone;
    slot.row++;
    if (s.next != nullptr) {
      place(&slot);
      if (slot.cond != kNone) s.in[0] = e.x + static_cast<size_t>(slot.cond) * N_;
      if (slot.uncond != kNone) s.in[1] = e.x + static_cast<size_t>(slot.uncond) * N_;
    }
    for (Watched& w : watched_) {
      if (w.request == slot.request.get()) s.x0_out = previews_.data() + w.end++ * N_;
    }
    steps_.push_back(s);
  }
  step_cpu(steps_.data(), steps_.size(), N_, bad_.data());
  for (size_t i = 0; i < resident_.size(); ++i) {
    Slot& slot = slots_[static_cast<size_t>(resident_[i])];
    if (bad_[i]) slot.bad = true;
    if (steps_[i].row->flags & kPush) slot.ring = (slot.ring + 2) % 3;
    slot.request->add_rows_done(1);
  }
}

// Requests with a callback get neighbouring rows of the previews.
void Lane::watch() {
  watched_.clear();
  size_t rows = 0;
  for (int index : resident_) {
    Request* request = slots_[static_cast<size_t>(index)].request.get();
    const auto is_known = [request](const Watched& w) { return w.request == request; };
    if (request->spec().callback == nullptr || std::any_of(watched_.begin(), watched_.end(), is_known)) continue;
    watched_.push_back({request, rows, rows});
    for (int other : resident_) rows += slots_[static_cast<size_t>(other)].request.get() == request;
  }
  if (rows > 0 && previews_.empty()) previews_.resize(slots_.size() * N_);
}

void Lane::call_back() {
  for (const Watched& w : watched_) w.request->call_back(previews_.data() + w.first * N_, w.end - w.first);
}

void Lane::deliver() {
  const auto kept = std::remove_if(resident_.begin(), resident_.end(), [this](int index) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    if (slot.row != slot.end) return false;
    slot.request->deliver(slot.image, slot.x, slot.bad);
    slot.request.reset();
    free_.push_back(index);
    return true;
  });
  if (kept == resident_.end()) return;
  resident_.erase(kept, resident_.end());
  is_changed_ = true;
}

}  // namespace ddpm_rt
