#include "lane.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "clock.h"

#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
#define DDPM_RT_HAS_MXCSR 1
#endif

namespace ddpm_rt {
namespace {

constexpr int kReconsider = 16;  // ticks after which more variants may be found to pay

// Hosts may have switched denormals off on the thread that starts us; results must not depend on that.
void set_default_float_environment() {
#ifdef DDPM_RT_HAS_MXCSR
  _mm_setcsr(0x1f80);
#endif
}

}  // namespace

uint32_t lane_flags(const ModelSpec& spec) {
  const bool is_learned = spec.prediction.variance != "fixed";
  return kLaneFlags | (is_learned ? kLearnedVar | kLearnedRange : 0u) | (spec.has_classifier ? kGrad : 0u);
}

Lane::Lane(std::shared_ptr<const NetworkSource> source) 
    : max_batch_(source->options.max_batch), own_(source, max_batch_), spec_(own_.spec), N_(own_.limits.in_elements) {
  const size_t slots = static_cast<size_t>(max_batch_);
  slots_.resize(slots);
  states_.resize(slots * N_);
  for (size_t i = slots; i-- > 0;) {
    free_.push_back(static_cast<int>(i));
    slots_[i].x = states_.data() + i * N_;
  }
  resident_.reserve(slots);
  steps_.reserve(slots);
  bad_.reserve(slots);
  watched_.reserve(slots);
  kept_.reserve(slots);
  start();
}

void Lane::on_idle() {
  for_each_network([](LaneNetwork& n) { n.runner.save_costs(); });
}

void Lane::on_start() { set_default_float_environment(); }

void Lane::tick() {
  const double start = now(), run_before = run_seconds(), embed_before = embed_seconds();
  drop_finished();
  admit();
  if (resident_.empty()) return;
  if (is_changed_ || ++ticks_at_this_membership_ == kReconsider) {
    if (is_changed_) ticks_at_this_membership_ = 0;
    is_changed_ = false;
    for_each_network([ticks = expected_ticks()](LaneNetwork& n) {
      if (n.m > 0) n.runner.expect(n.m, ticks);
    });
  }
  finish_packing();
  int evaluations = 0;
  for_each_network([&](LaneNetwork& n) { evaluations += n.m; });
  run_networks();
  step();
  call_back();
  const double finished_at = now();
  // Before delivery: who waits for an image finds its ticks counted.
  add_stats({1, evaluations, 0, finished_at - start, run_seconds() - run_before, embed_seconds() - embed_before});
  const size_t before = resident_.size();
  deliver();
  if (before == resident_.size()) return;
  add_stats({0, 0, static_cast<int64_t>(before - resident_.size()), now() - finished_at, 0, 0});
}

void Lane::run_networks() {
  for_each_network([this](LaneNetwork& n) {
    if (n.m > 0) n.runner.run(n.m, n.owners.data(), &n.failures);
    if (!n.failures.empty()) fail(n);
    n.failures.clear();
  });
}

double Lane::run_seconds() const {
  double seconds = own_.runner.run_seconds();
  for (const auto& guide : guides_) seconds += guide->runner.run_seconds();
  return seconds;
}

double Lane::embed_seconds() const {
  double seconds = own_.runner.embed_seconds();
  for (const auto& guide : guides_) seconds += guide->runner.embed_seconds();
  return seconds;
}

// Frees the slots of cancelled and failed requests and closes the gaps in the packed list, so that what the last step
// wrote for the others keeps its order.
void Lane::drop_finished() {
  const auto is_done = [](const std::shared_ptr<Request>& r) { return r->is_finished(); };
  drop_waiting_finished();
  if (std::none_of(resident_.begin(), resident_.end(), [&](int s) { return is_done(slots_[static_cast<size_t>(s)].request); })) {
    return;
  }
  is_changed_ = true;
  for_each_network([](LaneNetwork& n) { n.m = 0; });
  size_t kept = 0;
  for (int index : resident_) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    if (is_done(slot.request)) {
      slot.request.reset();
      free_.push_back(index);
      continue;
    }
    resident_[kept++] = index;
    for (Place* place : {&slot.cond, &slot.uncond}) {
      if (!*place) continue;
      LaneNetwork& n = *place->network;
      if (place->at != n.m) std::memmove(n.input(n.m), n.input(place->at), N_ * sizeof(float));
      place->at = n.m++;
    }
  }
  resident_.resize(kept);
}

void Lane::admit() {
  while (!free_.empty()) {
    std::shared_ptr<Request> request = next_waiting();
    if (request == nullptr) return;
    const int index = free_.back();
    free_.pop_back();
    begin(index, std::move(request));
    resident_.push_back(index);
    is_changed_ = true;
  }
}

