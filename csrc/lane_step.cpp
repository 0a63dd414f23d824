// Lane: from the outputs of one tick to the packed inputs of the next.
#include <algorithm>
#include <cstring>

#include "lane.h"

namespace ddpm_rt {
void Lane::place(Slot* slot) {
  const bool is_guided = slot->uncond_network != &own_;
  const bool is_conditional = is_guided || !spec_.conditions.empty() || (spec_.num_classes > 0 && slot->label != spec_.num_classes);
  const Evaluated need = evaluated(*slot->row, slot->scale, is_conditional);
  const auto next = [](LaneNetwork& n) { return Place{&n, n.m++}; };
  slot->cond = need.cond ? next(own_) : Place{};
  slot->uncond = need.uncond ? next(*slot->uncond_network) : Place{};
}

void Lane::finish_packing() {
  for (int index : resident_) {
    const Slot& slot = slots_[static_cast<size_t>(index)];
    const bool is_guided = slot.uncond_network != &own_;
    for (const Place* place : {&slot.cond, &slot.uncond}) {
      if (!*place) continue;
      LaneNetwork& n = *place->network;
      const Evaluations& e = n.runner.evaluations();
      const bool keeps_label = place == &slot.cond || (is_guided && n.spec.num_classes > 0);
      const int64_t label = keeps_label ? slot.label : is_guided ? n.spec.num_classes : slot.negative;
      e.t[place->at] = slot.row->t;
      e.label[place->at] = label;
      n.owners[static_cast<size_t>(place->at)] = slot.request.get();
      n.runner.embed(static_cast<size_t>(place->at), label, slot.row, slot.end);
      if (n.spec.conditions.empty()) continue;
      const bool keeps = place == &slot.cond || is_guided;
      const RequestSpec& request = slot.request->spec();
      n.runner.set_conditions(static_cast<size_t>(place->at), keeps ? request.conditions : request.null_conditions,
                              static_cast<size_t>(slot.image));
    }
  }
  for_each_network([](LaneNetwork& n) {
    n.runner.zero_padding(n.m, n.high_water);
    n.high_water = n.m;
  });
}

// A row of the own network's output: [prediction | learned variance | classifier's gradient], N each, what there is of them.
void Lane::read_outputs(const Slot& slot, StepSlot* s) const {
  if (slot.cond) s->cond = slot.cond.network->output(slot.cond.at);
  if (slot.uncond) s->uncond = slot.uncond.network->output(slot.uncond.at);
  const float* own = slot.cond ? s->cond : slot.uncond_network == &own_ ? s->uncond : nullptr;
  if (own == nullptr) return;
  const bool is_learned = spec_.prediction.variance != "fixed";
  if (is_learned) s->variance = own + N_;
  if (spec_.has_classifier && slot.cond) s->grad = own + (is_learned ? 2 : 1) * N_;
}

// Executes the current row of every slot and packs the next evaluations: the step writes them where they will be read.
void Lane::step() {
  steps_.clear();
  bad_.assign(resident_.size(), 0);
  watch();
  for_each_network([](LaneNetwork& n) { n.m = 0; });
  for (int index : resident_) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    StepSlot s{};
    s.row = slot.row;
    s.next = slot.row + 1 != slot.end ? slot.row + 1 : nullptr;
    s.seed = slot.seed;
    s.scale = slot.scale;
    s.x = slot.x;
    read_outputs(slot, &s);
    for (size_t k = 0; k < 3; ++k) s.history[k] = slot.history[k];
    s.ring = slot.ring;
    s.anchor = slot.anchor;
    s.known = slot.request->spec().known_of(slot.image);
    s.mask = slot.request->spec().mask_of(slot.image);
    float* kept = slot.row->flags & kNoEval ? nullptr : slot.request->x0_of(slot.image, slot.evaluations++);
    slot.cond = slot.uncond = Place{};
    slot.row++;
    if (s.next != nullptr) {
      place(&slot);
      if (slot.cond) s.in[0] = slot.cond.network->input(slot.cond.at);
      if (slot.uncond) s.in[1] = slot.uncond.network->input(slot.uncond.at);
    }
    for (Watched& w : watched_) {
      if (w.request == slot.request.get()) s.x0_out = previews_.data() + w.end++ * N_;
    }
    if (kept != nullptr && s.x0_out != nullptr) kept_.push_back({s.x0_out, kept});
    if (s.x0_out == nullptr) s.x0_out = kept;
    steps_.push_back(s);
  }
  step_cpu(steps_.data(), steps_.size(), N_, bad_.data());
  for (const auto& [from, to] : kept_) std::memcpy(to, from, N_ * sizeof(float));
  kept_.clear();
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
