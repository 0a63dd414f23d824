// The planner against exhaustive search, and the cost model against the costs it was told.
#include "tick_plan.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <string>

#include "check.h"

using namespace ddpm_rt;

namespace {

CostTable affine(double a, double c, bool with_pairs) {
  CostTable table;
  for (int b : {1, 2, 4, 8, 16, 32}) table.push_back({{b, 1}, a + c * b});
  if (with_pairs) {
    for (int b : {1, 2, 4, 8, 16}) table.push_back({{b, 2}, a + 0.85 * c * 2 * b});
  }
  return table;
}

// The cheapest multiset of phases by trying all: independent of the planner's order of work.
double cheapest(int m, const CostTable& costs) {
  std::vector<double> memo(static_cast<size_t>(m) + 1, -1);
  const std::function<double(int)> from = [&](int left) {
    if (left <= 0) return 0.0;
    double& best = memo[static_cast<size_t>(left)];
    if (best >= 0) return best;
    best = std::numeric_limits<double>::infinity();
    for (const VariantCost& c : costs) best = std::min(best, c.seconds + from(left - c.variant.capacity()));
    return best;
  };
  return from(m);
}

void test_nine() {
  const std::vector<Phase> phases = plan_tick(9, affine(0.3, 1, false));
  CHECK(phases.size() == 2);
  CHECK(phases[0].variant.bucket == 8 && phases[0].first == 0 && phases[0].count == 8);
  CHECK(phases[1].variant.bucket == 1 && phases[1].first == 8 && phases[1].count == 1);
  // Where a call's fixed cost is large, one call over 16 wins.
  CHECK(plan_tick(9, affine(20, 1, false)).size() == 1);
  CHECK(plan_tick(9, affine(20, 1, false))[0].variant.bucket == 16);
}

void test_covers_at_least_cost() {
  for (bool with_pairs : {false, true}) {
    for (double a : {0.0, 0.3, 3.0}) {
      const CostTable costs = affine(a, 1, with_pairs);
      double before = 0;
      for (int m = 1; m <= 70; ++m) {
        const std::vector<Phase> phases = plan_tick(m, costs);
        int covered = 0;
        bool in_order = true, only_last_is_short = true;
        for (size_t i = 0; i < phases.size(); ++i) {
          in_order = in_order && phases[i].first == covered && phases[i].count >= 1;
          const bool full = phases[i].count == phases[i].variant.capacity();
          only_last_is_short = only_last_is_short && (full || i + 1 == phases.size());
          covered += phases[i].count;
        }
        CHECK(covered == m && in_order && only_last_is_short);
        CHECK_NEAR(plan_seconds(phases, costs), cheapest(m, costs), 1e-9);
        CHECK(plan_seconds(phases, costs) >= before - 1e-12);
        before = plan_seconds(phases, costs);
      }
    }
  }
  CHECK(plan_tick(0, affine(1, 1, false)).empty());
  CHECK(plan_tick(5, {}).empty());
  // A table without small buckets still covers a small tick.
  const std::vector<Phase> padded = plan_tick(3, {{{16, 1}, 1.0}});
  CHECK(padded.size() == 1 && padded[0].count == 3);
}

void test_estimates() {
  CostModel one;
  one.add_sample({8, 1}, 8.3e-3);  // one point: a = 0.3 c
  CHECK_NEAR(one.seconds({16, 1}), 16.3e-3, 1e-9);
  CHECK_NEAR(one.seconds({1, 1}), 1.3e-3, 1e-9);
  CHECK(!one.is_known({16, 1}) && one.is_known({8, 1}));

  CostModel two;
  two.add_sample({1, 1}, 3e-3);
  two.add_sample({16, 1}, 18e-3);  // a = 2 ms, c = 1 ms
  CHECK_NEAR(two.seconds({8, 1}), 10e-3, 1e-9);
  CHECK_NEAR(two.seconds({32, 1}), 34e-3, 1e-9);

  CostModel noisy;  // the least of the first five samples, later ones do not count
  for (double s : {5.0, 1.5, 2.0, 1.0, 1.2}) CHECK(noisy.add_sample({4, 1}, s));
  CHECK(!noisy.add_sample({4, 1}, 0.5));
  CHECK_NEAR(noisy.seconds({4, 1}), 1.0, 0);
}

void test_cost_file() {
  const std::string path = "test_tick_plan_costs.json";
  CostModel model;
  model.add_sample({8, 1}, 0.01);
  model.add_sample({2, 2}, 0.004);
  model.add_compile(0.5);
  model.save(path);
  CostModel back;
  back.load(path);
  CHECK(back.is_known({8, 1}) && back.is_known({2, 2}) && !back.is_known({1, 1}));
  CHECK_NEAR(back.seconds({8, 1}), 0.01, 1e-12);
  CHECK_NEAR(back.compile_seconds(), 0.5, 1e-12);
  // This process runs at half the recorded pace: so will what it has not measured yet.
  back.add_sample({8, 1}, 0.02);
  CHECK_NEAR(back.seconds({8, 1}), 0.02, 1e-12);
  CHECK_NEAR(back.seconds({2, 2}), 0.008, 1e-12);

  for (const char* text : {"", "{", "[]", "{\"variants\": 3}", "{\"variants\": [1, {\"bucket\": -4}, {\"bucket\": 1e300}]}",
                           "{\"variants\": [{\"bucket\": 4, \"streams\": 1, \"seconds\": \"x\"}]}"}) {
    std::ofstream(path, std::ios::binary) << text;
    CostModel odd;
    odd.load(path);
    CHECK(odd.measured_count() == 0);
  }
  std::remove(path.c_str());
  CostModel absent;
  absent.load(path);
  CHECK(absent.measured_count() == 0);
  model.save("no_such_folder/costs.json");  // a folder that is missing or read-only is not an error
}

}  // namespace

int main() {
  test_nine();
  test_covers_at_least_cost();
  test_estimates();
  test_cost_file();
  return finish();
}
