// The manifest's conditions beside the label: named tensors that a request brings.
#include <algorithm>
#include <cctype>

#include "spec_parts.h"

namespace ddpm_rt {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 31;
constexpr size_t kMostConditions = 16, kLongestName = 63;

size_t product(const std::vector<int64_t>& dims) {
  size_t product = 1;
  for (int64_t dim : dims) product *= static_cast<size_t>(dim);
  return product;
}

void check_name(const Field& field, const std::string& name) {
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  const bool is_identifier = !name.empty() && name.size() <= kLongestName && std::all_of(name.begin(), name.end(), is_word) &&
                             std::isdigit(static_cast<unsigned char>(name[0])) == 0;
  if (!is_identifier) field.refuse("names of at most 63 letters, digits and underscores", "another");
  for (const char* taken : {"x", "t", "rows", "eps"}) {
    if (name == taken) field.refuse("names other than x, t, label, rows, eps", "\"" + name + "\"");
  }
}

ConditionSpec parse_condition(const Field& field, const std::string& name) {
  check_name(field, name);
  ConditionSpec to;
  to.name = name;
  const Field shape = field["shape"], length = field["max_length"], mask = field["mask"], null = field["null"];
  if (field["dtype"].is_present()) field["dtype"].one_of({"float32"});
  to.role = field["role"].is_present() ? field["role"].one_of({"text", "vector", "map"}) : "vector";
  int64_t elements = 1;
  const auto size = [&](const Field& at) {
    const int64_t dim = at.integer(1, kMaxElements);
    if (dim > kMaxElements / elements) field.refuse("at most 2^31 elements", "more");
    elements *= dim;
    return dim;
  };
  const size_t rank = shape.is_present() ? shape.array(0, 4) : 0;
  for (size_t i = 0; i < rank; ++i) to.shape.push_back(size(shape[i]));
  if (length.is_present()) to.max_length = size(length);
  to.has_mask = mask.is_present() && mask.boolean();
  if (to.has_mask && to.max_length == 0) mask.refuse("false without max_length");
  to.null = ConditionSpec::Null::kNone;
  if (null.is_present()) {
    to.null = null.one_of({"zero", "same"}) == "zero" ? ConditionSpec::Null::kZero : ConditionSpec::Null::kSame;
  }
  return to;
}

}  // namespace

size_t ConditionSpec::entry_elements() const { return product(shape); }

size_t ConditionInput::elements() const { return product(row); }

std::vector<ConditionInput> ModelSpec::condition_inputs() const {
  std::vector<ConditionInput> inputs;
  for (const ConditionSpec& c : conditions) {
    ConditionInput input{c.name, c.shape, false};
    if (c.max_length > 0) input.row.insert(input.row.begin(), c.max_length);
    inputs.push_back(std::move(input));
    if (c.has_mask) inputs.push_back({c.name + "_mask", {c.max_length}, true});
  }
  return inputs;
}

void parse_conditions(const Field& conditions, const Sections& sections, ModelSpec* spec) {
  if (!conditions.is_present()) return;
  for (const auto& item : conditions.object().items()) {  // sorted by name, as the self-test and every list of them
    const Field field = conditions[item.key()];
    if (item.key() == "label" || !field.is_present()) continue;
    if (!sections.exist) field.refuse("none beside label: a function of x, t and label runs this model", "\"" + item.key() + "\"");
    spec->conditions.push_back(parse_condition(field, item.key()));
    if (spec->conditions.size() > kMostConditions) conditions.refuse("at most 16 beside label", "more");
  }
  for (const ConditionSpec& c : spec->conditions) {
    const auto is_taken = [&](const ConditionSpec& other) { return c.has_mask && other.name == c.name + "_mask"; };
    if (std::any_of(spec->conditions.begin(), spec->conditions.end(), is_taken)) {
      conditions[c.name + "_mask"].refuse("another name than that of " + c.name + "'s mask", "\"" + c.name + "_mask\"");
    }
  }
}

}  // namespace ddpm_rt
