#include "qualify.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "error.h"
#include "step.h"

namespace ddpm_rt {
namespace {

constexpr uint64_t kProbeSeed = 0x9e3779b97f4a7c15u;
constexpr int kProbeTimes = 1000;  // of continuous time

double run_phase(Denoiser& denoiser, Variant v, int rows) {
  std::vector<Call> calls;
  for (int first = 0; first < rows; first += v.bucket) {
    calls.push_back({v.bucket, v.streams, first, std::min(v.bucket, rows - first)});
  }
  return denoiser.timed_run(calls.data(), calls.size());
}

void set_row(Denoiser& denoiser, const Evaluations& e, const Limits& limits, size_t row, float t, int64_t label) {
  e.t[row] = t;
  e.label[row] = label;
  if (limits.rows_width > 0) denoiser.embed(&t, &label, 1, e.rows + row * limits.rows_width);
}

// Unit noise; the first half of a sequence counts in a fixed row, all of it in others.
void set_probe_conditions(const Evaluations& e, size_t row, uint64_t seed, bool fixed) {
  for (size_t k = 0; k < e.conditions.size(); ++k) {
    const size_t n = e.conditions[k].elements;
    float* to = e.conditions[k].data + row * n;
    if (e.conditions[k].is_mask) {
      std::fill(to, to + n, 1.0f);
      if (fixed) std::fill(to + (n + 1) / 2, to + n, 0.0f);
    } else {
      fill_normals(seed, static_cast<uint32_t>(k) + 1, kStreamInit, 0, n, to);
    }
  }
}

}  // namespace

SavedInputs::SavedInputs(const Evaluations& e, const Limits& limits, size_t rows)
    : to_(e),
      x_(limits.in_elements),
      width_(limits.rows_width),
      rows_(rows),
      x_copy_(e.x, e.x + rows * limits.in_elements),
      t_copy_(e.t, e.t + rows),
      label_copy_(e.label, e.label + rows) {
  if (width_ > 0) rows_copy_.assign(e.rows, e.rows + rows * width_);
  for (const ConditionBuffer& c : e.conditions) condition_copies_.emplace_back(c.data, c.data + rows * c.elements);
}

SavedInputs::~SavedInputs() {
  std::memcpy(to_.x, x_copy_.data(), rows_ * x_ * sizeof(float));
  std::memcpy(to_.t, t_copy_.data(), rows_ * sizeof(float));
  std::memcpy(to_.label, label_copy_.data(), rows_ * sizeof(int64_t));
  if (width_ > 0) std::memcpy(to_.rows, rows_copy_.data(), rows_ * width_ * sizeof(float));
  for (size_t k = 0; k < condition_copies_.size(); ++k) {
    std::copy(condition_copies_[k].begin(), condition_copies_[k].end(), to_.conditions[k].data);
  }
}

Probe run_probe(Denoiser& denoiser, const Evaluations& e, const ModelSpec& spec, Variant v) {
  const Limits& limits = denoiser.limits();
  const size_t N = limits.in_elements, M = limits.out_elements;
  const int rows = v.capacity();
  const SavedInputs saved(e, limits, static_cast<size_t>(rows));
  const auto is_fixed = [&v](int row) { return row % v.bucket == 0 || row % v.bucket == v.bucket - 1; };
  const int T = spec.schedule.is_discrete() ? spec.schedule.T() : kProbeTimes;
  const double most = first_time(spec.schedule), least = last_time(spec.schedule);
  for (int row = 0; row < rows; ++row) {
    const bool fixed = is_fixed(row);
    const size_t r = static_cast<size_t>(row);
    const uint64_t seed = kProbeSeed + (fixed ? 0 : r);
    fill_normals(seed, 0, kStreamInit, 0, N, e.x + r * N);
    set_probe_conditions(e, r, seed, fixed);
    const int index = fixed ? T / 2 : (row * 37) % T;
    const int64_t label = fixed || spec.num_classes == 0 ? 0 : row % (spec.num_classes + 1);
    const double at = spec.schedule.is_discrete() ? index : least + (most - least) * (index + 0.5) / T;
    set_row(denoiser, e, limits, r, static_cast<float>(network_time(spec.schedule, spec.prediction, level_at(spec.schedule, at))), label);
  }
  Probe probe;
  probe.seconds = run_phase(denoiser, v, rows);
  probe.out.assign(e.out, e.out + M);
  for (int row = 1; row < rows; ++row) {
    const bool equal = std::memcmp(e.out, e.out + static_cast<size_t>(row) * M, M * sizeof(float)) == 0;
    if (is_fixed(row) && !equal) probe.slots_equal = false;
  }
  return probe;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

SelfTestCase read_self_test(const ModelSpec& spec, const Plan& plan, const Limits& limits, const std::string& precision) {
  SelfTestCase test;
  test.in = limits.in_elements;
  test.out = limits.out_elements;
  for (const ConditionInput& input : spec.condition_inputs()) test.conditions += input.elements();
  const auto tolerance = spec.self_test.tolerance.find(precision);
  if (tolerance != spec.self_test.tolerance.end()) test.tolerance = tolerance->second;
  if (spec.self_test.section.empty() || spec.self_test.count <= 0) return test;
  const std::vector<uint8_t> bytes = plan.read(spec.self_test.section);
  const size_t row = (test.in + 2 + test.conditions + test.out) * sizeof(float);
  const size_t count = static_cast<size_t>(spec.self_test.count);
  if (bytes.size() % row != 0 || bytes.size() / row != count) {
    throw Error(Code::kPlan, "section " + spec.self_test.section + ": expected " + std::to_string(count) + " cases of " +
                                 std::to_string(row) + " bytes, got " + std::to_string(bytes.size()) + " bytes");
  }
  test.count = count;
  test.data.resize(bytes.size() / sizeof(float));
  std::memcpy(test.data.data(), bytes.data(), bytes.size());
  return test;
}

double run_self_test(Denoiser& denoiser, const Evaluations& e, const SelfTestCase& test, Variant v) {
  const Limits& limits = denoiser.limits();
  const size_t behind = test.in + 2, stride = behind + test.conditions + test.out;
  const size_t width = std::min(static_cast<size_t>(v.bucket), e.capacity);
  const SavedInputs saved(e, limits, width);
  double difference = 0, greatest = 0;
  for (size_t done = 0; done < test.count; done += width) {
    const size_t rows = std::min(width, test.count - done);
    for (size_t r = 0; r < rows; ++r) {
      const float* from = test.data.data() + (done + r) * stride;
      std::memcpy(e.x + r * test.in, from, test.in * sizeof(float));
      set_row(denoiser, e, limits, r, from[test.in], static_cast<int64_t>(from[test.in + 1]));
      from += behind;
      for (const ConditionBuffer& c : e.conditions) {
        std::memcpy(c.data + r * c.elements, from, c.elements * sizeof(float));
        from += c.elements;
      }
    }
    const Call call{v.bucket, v.streams, 0, static_cast<int>(rows)};
    denoiser.run(&call, 1);
    for (size_t r = 0; r < rows; ++r) {
      const float* expected = test.data.data() + (done + r) * stride + behind + test.conditions;
      for (size_t i = 0; i < test.out; ++i) {
        const double d = std::fabs(static_cast<double>(e.out[r * test.out + i]) - expected[i]);
        if (!(d <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::infinity();
        difference = std::max(difference, d);
        greatest = std::max(greatest, std::fabs(static_cast<double>(expected[i])));
      }
    }
  }
  return greatest > 0 ? difference / greatest : difference;
}

}  // namespace ddpm_rt
