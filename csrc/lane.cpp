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

Lane::Lane(const ModelSpec& spec, const Plan* plan, std::vector<Candidate> candidates, RunnerOptions options)
    : spec_(spec),
      options_(options),
      runner_(spec, plan, std::move(candidates), std::move(options)),
      limits_(runner_.limits()),
      N_(limits_.in_elements) {
  if (limits_.out_elements != N_) {
    throw Error(Code::kBackend, "network: expected " + std::to_string(N_) + " outputs per sample, got " +
                                    std::to_string(limits_.out_elements));
  }
  const size_t slots = static_cast<size_t>(options_.max_batch);
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
  owners_.resize(runner_.evaluations().capacity, nullptr);
  start();
}

void Lane::on_start() { set_default_float_environment(); }

void Lane::tick() {
  const double start = now(), run_before = runner_.run_seconds(), embed_before = runner_.embed_seconds();
  drop_finished();
  admit();
  if (resident_.empty()) return;
  if (is_changed_ || ++ticks_at_this_membership_ == kReconsider) {
    if (is_changed_) ticks_at_this_membership_ = 0;
    is_changed_ = false;
    runner_.expect(m_, expected_ticks());
  }
  finish_packing();
  const int evaluations = m_;
  runner_.run(m_, owners_.data(), &failures_);
  if (!failures_.empty()) fail(failures_);
  step();
  call_back();
  const double finished_at = now();
  // Before delivery: who waits for an image finds its ticks counted.
  add_stats({1, evaluations, 0, finished_at - start, runner_.run_seconds() - run_before, runner_.embed_seconds() - embed_before});
  const size_t before = resident_.size();
  deliver();
  if (before == resident_.size()) return;
  add_stats({0, 0, static_cast<int64_t>(before - resident_.size()), now() - finished_at, 0, 0});
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
  m_ = 0;
  float* packed = runner_.evaluations().x;
  size_t kept = 0;
  for (int index : resident_) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    if (is_done(slot.request)) {
      slot.request.reset();
      free_.push_back(index);
      continue;
    }
    resident_[kept++] = index;
    for (int* at : {&slot.cond, &slot.uncond}) {
      if (*at == kNone) continue;
      const size_t from = static_cast<size_t>(*at) * N_, to = static_cast<size_t>(m_) * N_;
      if (from != to) std::memmove(packed + to, packed + from, N_ * sizeof(float));
      *at = m_++;
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
  slot.scale = spec.scale;
  slot.ring = 0;
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
  for (int at : {slot.cond, slot.uncond}) {
    if (at == kNone) continue;
    float* in = runner_.evaluations().x + static_cast<size_t>(at) * N_;
    for (size_t k = 0; k < N_; ++k) in[k] = slot.row->c_in * slot.x[k];
  }
  slot.request = std::move(request);
}

void Lane::fail(const std::vector<Runner::Failure>& failures) {
  for (const Runner::Failure& f : failures) {
    for (int index : resident_) {
      const Slot& slot = slots_[static_cast<size_t>(index)];
      for (int at : {slot.cond, slot.uncond}) {
        if (at >= f.first && at < f.first + f.count) slot.request->finish(static_cast<int>(f.code), f.message);
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
  m_ = 0;
  is_changed_ = true;
}

double Lane::expected_ticks() const {
  double executions = waiting_rows();
  for (int index : resident_) executions += static_cast<double>(slots_[static_cast<size_t>(index)].end - slots_[static_cast<size_t>(index)].row);
  return executions / static_cast<double>(std::max<size_t>(1, resident_.size()));
}

}  // namespace ddpm_rt
