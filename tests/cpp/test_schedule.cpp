// Against the papers' formulas in long double, and against values of ddpm_rt/reference/schedule.py.
#include "schedule.h"

#include <cmath>
#include <limits>

#include "expect_error.h"

using namespace ddpm_rt;

namespace {

using Real = long double;
const Real kPiL = 3.14159265358979323846264338327950288L;

Real beta_at(const std::string& name, int t, int T) {
  if (name == "linear") return 1e-4L + (0.02L - 1e-4L) * t / (T - 1);
  if (name == "scaled_linear") {
    const Real root = sqrtl(0.00085L) + (sqrtl(0.012L) - sqrtl(0.00085L)) * t / (T - 1);
    return root * root;
  }
  const auto ab = [&](Real u) {
    if (name == "cosine") return cosl((u + 0.008L) / 1.008L * kPiL / 2) * cosl((u + 0.008L) / 1.008L * kPiL / 2);
    const auto sigmoid = [](Real v) { return 1 / (1 + expl(-v)); };
    return (sigmoid(3) - sigmoid(u * 6 - 3)) / (sigmoid(3) - sigmoid(-3));
  };
  return std::min(1 - ab(Real(t + 1) / T) / ab(Real(t) / T), 0.999L);
}

void test_named() {
  for (const char* name : {"linear", "scaled_linear", "cosine", "sigmoid"}) {
    for (int T : {2, 3, 10, 999, 1000}) {
      const Schedule s = make_schedule(name, T);
      CHECK(s.T() == T);
      Real ab = 1;
      double worst = 0;
      for (int t = 0; t < T; ++t) {
        ab *= 1 - beta_at(name, t, T);
        worst = std::max(worst, static_cast<double>(fabsl(s.alpha_bar[t] / ab - 1)));
      }
      CHECK_NEAR(worst, 0, 1e-12);  // 1 - ratio loses digits where a continuous alpha_bar is flat
    }
  }
  struct Golden {
    const char* name;
    double at0, at1, at500, at998, at999;
  };
  const Golden golden[] = {
      {"linear", 0.9999, 0.9997800920720721, 0.07779665836502389, 4.118193638138444e-05, 4.0358297653756754e-05},
      {"scaled_linear", 0.99915, 0.9982960278384514, 0.2763326838229746, 0.004716698899875748, 0.004660098513077238},
      {"cosine", 0.999958715775178, 0.9999125759273678, 0.49228517244880304, 2.4287669070348544e-06,
       2.4287669070348567e-09},
      {"sigmoid", 0.9996997208002508, 0.9993978073666185, 0.49834281788206963, 0.00030027919974932816,
       3.0027919974932843e-07},
  };
  for (const Golden& g : golden) {
    const std::vector<double> ab = make_schedule(g.name, 1000).alpha_bar;
    const double found[] = {ab[0], ab[1], ab[500], ab[998], ab[999]};
    const double expected[] = {g.at0, g.at1, g.at500, g.at998, g.at999};
    // torch.linspace rounds differently on machines with other vector lengths: the betas agree to one ulp, no better.
    for (int k = 0; k < 5; ++k) CHECK_NEAR(found[k], expected[k], 4e-15 * expected[k]);
  }
  CHECK(make_schedule("linear", 1).alpha_bar[0] == 1 - 1e-4);
  for (int T : {0, -1, std::numeric_limits<int>::max()}) {
    CHECK_ERROR(Code::kOption, make_schedule("linear", T), "schedule");
  }
  CHECK_ERROR(Code::kOption, make_schedule("quadratic", 10), "\"quadratic\"");
}

void test_given() {
  const Schedule s = schedule_from_betas({0.5, 0.25, 0});
  CHECK(s.alpha_bar[0] == 0.5 && s.alpha_bar[1] == 0.375 && s.alpha_bar[2] == 0.375);
  CHECK(schedule_from_betas({0.5, 1}).alpha_bar[1] == 0);
  CHECK(schedule_from_alpha_bar({1, 0.5, 0}).T() == 3);
  const double nan = std::nan("");
  CHECK_ERROR(Code::kOption, schedule_from_betas({}), "got 0");
  for (double bad : {-0.1, 1.1, nan, HUGE_VAL}) {
    CHECK_ERROR(Code::kOption, schedule_from_betas({0.1, bad}), "betas[1]");
    CHECK_ERROR(Code::kOption, schedule_from_alpha_bar({0.9, bad}), "alpha_bar[1]");
  }
  CHECK_ERROR(Code::kOption, schedule_from_alpha_bar({0.5, 0.6}), "alpha_bar[1]");
  CHECK_ERROR(Code::kOption, schedule_from_alpha_bar({0.5, 0, 0}), "alpha_bar[1]");
  CHECK_ERROR(Code::kOption, schedule_from_betas({1, 0.5}), "alpha_bar[0]");
}

void test_zero_terminal() {
  const Schedule s = make_schedule("scaled_linear", 1000), z = zero_terminal_snr(s);
  CHECK(z.alpha_bar.back() == 0);
  CHECK_NEAR(z.alpha_bar.front(), s.alpha_bar.front(), 1e-15);
  const Real first = sqrtl(s.alpha_bar[0]), last = sqrtl(s.alpha_bar[999]);
  for (int t : {1, 100, 500, 900}) {  // Lin et al. algorithm 1
    const Real root = (sqrtl(s.alpha_bar[t]) - last) * first / (first - last);
    CHECK_NEAR(z.alpha_bar[t], static_cast<double>(root * root), 1e-14);
  }
  CHECK_ERROR(Code::kOption, zero_terminal_snr(make_schedule("linear", 1)), "zero terminal SNR");
}

void test_timesteps() {
  for (const char* grid : {"leading", "linspace", "trailing"}) {
    for (int T : {1, 2, 7, 50, 1000, 4000}) {
      const int stride = T > 1000 ? 7 : 1;
      for (int steps = 1; steps <= T; steps += stride) {
        const std::vector<int> t = timesteps(grid, T, steps);
        bool good = static_cast<int>(t.size()) == steps && t.front() < T && t.back() >= 0;
        for (size_t i = 1; i < t.size(); ++i) good = good && t[i] < t[i - 1];
        if (!good) std::printf("%s T %d steps %d\n", grid, T, steps);
        CHECK(good);
      }
    }
    CHECK(timesteps(grid, 1000, 1000).front() == 999 && timesteps(grid, 1000, 1000).back() == 0);
    for (int steps : {0, -1, 1001, std::numeric_limits<int>::min(), std::numeric_limits<int>::max()}) {
      CHECK_ERROR(Code::kOption, timesteps(grid, 1000, steps), "steps");
    }
  }
  // Lin et al. table 2, T = 1000, 10 steps.
  CHECK((timesteps("leading", 1000, 10) == std::vector<int>{900, 800, 700, 600, 500, 400, 300, 200, 100, 0}));
  CHECK((timesteps("linspace", 1000, 10) == std::vector<int>{999, 888, 777, 666, 555, 444, 333, 222, 111, 0}));
  CHECK((timesteps("trailing", 1000, 10) == std::vector<int>{999, 899, 799, 699, 599, 499, 399, 299, 199, 99}));
  CHECK((timesteps("leading", 10, 3) == std::vector<int>{6, 3, 0}));
  CHECK((timesteps("trailing", 10, 3) == std::vector<int>{9, 6, 2}));  // round 10, 6.67, 3.33, less 1
  CHECK((timesteps("linspace", 10, 3) == std::vector<int>{9, 4, 0}));  // 4.5 to the even 4
  CHECK((timesteps("trailing", 10, 4) == std::vector<int>{9, 7, 4, 1}));  // 10, 7.5 -> 8, 5, 2.5 -> 2, less 1
  CHECK_ERROR(Code::kOption, timesteps("karras", 10, 3), "\"karras\"");
}

void test_other_grids() {
  for (int steps = 1; steps < 1000; ++steps) {
    const std::vector<int> t = timesteps("uniform", 1000, steps);
    CHECK(static_cast<int>(t.size()) == steps && t.front() == 999 && t.back() > 0);
  }
  CHECK_ERROR(Code::kOption, timesteps("uniform", 1000, 1000), "one less");
  CHECK((timesteps("uniform", 1000, 4) == std::vector<int>{999, 749, 500, 250}));  // 749.25, 499.5 to the even 500, 249.75
  CHECK((section_timesteps(10, {2, 3}, false) == std::vector<int>{9, 7, 5, 4, 0}));
  CHECK((section_timesteps(1000, {1}, true) == std::vector<int>{0}));
  int moved = 0;
  for (int n = 1; n <= 1000; ++n) moved += section_timesteps(1000, {n}, true) != section_timesteps(1000, {n}, false);
  CHECK(moved == 283);
  CHECK_ERROR(Code::kOption, section_timesteps(10, {6, 2}, false), "section 0");
  CHECK_ERROR(Code::kOption, section_timesteps(10, {0, 2}, false), "section 0");
  CHECK((ddim_timesteps(10, 4) == std::vector<int>{9, 6, 3, 0}));
  CHECK_ERROR(Code::kOption, ddim_timesteps(1000, 300), "ddim300");
  CHECK((lcm_timesteps(1000, 50, 4) == std::vector<int>{999, 759, 499, 259}));
  CHECK_ERROR(Code::kOption, lcm_timesteps(1000, 50, 51), "steps");
  CHECK_ERROR(Code::kOption, lcm_timesteps(1000, 2000, 5), "original_steps");
}

// A level found by its sigma / alpha is the level of its time, for every noise model.
void test_levels() {
  for (const char* kind : {"vp", "sub_vp", "ve", "flow", "edm"}) {
    Schedule s;
    s.kind = kind;
    validate_schedule(s);
    double before = HUGE_VAL;
    for (int i = 0; i <= 20; ++i) {
      const double t = first_time(s) + (last_time(s) - first_time(s)) * i / 20;
      const Level level = level_at(s, t);
      if (level.alpha == 0) continue;
      CHECK(sigma_rel(level) < before);
      before = sigma_rel(level);
      const Level again = level_at_sigma(s, before);
      CHECK_NEAR(again.t, t, 1e-9 * std::max(1.0, t));
      CHECK_NEAR(again.alpha / level.alpha, 1, 1e-12);
      CHECK_NEAR(again.sigma / level.sigma, 1, 1e-12);
    }
    if (s.kind == "vp") CHECK_NEAR(level_at(s, 0.4).alpha * level_at(s, 0.4).alpha + level_at(s, 0.4).sigma * level_at(s, 0.4).sigma, 1, 1e-14);
    s.t_min = s.kind == "ve" || s.kind == "edm" ? s.t_min : 1.5;
    s.sigma_min = 100;
    CHECK_ERROR(Code::kOption, validate_schedule(s), "schedule.");
  }
  const Schedule linear = make_schedule("linear", 1000);
  for (double t : {0.0, 0.3, 10.5, 998.9, 999.0}) CHECK_NEAR(level_at_sigma(linear, sigma_rel(level_at(linear, t))).t, t, 1e-9);
  CHECK(level_at_sigma(linear, 1e6).t == 999 && level_at_sigma(linear, 1e-6).t == 0);
  CHECK_NEAR(sigma_rel(level_at_sigma(linear, 1e-6)), 1e-6, 1e-20);
}

}  // namespace

int main() {
  test_other_grids();
  test_levels();
  test_named();
  test_given();
  test_zero_terminal();
  test_timesteps();
  return finish();
}
