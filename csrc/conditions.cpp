#include "conditions.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

namespace ddpm_rt {

ConditionRows::ConditionRows(size_t inputs) : inputs_(inputs) {
  static std::atomic<uint64_t> last{0};
  id_ = ++last;
}

void ConditionRows::set(size_t input, size_t elements, std::vector<float> rows) {
  inputs_[input].elements = elements;
  inputs_[input].rows = std::move(rows);
}

const float* ConditionRows::row(size_t input, size_t image) const {
  const Input& from = inputs_[input];
  return from.rows.data() + (from.rows.size() == from.elements ? 0 : image * from.elements);
}

void PlacedConditions::put(const Evaluations& evaluations, size_t e, const ConditionRows& rows, size_t image) {
  Key& key = placed_[e];
  if (key.id == rows.id() && key.image == image) return;
  for (size_t k = 0; k < evaluations.conditions.size(); ++k) {
    const ConditionBuffer& to = evaluations.conditions[k];
    std::memcpy(to.data + e * to.elements, rows.row(k, image), to.elements * sizeof(float));
  }
  key = {rows.id(), image};
}

void PlacedConditions::zero(const Evaluations& evaluations, size_t first, size_t last) {
  for (const ConditionBuffer& to : evaluations.conditions) {
    std::fill(to.data + first * to.elements, to.data + last * to.elements, to.is_mask ? 1.0f : 0.0f);
  }
  std::fill(placed_.begin() + static_cast<std::ptrdiff_t>(first), placed_.begin() + static_cast<std::ptrdiff_t>(last), Key());
}

}  // namespace ddpm_rt
