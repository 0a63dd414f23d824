// Runner: which variants are prepared, and what they must show first.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include <nlohmann/json.hpp>

#include "clock.h"
#include "runner.h"

namespace ddpm_rt {
namespace {

constexpr int kLargestPairedBucket = 16;
constexpr double kDoubt = 1.05;         // an estimate must promise this much more than a measurement
constexpr double kTimingBudget = 0.05;  // seconds of extra timed runs per variant

std::string number(double v) {
  char text[40];
  std::snprintf(text, sizeof text, "%.3g", v);
  return text;
}

std::string name(Variant v) { return std::to_string(v.bucket) + "x" + std::to_string(v.streams); }

}  // namespace

std::vector<Variant> Runner::possible() const {
  const Limits& limits = denoiser_->limits();
  const int largest = std::min(options_.variants.largest_bucket, limits.max_bucket);
  std::vector<Variant> variants;
  for (int bucket = 1; bucket <= largest; bucket *= 2) variants.push_back({bucket, 1});
  if (limits.max_streams >= 2 && options_.threads >= 2) {
    for (int bucket = 1; bucket <= std::min(largest, kLargestPairedBucket); bucket *= 2) variants.push_back({bucket, 2});
  }
  return variants;
}

bool Runner::is_prepared(Variant variant) const {
  return std::any_of(prepared_.begin(), prepared_.end(), [&](const Prepared& p) { return p.variant == variant; });
}

CostTable Runner::usable() const {
  CostTable table;
  for (const Prepared& p : prepared_) {
    if (p.is_usable) table.push_back({p.variant, costs_.seconds(p.variant)});
  }
  return table;
}

// One variant has to be compiled whatever it is: the one whose repeats cover m soonest, by what is known or estimated.
// Where nothing is known: the smallest bucket that covers m, and `first_of_many` for more.
Variant Runner::first_variant(int m) const {
  Variant best{1, 1};
  if (costs_.is_blank()) {
    for (Variant v : possible()) {
      if (v.streams != 1) continue;
      if (v.bucket <= options_.variants.first_of_many) best = v;
      if (v.bucket >= m) return v;
    }
    return best;
  }
  double best_seconds = std::numeric_limits<double>::infinity();
  for (Variant v : possible()) {
    const double doubt = costs_.is_known(v) ? 1.0 : kDoubt;
    const double seconds = doubt * costs_.seconds(v) * ((m + v.capacity() - 1) / v.capacity());
    if (seconds >= best_seconds) continue;
    best = v;
    best_seconds = seconds;
  }
  return best;
}

void Runner::expect(int m, double ticks) {
  if (!refused_.empty()) throw Error(Code::kBackend, refused_);
  if (m <= 0) return;
  if (!is_open_) {
    open_first(m);
    if (costs_.measured_count() == 0) return;  // nothing recorded to choose more variants by
  }
  if (denoiser_->limits().any_batch || single_rows_only_) return;
  CostTable all;
  for (Variant v : possible()) {
    if (!is_prepared(v)) all.push_back({v, costs_.seconds(v)});
  }
  const CostTable now_usable = usable();
  all.insert(all.end(), now_usable.begin(), now_usable.end());
  const std::vector<Phase> ideal = plan_tick(m, all);
  std::vector<Variant> missing;
  for (const Phase& p : ideal) {
    const bool is_new = !is_prepared(p.variant) && std::find(missing.begin(), missing.end(), p.variant) == missing.end();
    if (is_new) missing.push_back(p.variant);
  }
  if (missing.empty() || prepared_.size() + missing.size() > options_.variants.most_variants) return;
  // As many ticks of this size as there were are to be expected again: what many short requests waste counts too.
  const double likely_ticks = ticks + ticks_seen_[static_cast<size_t>(m)];
  const double saved = (plan_seconds(phases(m), now_usable) - plan_seconds(ideal, all)) * likely_ticks;
  const double caution = costs_.measured_count() >= 2 ? 1 : 3;  // one point is a guess at the slope
  if (saved <= caution * static_cast<double>(missing.size()) * costs_.compile_seconds()) return;
  for (Variant v : missing) {
    try {
      prepare(v);
    } catch (const Error& e) {
      prepared_.push_back({v, false, "error"});
      log(2, "variant " + name(v) + ": " + e.what());
    }
  }
  publish();
}

void Runner::open_first(int m) {
  for (;;) {
    try {
      if (denoiser_->limits().any_batch) {
        const size_t rows = std::min(std::max<size_t>(self_test_.count, 1), evaluations_.capacity);
        check_self_test({static_cast<int>(rows), 1});
      } else {
        const Variant v = first_variant(m);
        if (!is_prepared(v)) prepare(v);
        check_self_test(single_rows_only_ ? Variant{1, 1} : v);
      }
      is_open_ = true;
      publish();
      return;
    } catch (const Error& e) {
      log(2, "precision " + candidates_[current_].precision + ": " + e.what());
      if (current_ + 1 == candidates_.size()) {
        publish();
        throw;
      }
    }
    ++current_;
    refused_.clear();
    try {
      adopt_candidate();
    } catch (const Error& e) {
      refused_ = e.what();
      throw;
    }
  }
}

void Runner::check_self_test(Variant variant) {
  if (self_test_.count == 0) return;
  self_test_error_ = run_self_test(*denoiser_, evaluations_, self_test_, variant);
  if (self_test_error_ <= self_test_.tolerance) return;
  refused_ = "self-test: expected a relative error of at most " + number(self_test_.tolerance) + " in " +
             candidates_[current_].precision + ", got " + number(self_test_error_) + ": " + denoiser_->describe() +
             " does not compute this plan's network correctly";
  throw Error(Code::kBackend, refused_);
}

void Runner::prepare(Variant variant) {
  const double start = now();
  denoiser_->prepare(variant.bucket, variant.streams);
  costs_.add_compile(now() - start);
  log(0, "variant " + name(variant) + ": prepared in " + number(now() - start) + " s");
  std::fill(plans_.begin(), plans_.end(), std::vector<Phase>());

  const Probe probe = run_probe(*denoiser_, evaluations_, spec_, variant);  // also the warm-up
  const bool is_first = reference_.empty();
  if (is_first) reference_ = probe.out;
  const bool passed = probe.slots_equal && same_bits(probe.out, reference_);
  const bool is_usable = passed || !options_.batch_invariant;
  prepared_.push_back({variant, is_usable, !passed ? "failed" : is_first ? "reference" : "passed"});
  if (!passed) log(2, "variant " + name(variant) + ": a row's bits depend on its place or on the batch");
  if (is_first && !is_usable) return use_single_rows();
  if (!is_usable || (is_first && !options_.variants.times_first)) return;  // ticks time it anyway
  for (double spent = 0; spent < kTimingBudget;) {
    const double seconds = run_probe(*denoiser_, evaluations_, spec_, variant).seconds;
    if (!costs_.add_sample(variant, seconds)) break;
    spent += seconds;
    costs_changed_ = true;
  }
}

void Runner::use_single_rows() {
  single_rows_only_ = true;
  for (Prepared& p : prepared_) p.is_usable = false;
  reference_.clear();
  denoiser_->prepare(1, 1);
  const Probe probe = run_probe(*denoiser_, evaluations_, spec_, {1, 1});
  reference_ = probe.out;
  prepared_.push_back({{1, 1}, true, "reference"});
}

void Runner::publish() {
  nlohmann::json json;
  const auto described = nlohmann::json::parse(denoiser_->describe(), nullptr, false);
  json["network"] = described.is_discarded() ? nlohmann::json(denoiser_->describe()) : described;
  json["precision"] = candidates_[current_].precision;
  json["buckets"] = nlohmann::json::array();
  bool failed = false;
  for (const Prepared& p : prepared_) {
    failed = failed || p.probe == "failed";
    json["buckets"].push_back({{"bucket", p.variant.bucket},
                               {"streams", p.variant.streams},
                               {"seconds", costs_.is_known(p.variant) ? costs_.seconds(p.variant) : 0.0},
                               {"probe", p.probe},
                               {"used", p.is_usable}});
  }
  json["compile_seconds"] = costs_.compile_seconds();
  const bool is_row_by_row = denoiser_->limits().any_batch;
  json["invariance_probe"] = is_row_by_row ? "not needed" : prepared_.empty() ? "pending" : failed ? "failed" : "passed";
  json["single_rows_only"] = single_rows_only_;
  const bool has_test = self_test_.count > 0, ran = self_test_error_ >= 0;
  json["self_test"] = {{"status", !has_test ? "none" : !ran ? "pending" : refused_.empty() ? "passed" : "failed"}};
  if (has_test) json["self_test"]["tolerance"] = self_test_.tolerance;
  if (has_test && ran) json["self_test"]["error"] = std::isfinite(self_test_error_) ? self_test_error_ : 1e308;
  std::lock_guard<std::mutex> lock(report_mutex_);
  report_ = json.dump();
}

std::string Runner::report() const {
  std::lock_guard<std::mutex> lock(report_mutex_);
  return report_;
}

}  // namespace ddpm_rt
