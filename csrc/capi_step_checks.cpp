#include "capi_step_checks.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "capi_edge.h"

namespace ddpm_rt {

StepRow read_row(const void* bytes, const char* field) {
  StepRow row;
  std::memcpy(&row, bytes, sizeof row);
  const uint32_t unknown = row.flags & ~kCpuFlags;
  if (unknown != 0) {
    throw Error(Code::kOption, std::string(field) + ".flags: expected flags that have an executor here (mask " +
                                   std::to_string(kCpuFlags) + "), got " + std::to_string(row.flags));
  }
  if ((row.flags & kThreshold) &&
      !(row.threshold_p >= 0 && row.threshold_p <= 1 && row.threshold_cap > 0)) {
    throw Error(Code::kOption, std::string(field) + ".threshold: expected a percentile in [0, 1] and a cap above 0, got " +
                                   std::to_string(row.threshold_p) + " and " + std::to_string(row.threshold_cap));
  }
  return row;
}

void expect_operands(const StepRow& row, const GivenOperands& given, const ddpm_rt_step_operands& operands) {
  const auto has = [&](uint32_t flags) { return (row.flags & flags) != 0; };
  const auto reads = [&](int operand) { return row.wx[operand] != 0 || (has(kKeep) && row.wy[operand] != 0); };
  const bool has_e = !has(kNoEval);
  if (has_e) expect_given(given.eps, "eps");
  if (has(kPush) || reads(kH1) || reads(kH2) || reads(kH3)) {
    expect_given(given.history, "history");
  }
  if (has(kKeep) || reads(kY)) expect_given(given.anchor, "anchor");
  if (row.wx[kZ] != 0 || has(kNorm) || (has(kBlend) && row.kz != 0)) {
    expect_given(given.seeds, "seeds");
  }
  if (has_e && has(kLearnedVar | kLearnedRange)) expect_given(operands.variance, "operands.variance");
  if (has(kGrad) && (row.gm != 0 || (has_e && row.ge != 0))) expect_given(operands.grad, "operands.grad");
  if (has(kBlend)) expect_given(operands.mask, "operands.mask");
  if (has(kBlend) && row.ky != 0) expect_given(operands.known, "operands.known");
  if (has(kVlb)) expect_given(operands.x0_true, "operands.x0_true");
  if (has(kVlb)) expect_given(operands.kl, "operands.kl");
}

void expect_next(const StepRow& row, const void* next_row, const float* in, uint32_t ring) {
  if (in != nullptr && next_row == nullptr && !(row.flags & kLast)) {
    throw Error(Code::kOption, "next_row: expected the row after this one to write its input, got null");
  }
  if (ring > 2) throw Error(Code::kOption, "ring: expected 0, 1 or 2, got " + std::to_string(ring));
}

float rescale_share(double rescale) {
  if (rescale >= 0 && rescale <= 1) return static_cast<float>(rescale);
  throw Error(Code::kOption, "rescale: expected a number in [0, 1], got " + std::to_string(rescale));
}

float finite_scale(double scale, const char* field) {
  const float s = static_cast<float>(scale);
  if (std::isfinite(s)) return s;
  throw Error(Code::kOption, std::string(field) + ": expected a finite number, got " + std::to_string(scale));
}

void expect_count(size_t count, size_t elements) {
  const size_t most = std::numeric_limits<size_t>::max() / sizeof(float) / 3;
  if (elements == 0 || (count != 0 && elements > most / count)) {
    throw Error(Code::kShape, "elements: expected 1 or more that fit memory, got " + std::to_string(count) + " x " +
                                  std::to_string(elements));
  }
}

}  // namespace ddpm_rt
