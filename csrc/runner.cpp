#include "runner.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "clock.h"

namespace ddpm_rt {
namespace {

constexpr size_t kAlign = 64;

double default_tolerance(const std::string& precision) {
  return precision == "bf16" ? 1e-1 : precision == "fp16" ? 2e-2 : 2e-4;
}

}  // namespace

void Runner::AlignedDelete::operator()(char* p) const { ::operator delete[](p, std::align_val_t{kAlign}); }

Runner::Runner(const ModelSpec& spec, const Plan* plan, std::vector<Candidate> candidates, RunnerOptions options)
    : spec_(spec), plan_(plan), candidates_(std::move(candidates)), options_(std::move(options)) {
  adopt_candidate();
}

Runner::~Runner() = default;

void Runner::allocate(const Limits& limits) {
  const VariantPolicy& policy = options_.variants;
  const size_t of_a_tick = 2 * static_cast<size_t>(options_.max_batch) + static_cast<size_t>(policy.largest_bucket);
  const size_t capacity = policy.host_rows > 0 ? policy.host_rows : of_a_tick;
  size_t bytes = 0;
  const auto take = [&bytes](size_t count, size_t size) {
    const size_t at = bytes;
    bytes += (count * size + kAlign - 1) / kAlign * kAlign;
    return at;
  };
  const size_t x = take(capacity * limits.in_elements, sizeof(float)), t = take(capacity, sizeof(float));
  const size_t label = take(capacity, sizeof(int64_t)), rows = take(capacity * limits.rows_width, sizeof(float));
  const size_t out = take(capacity * limits.out_elements, sizeof(float));
  const std::vector<ConditionInput> inputs = spec_.condition_inputs();
  std::vector<size_t> starts;
  for (const ConditionInput& input : inputs) starts.push_back(take(capacity * input.elements(), sizeof(float)));
  memory_.reset(static_cast<char*>(::operator new[](bytes, std::align_val_t{kAlign})));
  std::memset(memory_.get(), 0, bytes);
  evaluations_.capacity = capacity;
  evaluations_.x = reinterpret_cast<float*>(memory_.get() + x);
  evaluations_.t = reinterpret_cast<float*>(memory_.get() + t);
  evaluations_.label = reinterpret_cast<int64_t*>(memory_.get() + label);
  evaluations_.rows = limits.rows_width > 0 ? reinterpret_cast<float*>(memory_.get() + rows) : nullptr;
  evaluations_.out = reinterpret_cast<float*>(memory_.get() + out);
  std::fill_n(evaluations_.label, capacity, spec_.num_classes);
  for (size_t k = 0; k < inputs.size(); ++k) {
    evaluations_.conditions.push_back({reinterpret_cast<float*>(memory_.get() + starts[k]), inputs[k].elements(), inputs[k].is_mask});
  }
  conditions_ = std::make_unique<PlacedConditions>(capacity);
  conditions_->zero(evaluations_, 0, capacity);
}

void Runner::adopt_candidate() {
  const Candidate& candidate = candidates_[current_];
  std::unique_ptr<Denoiser> made = candidate.make();
  const Limits& limits = made->limits();
  const bool is_other_shape = denoiser_ != nullptr && (limits.in_elements != denoiser_->limits().in_elements ||
                                                       limits.out_elements != denoiser_->limits().out_elements ||
                                                       limits.rows_width != denoiser_->limits().rows_width);
  if (is_other_shape) throw Error(Code::kInternal, "candidates: expected one shape of inputs and outputs, got two");
  if (denoiser_ == nullptr) allocate(limits);  // once: rows may already wait in the buffers
  denoiser_ = std::move(made);
  denoiser_->bind(evaluations_);
  const size_t capacity = evaluations_.capacity;

  embeddings_ = std::make_unique<EmbeddingCache>(limits.rows_width, capacity, 2 * static_cast<size_t>(options_.max_batch));
  self_test_ = plan_ != nullptr ? read_self_test(spec_, *plan_, limits, candidate.precision) : SelfTestCase();
  if (!(self_test_.tolerance > 0)) self_test_.tolerance = default_tolerance(candidate.precision);
  self_test_error_ = -1;
  costs_ = CostModel();
  prepared_.clear();
  reference_.clear();
  plans_.assign(2 * static_cast<size_t>(options_.max_batch) + 1, {});
  ticks_seen_.assign(plans_.size(), 0);
  single_rows_only_ = false;
  if (!options_.cache_dir.empty() && !limits.any_batch) {
    const std::string key = options_.digest + "\n" + denoiser_->describe() + "\n" + candidate.precision + "\n" +
                            std::to_string(options_.threads);
    cost_path_ = options_.cache_dir + "/cost-" + hex(sha256(key.data(), key.size())).substr(0, 32) + ".json";
    costs_.load(cost_path_);
  }
  publish();
}

void Runner::embed(size_t e, int64_t label, const StepRow* row, const StepRow* end) {
  if (denoiser_->limits().rows_width == 0) return;
  const double start = now();
  embeddings_->fill(*denoiser_, evaluations_, e, label, row, end);
  embed_seconds_ += now() - start;
}

void Runner::zero_padding(int first, int last) {
  const size_t N = limits().in_elements, a = static_cast<size_t>(first), b = static_cast<size_t>(last);
  if (a >= b) return;
  std::fill(evaluations_.x + a * N, evaluations_.x + b * N, 0.0f);
  std::fill(evaluations_.t + a, evaluations_.t + b, 0.0f);
  std::fill(evaluations_.label + a, evaluations_.label + b, spec_.num_classes);
  embeddings_->zero(evaluations_, a, b);
  conditions_->zero(evaluations_, a, b);
}

const std::vector<Phase>& Runner::phases(int m) {
  std::vector<Phase>& plan = plans_[static_cast<size_t>(m)];
  if (plan.empty()) plan = plan_tick(m, usable());
  return plan;
}

bool Runner::try_calls(const Call* calls, size_t count, Failure* failure) {
  const double start = now();
  bool ok = false;
  try {
    denoiser_->run(calls, count);
    ok = true;
  } catch (const Error& e) {
    failure->code = e.code();
    failure->message = e.what();
  } catch (const std::exception& e) {
    failure->code = Code::kBackend;
    failure->message = e.what();
  } catch (...) {
    failure->code = Code::kBackend;
    failure->message = "denoiser: threw something that is not a std::exception";
  }
  run_seconds_ += now() - start;
  failure->first = calls[0].first;
  failure->count = calls[count - 1].first + calls[count - 1].count - calls[0].first;
  return ok;
}

void Runner::run_any_batch(int m, const void* const* owner, std::vector<Failure>* failures) {
  Failure failure{};
  const Call all{m, 1, 0, m};
  if (try_calls(&all, 1, &failure)) return;
  const bool is_shared = std::any_of(owner, owner + m, [owner](const void* o) { return o != owner[0]; });
  if (!is_shared) return failures->push_back(std::move(failure));
  for (int first = 0, end; first < m; first = end) {
    for (end = first + 1; end < m && owner[end] == owner[first];) ++end;
    const Call own{end - first, 1, first, end - first};
    if (!try_calls(&own, 1, &failure)) failures->push_back(failure);
  }
}

void Runner::run(int m, const void* const* owner, std::vector<Failure>* failures) {
  failures->clear();
  if (m <= 0) return;
  if (denoiser_->limits().any_batch) return run_any_batch(m, owner, failures);
  bool changed = false;
  count_tick(m);
  for (const Phase& p : phases(m)) {
    Call calls[2];
    size_t count = 0;
    for (int at = 0; at < p.count; at += p.variant.bucket) {
      calls[count++] = {p.variant.bucket, p.variant.streams, p.first + at, std::min(p.variant.bucket, p.count - at)};
    }
    Failure failure{};
    const double before = run_seconds_;
    if (!try_calls(calls, count, &failure)) {
      failures->push_back(std::move(failure));
    } else if (static_cast<int>(count) == p.variant.streams) {
      changed = costs_.add_sample(p.variant, run_seconds_ - before) || changed;
    }
  }
  if (!changed) return;
  costs_changed_ = true;
  std::fill(plans_.begin(), plans_.end(), std::vector<Phase>());
  publish();
}

void Runner::save_costs() {
  if (!costs_changed_ || cost_path_.empty()) return;
  costs_.save(cost_path_);
  costs_changed_ = false;
}

void Runner::log(int level, const std::string& message) const {
  if (options_.log) options_.log(level, message);
}

}  // namespace ddpm_rt