void Lane::begin(int index, std::shared_ptr<Request> request) {
  const RequestSpec& spec = request->spec();
  Slot& slot = slots_[static_cast<size_t>(index)];
  const size_t i = static_cast<size_t>(index), image = static_cast<size_t>(request->next_image++);
  const auto registers = [this, i](std::vector<float>* all, size_t each) {
    if (all->empty()) all->resize(slots_.size() * each * N_);
    float* own = all->data() + i * each * N_;
    std::fill(own, own + each * N_, 0.0f);
    return own;
  };
  slot.image = static_cast<int64_t>(image);
  slot.row = spec.table->rows.data();
  slot.end = slot.row + spec.table->rows.size();
  slot.seed = spec.seeds[image];
  slot.label = spec.labels[image];
  slot.negative = spec.negative.empty() ? spec.null_label : spec.negative[image];
  slot.uncond_network = spec.guide != nullptr ? guide(spec) : &own_;
  slot.scale = spec.scale;
  slot.ring = 0;
  slot.evaluations = 0;
  slot.bad = false;
  float* history = spec.table->uses_history ? registers(&histories_, 3) : nullptr;
  for (size_t k = 0; k < 3; ++k) slot.history[k] = history != nullptr ? history + k * N_ : nullptr;
  slot.anchor = spec.table->uses_anchor ? registers(&anchors_, 1) : nullptr;

  if (spec.start.empty()) {
    fill_normals(slot.seed, 0, kStreamInit, 0, N_, slot.x);
  } else {
    std::memcpy(slot.x, spec.start.data() + image * N_, N_ * sizeof(float));
  }
  const float sigma = spec.start_is_state ? 1.0f : static_cast<float>(spec.table->init_sigma);
  if (sigma != 1.0f) {
    for (size_t k = 0; k < N_; ++k) slot.x[k] *= sigma;
  }
  place(&slot);
  for (const Place& place : {slot.cond, slot.uncond}) {
    if (!place) continue;
    float* in = place.network->input(place.at);
    for (size_t k = 0; k < N_; ++k) in[k] = slot.row->c_in * slot.x[k];
  }
  slot.request = std::move(request);
}

LaneNetwork* Lane::guide(const RequestSpec& spec) {
  const auto is_asked = [&](const std::unique_ptr<LaneNetwork>& n) { return n->source == spec.guide; };
  auto found = std::find_if(guides_.begin(), guides_.end(), is_asked);
  if (found != guides_.end()) {
    std::rotate(found, found + 1, guides_.end());
    return guides_.back().get();
  }
  const auto is_unused = [this](const std::unique_ptr<LaneNetwork>& n) {
    return std::none_of(resident_.begin(), resident_.end(),
                        [&](int i) { return slots_[static_cast<size_t>(i)].uncond_network == n.get(); });
  };
  if (guides_.size() >= kMostGuides) {
    const auto oldest = std::find_if(guides_.begin(), guides_.end(), is_unused);
    if (oldest != guides_.end()) guides_.erase(oldest);
  }
  guides_.push_back(std::make_unique<LaneNetwork>(spec.guide, max_batch_));
  return guides_.back().get();
}

void Lane::fail(const LaneNetwork& network) {
  for (const Runner::Failure& f : network.failures) {
    for (int index : resident_) {
      const Slot& slot = slots_[static_cast<size_t>(index)];
      for (const Place& place : {slot.cond, slot.uncond}) {
        const bool is_hit = place.network == &network && place.at >= f.first && place.at < f.first + f.count;
        if (is_hit) slot.request->finish(static_cast<int>(f.code), f.message);
      }
    }
  }
  // Not drop_finished(): the next places are assigned by step(), the failed must only not be stepped.
  const auto kept = std::remove_if(resident_.begin(), resident_.end(), [this](int index) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    if (!slot.request->is_finished()) return false;
    slot.request.reset();
    free_.push_back(index);
    return true;
  });
  resident_.erase(kept, resident_.end());
  is_changed_ = true;
}

void Lane::fail_all(Code code, const std::string& message) {
  for (int index : resident_) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    slot.request->finish(static_cast<int>(code), message);
    slot.request.reset();
    free_.push_back(index);
  }
  resident_.clear();
  for_each_network([](LaneNetwork& n) { n.m = 0; });
  is_changed_ = true;
}

double Lane::expected_ticks() const {
  double executions = waiting_rows();
  for (int index : resident_) executions += static_cast<double>(slots_[static_cast<size_t>(index)].end - slots_[static_cast<size_t>(index)].row);
  return executions / static_cast<double>(std::max<size_t>(1, resident_.size()));
}

}  // namespace ddpm_rt
