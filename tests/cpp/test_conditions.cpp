// Rows of conditions in the packed list: the right values at every place, copied again whenever another image or request takes it.
#include "conditions.h"

#include <memory>

#include "check.h"

using namespace ddpm_rt;

namespace {

constexpr size_t kCapacity = 4;

struct List {
  List() : a(kCapacity * 2, -1.0f), mask(kCapacity * 3, -1.0f) {
    evaluations.capacity = kCapacity;
    evaluations.conditions = {{a.data(), 2, false}, {mask.data(), 3, true}};
  }
  std::vector<float> a, mask;
  Evaluations evaluations;
};

// a is one row for all images, the mask one for each.
ConditionRows rows_of(float value) {
  ConditionRows rows(2);
  rows.set(0, 2, {value, value + 0.5f});
  rows.set(1, 3, {1, 0, 0, 1, 1, 0});
  return rows;
}

void test_every_place_holds_its_image() {
  List list;
  PlacedConditions placed(kCapacity);
  const ConditionRows first = rows_of(10), second = rows_of(20);
  placed.put(list.evaluations, 0, first, 0);
  placed.put(list.evaluations, 1, first, 1);
  placed.put(list.evaluations, 2, second, 1);
  CHECK((list.a == std::vector<float>{10, 10.5f, 10, 10.5f, 20, 20.5f, -1, -1}));
  CHECK((list.mask == std::vector<float>{1, 0, 0, 1, 1, 0, 1, 1, 0, -1, -1, -1}));
  placed.put(list.evaluations, 1, second, 0);
  CHECK(list.a[2] == 20 && list.mask[4] == 0);
}

void test_padding_counts_zeros() {
  List list;
  PlacedConditions placed(kCapacity);
  const ConditionRows rows = rows_of(10);
  placed.put(list.evaluations, 1, rows, 0);
  placed.zero(list.evaluations, 1, 3);
  CHECK((list.a == std::vector<float>{-1, -1, 0, 0, 0, 0, -1, -1}));
  CHECK((list.mask == std::vector<float>{-1, -1, -1, 1, 1, 1, 1, 1, 1, -1, -1, -1}));
  placed.put(list.evaluations, 1, rows, 0);
  CHECK(list.a[2] == 10 && list.mask[4] == 0);
}

void test_the_next_request_is_another_one_wherever_it_lies() {
  List list;
  PlacedConditions placed(kCapacity);
  auto rows = std::make_unique<ConditionRows>(rows_of(10));
  placed.put(list.evaluations, 0, *rows, 0);
  *rows = rows_of(30);
  placed.put(list.evaluations, 0, *rows, 0);
  CHECK(list.a[0] == 30);
  list.a[0] = 0;
  placed.put(list.evaluations, 0, *rows, 0);
  CHECK(list.a[0] == 0);  // known to be there, not copied again
  CHECK(!ConditionRows().is_given() && rows->is_given());
}

}  // namespace

int main() {
  test_every_place_holds_its_image();
  test_padding_counts_zeros();
  test_the_next_request_is_another_one_wherever_it_lies();
  return finish();
}
