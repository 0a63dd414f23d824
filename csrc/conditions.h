// The tensors that requests bring beside labels, and what the packed list of evaluations holds of them.
#ifndef DDPM_RT_CONDITIONS_H_
#define DDPM_RT_CONDITIONS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "denoiser.h"

namespace ddpm_rt {

// Every input of ModelSpec::condition_inputs() as the network reads it: one row for all images of a request, or one for each.
class ConditionRows {
 public:
  ConditionRows() = default;  // none
  explicit ConditionRows(size_t inputs);
  bool is_given() const { return id_ != 0; }
  void set(size_t input, size_t elements, std::vector<float> rows);  // rows: 1 or n of `elements`
  const float* row(size_t input, size_t image) const;
  uint64_t id() const { return id_; }  // of these values; no other ConditionRows of the process has it, copies do

 private:
  struct Input {
    size_t elements = 0;
    std::vector<float> rows;
  };
  uint64_t id_ = 0;
  std::vector<Input> inputs_;
};

// Copies rows into evaluations, those that are not there yet.
class PlacedConditions {
 public:
  explicit PlacedConditions(size_t capacity) : placed_(capacity) {}

  void put(const Evaluations& evaluations, size_t e, const ConditionRows& rows, size_t image);
  // Padding: zeros, all of which count, since a softmax over nothing is not a number.
  void zero(const Evaluations& evaluations, size_t first, size_t last);

 private:
  struct Key {
    uint64_t id = 0;
    size_t image = 0;
  };
  std::vector<Key> placed_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_CONDITIONS_H_
