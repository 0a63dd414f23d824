// What a backend must show before its results are used: the plan's self-test, and that a row's bits do not depend on
// its place in the batch. Both run on the lane's own buffers and put back what they held.
#ifndef DDPM_RT_QUALIFY_H_
#define DDPM_RT_QUALIFY_H_

#include <memory>
#include <string>
#include <vector>

#include "denoiser.h"
#include "tick_plan.h"

namespace ddpm_rt {

// Rows [0, rows) of the inputs, given back by the destructor.
class SavedInputs {
 public:
  SavedInputs(const Evaluations& evaluations, const Limits& limits, size_t rows);
  ~SavedInputs();
  SavedInputs(const SavedInputs&) = delete;
  SavedInputs& operator=(const SavedInputs&) = delete;

 private:
  Evaluations to_;
  size_t x_, width_, rows_;
  std::vector<float> x_copy_, t_copy_, rows_copy_;
  std::vector<std::vector<float>> condition_copies_;
  std::vector<int64_t> label_copy_;
};

struct Probe {
  bool slots_equal = true;
  double seconds = 0;
  std::vector<float> out;  // the fixed evaluation's answer
};
// Runs one fixed pseudo-random evaluation in the first and last row of every call of a phase, other noise between.
Probe run_probe(Denoiser& denoiser, const Evaluations& evaluations, const ModelSpec& spec, Variant variant);
bool same_bits(const std::vector<float>& a, const std::vector<float>& b);

struct SelfTestCase {
  size_t count = 0, in = 0, conditions = 0, out = 0;
  std::vector<float> data;  // count x [x (in) | t | label | conditions | expected (out)]
  double tolerance = 0;     // max |difference| / max |expected|; 0: none stated for this precision
};
// Empty (count 0) where the plan has none. Throws Error(kPlan).
SelfTestCase read_self_test(const ModelSpec& spec, const Plan& plan, const Limits& limits, const std::string& precision);
// max |difference| / max |expected|, infinite where the answer is not finite.
double run_self_test(Denoiser& denoiser, const Evaluations& evaluations, const SelfTestCase& test, Variant variant);

}  // namespace ddpm_rt

#endif  // DDPM_RT_QUALIFY_H_
