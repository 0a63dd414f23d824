// The named tensors of a call, checked and as the network reads them: sequences padded to the plan's greatest length, whatever else
// is in the batch, so that neither shapes nor bits depend on it.
#include <algorithm>
#include <cmath>

#include "capi_structs.h"
#include "engine.h"

namespace ddpm_rt {
namespace {

[[noreturn]] void refuse(Code code, const std::string& message) { throw Error(code, message); }

std::string names_of(const std::vector<ConditionSpec>& conditions) {
  std::string list;
  for (const ConditionSpec& c : conditions) list += (list.empty() ? "" : ", ") + c.name;
  return list.empty() ? "none: this plan has no conditions" : list;
}

std::string shape_of(const ConditionSpec& c) {
  std::string text = c.max_length > 0 ? "L" : "";
  for (int64_t dim : c.shape) text += (text.empty() ? "" : ", ") + std::to_string(dim);
  return "[" + text + "]";
}

// By the index of their ConditionSpec; data null: not given.
std::vector<ddpm_rt_condition> by_name(const ddpm_rt_condition* const* given, size_t count, const std::string& field,
                                       const std::vector<ConditionSpec>& known) {
  std::vector<ddpm_rt_condition> found(known.size(), ddpm_rt_condition{});
  if (count > 0 && given == nullptr) refuse(Code::kOption, field + ": expected a pointer, got null");
  for (size_t i = 0; i < count; ++i) {
    if (given[i] == nullptr) refuse(Code::kOption, field + ": expected pointers, got null at index " + std::to_string(i));
    const ddpm_rt_condition read = read_struct(given[i], field.c_str(), &ddpm_rt_condition_init);
    const std::string name = read.name != nullptr ? read.name : "";
    const auto at = std::find_if(known.begin(), known.end(), [&](const ConditionSpec& c) { return c.name == name; });
    if (at == known.end()) refuse(Code::kOption, field + ": expected names among " + names_of(known) + "; got \"" + name + "\"");
    ddpm_rt_condition& to = found[static_cast<size_t>(at - known.begin())];
    if (to.name != nullptr) refuse(Code::kOption, field + "." + name + ": expected it once, got it twice");
    if (read.data == nullptr) refuse(Code::kOption, field + "." + name + ": expected an array, got null");
    to = read;
  }
  return found;
}

class Reader {
 public:
  Reader(const ConditionSpec& spec, const ddpm_rt_condition& given, const std::string& field, int64_t n)
      : spec_(spec), given_(given), field_(field + "." + spec.name), count_(given.count) {
    if (count_ != 1 && count_ != static_cast<size_t>(n)) {
      refuse(Code::kShape, field_ + ": expected 1 array or " + std::to_string(n) + " (one per image), got " + std::to_string(count_));
    }
    size_t elements = 0;
    for (size_t i = 0; i < count_; ++i) elements += length(i) * spec_.entry_elements();
    if (elements != given_.elements) {
      refuse(Code::kShape, field_ + ": expected " + std::to_string(elements) + " numbers, " + std::to_string(count_) + " x " +
                               shape_of(spec_) + ", got " + std::to_string(given_.elements));
    }
    for (size_t i = 0; i < elements; ++i) {
      if (!std::isfinite(given_.data[i])) refuse(Code::kOption, field_ + ": expected finite numbers, got others");
    }
  }

  std::vector<float> values() const {
    const size_t each = (spec_.max_length > 0 ? static_cast<size_t>(spec_.max_length) : 1) * spec_.entry_elements();
    std::vector<float> padded(count_ * each, 0.0f);
    const float* from = given_.data;
    for (size_t i = 0; i < count_; ++i) {
      const size_t own = length(i) * spec_.entry_elements();
      std::copy(from, from + own, padded.begin() + static_cast<std::ptrdiff_t>(i * each));
      from += own;
    }
    return padded;
  }

  std::vector<float> mask() const {
    const size_t each = static_cast<size_t>(spec_.max_length);
    std::vector<float> mask(count_ * each, 0.0f);
    for (size_t i = 0; i < count_; ++i) {
      std::fill_n(mask.begin() + static_cast<std::ptrdiff_t>(i * each), length(i), 1.0f);
    }
    return mask;
  }

 private:
  size_t length(size_t i) const {
    if (spec_.max_length == 0) return 1;
    const int64_t length = given_.lengths != nullptr ? given_.lengths[i] : spec_.max_length;
    if (!spec_.has_mask && length != spec_.max_length) {
      refuse(Code::kShape, field_ + ": expected a length of " + std::to_string(spec_.max_length) + ", got " + std::to_string(length) +
                               ": this network has no mask, so that entries added behind would count");
    }
    if (length < 1 || length > spec_.max_length) {
      refuse(Code::kShape, field_ + ": expected lengths of 1 to " + std::to_string(spec_.max_length) + ", got " + std::to_string(length));
    }
    return static_cast<size_t>(length);
  }

  const ConditionSpec& spec_;
  const ddpm_rt_condition& given_;
  const std::string field_;
  const size_t count_;
};

}  // namespace

void Engine::set_conditions(const ddpm_rt_sample_options& options, RequestSpec* request) const {
  const std::vector<ConditionSpec>& known = spec_.conditions;
  const auto given = by_name(options.conditions, options.condition_count, "cond", known);
  const auto negative = by_name(options.negative_conditions, options.negative_condition_count, "negative", known);
  if (known.empty()) return;
  if (options.negative_condition_count > 0 && request->guide != nullptr) {
    refuse(Code::kOption, "negative: expected it unset with guide, got conditions: the guide takes their place");
  }
  const auto& rows = request->table->rows;
  const bool needs_null = request->guide == nullptr && std::any_of(rows.begin(), rows.end(), [&](const StepRow& row) {
    return evaluated(row, request->scale, true).uncond;
  });
  const std::vector<ConditionInput> inputs = spec_.condition_inputs();
  request->conditions = ConditionRows(inputs.size());
  if (needs_null) request->null_conditions = ConditionRows(inputs.size());
  size_t k = 0;
  const auto set = [&](ConditionRows* to, const ConditionSpec& c, std::vector<float> values, const std::vector<float>& mask) {
    to->set(k, inputs[k].elements(), std::move(values));
    if (c.has_mask) to->set(k + 1, inputs[k + 1].elements(), mask);
  };
  for (size_t i = 0; i < known.size(); ++i) {
    const ConditionSpec& c = known[i];
    const auto read = [&](ConditionRows* to, const ddpm_rt_condition& from, const char* field) {
      const Reader reader(c, from, field, request->n);
      set(to, c, reader.values(), c.has_mask ? reader.mask() : std::vector<float>());
    };
    if (given[i].name == nullptr) {
      refuse(Code::kOption, "cond: expected " + names_of(known) + "; got no " + c.name);
    }
    read(&request->conditions, given[i], "cond");
    if (needs_null && negative[i].name != nullptr) {
      read(&request->null_conditions, negative[i], "negative");
    } else if (needs_null && c.null == ConditionSpec::Null::kSame) {
      read(&request->null_conditions, given[i], "cond");
    } else if (needs_null && c.null == ConditionSpec::Null::kZero) {
      set(&request->null_conditions, c, std::vector<float>(inputs[k].elements()),
          std::vector<float>(static_cast<size_t>(c.max_length), 1.0f));
    } else if (needs_null) {
      refuse(Code::kOption, "negative: expected " + c.name + " where scale is not 1, got none: this plan says nothing of what means no " +
                                c.name);
    } else if (negative[i].name != nullptr) {
      Reader(c, negative[i], "negative", request->n);  // unused here, but checked
    }
    k += 1 + size_t{c.has_mask};
  }
}

}  // namespace ddpm_rt
