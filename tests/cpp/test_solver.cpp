// Rows executed in float64 against the papers' own sampling formulas, on networks that answer k x.
#include "solver.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "expect_error.h"

using namespace ddpm_rt;

namespace {

constexpr double kFactor = 0.37;
const double kNan = std::nan(""), kInf = HUGE_VAL;

double network(double x) { return kFactor * x; }
double noise(size_t i) { return 1.7 * std::sin(12.9898 * static_cast<double>(i + 1)); }
double clamp(double v) { return std::min(1.0, std::max(-1.0, v)); }

bool reads_history = false;

double run_rows(const std::vector<RowF64>& rows, bool clip, double x) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const RowF64& r = rows[i];
    const double e = network(x);
    double x0 = r.p * x + r.q * e;
    if (clip) x0 = clamp(x0);
    reads_history = reads_history || r.wx[kH1] != 0 || r.wx[kH2] != 0 || r.wx[kH3] != 0 || r.wx[kY] != 0;
    x = r.wx[kX] * x + r.wx[kE] * e + r.wx[kX0] * x0 + r.wx[kZ] * noise(i);
  }
  return x;
}

// DDPM algorithm 2 (unclipped: in eps; clipped: eq. 7) and DDIM eq. 12, timestep by timestep.
double run_direct(const Schedule& s, const std::string& type, const SolverOptions& o, double x) {
  const std::vector<int> grid = timesteps(o.grid.empty() ? "leading" : o.grid, s.T(), o.steps);
  for (size_t i = 0; i < grid.size(); ++i) {
    const bool last = i + 1 == grid.size();
    const double ab = s.alpha_bar[grid[i]], ab_p = last ? 1 : s.alpha_bar[grid[i + 1]];
    const double a = std::sqrt(ab), sd = std::sqrt(1 - ab), out = network(x);
    double x0 = type == "eps" ? (x - sd * out) / a : type == "x0" ? out : a * x - sd * out;
    double eps = type == "eps" ? out : type == "x0" ? (x - a * out) / sd : a * out + sd * x;
    if (o.clip != "none") x0 = clamp(x0);
    const double beta = 1 - ab / ab_p, alpha = 1 - beta;
    const double posterior = (1 - ab_p) / (1 - ab) * beta;
    const double z = last ? 0 : noise(i);
    if (o.sampler == "ddpm") {
      const double sigma = std::sqrt(o.variance == "fixed_large" ? beta : posterior);
      const double mean = o.clip == "none" && ab > 0
                              ? (x - beta / sd * eps) / std::sqrt(alpha)
                              : std::sqrt(ab_p) * beta / (1 - ab) * x0 + std::sqrt(alpha) * (1 - ab_p) / (1 - ab) * x;
      x = mean + sigma * z;
    } else {
      if (o.clip == "rederive") eps = (x - a * x0) / sd;
      const double sigma = o.eta * std::sqrt((1 - ab_p) / (1 - ab)) * std::sqrt(1 - ab / ab_p);
      x = std::sqrt(ab_p) * x0 + std::sqrt(std::max(0.0, 1 - ab_p - sigma * sigma)) * eps + sigma * z;
    }
  }
  return x;
}

SolverOptions make_options(const std::string& sampler, int steps, const std::string& clip, double eta = 0) {
  SolverOptions o;
  o.sampler = sampler;
  o.steps = steps;
  o.clip = clip;
  o.eta = eta;
  return o;
}

// Prints the largest error as a share of the tolerance.
double worst_share = 0;
void compare(const Schedule& s, const std::string& type, const SolverOptions& o) {
  Prediction prediction;
  prediction.type = type;
  for (double x : {0.8, -2.5}) {
    const double got = run_rows(compile_rows(s, prediction, o).rows, o.clip != "none", x), expected = run_direct(s, type, o, x);
    const double tolerance = 1e-10 * std::max(std::fabs(expected), 1e-3);
    worst_share = std::max(worst_share, std::fabs(got - expected) / tolerance);
    if (!(std::fabs(got - expected) <= tolerance)) {
      std::printf("%s %s clip %s steps %d eta %g grid %s\n", type.c_str(), o.sampler.c_str(), o.clip.c_str(), o.steps,
                  o.eta, o.grid.c_str());
    }
    CHECK_NEAR(got, expected, tolerance);
  }
}

void test_formulas() {
  const Schedule linear = make_schedule("linear", 1000), scaled = make_schedule("scaled_linear", 1000);
  const Schedule terminal = zero_terminal_snr(scaled);
  for (const Schedule* s : {&linear, &scaled, &terminal}) {
    for (const char* type : {"eps", "x0", "v"}) {
      for (const char* clip : {"none", "keep_eps", "rederive"}) {
        for (const char* grid : {"leading", "linspace", "trailing"}) {
          for (int steps : {10, 50, 1000}) {
            const bool starts_without_signal = s == &terminal && timesteps(grid, 1000, steps).front() == 999;
            if (starts_without_signal && std::string(type) == "eps") continue;
            for (const char* variance : {"fixed_small", "fixed_large"}) {
              SolverOptions o = make_options("ddpm", steps, clip);
              o.variance = variance;
              o.grid = grid;
              // Algorithm 2 in eps has no value at alpha_bar = 0: eq. 7 is taken there.
              compare(*s, type, o);
            }
            for (double eta : {0.0, 0.5, 1.0}) {
              SolverOptions o = make_options("ddim", steps, clip, eta);
              o.grid = grid;
              compare(*s, type, o);
            }
          }
        }
      }
    }
  }
  CHECK(!reads_history);
  std::printf("largest share of the tolerance 1e-10: %.3g\n", worst_share);
}

// eta = 1 without clipping is DDPM with the posterior variance; a point mass at mu is reached exactly.
void test_identities() {
  const Schedule s = make_schedule("linear", 1000);
  for (int steps : {10, 1000}) {
    const double ddim = run_rows(compile_rows(s, {}, make_options("ddim", steps, "none", 1)).rows, false, 0.7);
    const double ddpm = run_rows(compile_rows(s, {}, make_options("ddpm", steps, "none")).rows, false, 0.7);
    CHECK_NEAR(ddim / ddpm, 1, 1e-10);
  }
  const double mu = 0.3;
  for (const char* sampler : {"ddpm", "ddim"}) {
    double x = 1.1;
    const std::vector<RowF64> rows = compile_rows(s, {}, make_options(sampler, 20, "none")).rows;
    for (size_t i = 0; i < rows.size(); ++i) {
      const double ab = s.alpha_bar[static_cast<size_t>(rows[i].t)];
      const double e = (x - std::sqrt(ab) * mu) / std::sqrt(1 - ab);
      x = rows[i].wx[kX] * x + rows[i].wx[kE] * e + rows[i].wx[kX0] * (rows[i].p * x + rows[i].q * e) +
          rows[i].wx[kZ] * noise(i);
    }
    CHECK_NEAR(x, mu, 1e-12);
  }
}

// DDPM at T = 2 with betas 0.1, 0.2, worked by hand: ab = 0.9, 0.72.
void test_by_hand() {
  const Schedule s = schedule_from_betas({0.1, 0.2});
  const std::vector<RowF64> rows = compile_rows(s, {}, make_options("ddpm", 0, "none")).rows;
  CHECK(rows.size() == 2 && rows[0].t == 1 && rows[1].t == 0);
  CHECK_NEAR(rows[0].p, 1 / std::sqrt(0.72), 1e-14);
  CHECK_NEAR(rows[0].q, -std::sqrt(0.28 / 0.72), 1e-14);
  CHECK_NEAR(rows[0].wx[kX0], std::sqrt(0.9) * 0.2 / 0.28, 1e-14);
  CHECK_NEAR(rows[0].wx[kX], std::sqrt(0.8) * 0.1 / 0.28, 1e-14);
  CHECK_NEAR(rows[0].wx[kZ], std::sqrt(0.1 / 0.28 * 0.2), 1e-14);
  CHECK(rows[1].wx[kX0] == 1 && rows[1].wx[kX] == 0 && rows[1].wx[kE] == 0 && rows[1].wx[kZ] == 0);
  SolverOptions large = make_options("ddpm", 0, "none");
  large.variance = "fixed_large";
  CHECK_NEAR(compile_rows(s, {}, large).rows[0].wx[kZ], std::sqrt(0.2), 1e-14);
}

void test_table() {
  const Schedule s = make_schedule("linear", 1000);
  Prediction v;
  v.type = "v";
  v.time_scale = 0.25;
  for (const char* clip : {"none", "keep_eps"}) {
    SolverOptions o = make_options("ddim", 50, clip, 0.5);
    o.clip_lo = 0;
    o.clip_hi = 2;
    const Table table = compile_table(s, v, o);
    const std::vector<RowF64> exact = compile_rows(s, v, o).rows;
    CHECK(table.rows.size() == 50 && table.nfe == 50 && table.init_sigma == 1);
    CHECK(!table.uses_history && !table.uses_anchor);
    const bool clips = std::string(clip) != "none";
    for (size_t i = 0; i < table.rows.size(); ++i) {
      const StepRow& row = table.rows[i];
      StepRow expected{};
      expected.flags = (clips ? static_cast<uint32_t>(kClip) : 0u) | (i == 49 ? static_cast<uint32_t>(kLast) : 0u);
      expected.t = static_cast<float>(static_cast<int>(49 - i) * 20 * 0.25);
      expected.gs = expected.c_in = 1;
      expected.noise_index = static_cast<uint32_t>(i);
      expected.p = static_cast<float>(exact[i].p);
      expected.q = static_cast<float>(exact[i].q);
      if (clips) expected.clip_hi = 2;
      for (int k = 0; k < 8; ++k) expected.wx[k] = static_cast<float>(exact[i].wx[k]);
      CHECK(std::memcmp(&row, &expected, sizeof row) == 0);
    }
    validate_table(table.rows, kCpuFlags);
  }
  CHECK(compile_table(s, {}, make_options("ddpm", 0, "none")).rows.size() == 1000);
  CHECK(compile_table(make_schedule("linear", 1), {}, make_options("ddpm", 0, "none")).rows.size() == 1);
  CHECK(samplers().size() == 16 && samplers()[0].default_steps == 0 && samplers()[1].takes_eta());
}

void test_ends_of_schedules() {
  const Schedule terminal = zero_terminal_snr(make_schedule("linear", 100));
  Prediction p;
  SolverOptions o = make_options("ddim", 100, "rederive");
  CHECK_ERROR(Code::kOption, compile_table(terminal, p, o), "timestep 99");
  CHECK_ERROR(Code::kOption, compile_table(terminal, p, o), "zero terminal SNR");
  o.steps = 10;
  CHECK(compile_table(terminal, p, o).rows.size() == 10);  // the leading grid starts at 90
  for (const char* type : {"x0", "v"}) {
    for (const char* sampler : {"ddpm", "ddim"}) {
      for (const char* clip : {"none", "keep_eps", "rederive"}) {
        p.type = type;
        validate_table(compile_table(terminal, p, make_options(sampler, 100, clip)).rows, kCpuFlags);
      }
    }
  }
  const Schedule clean_end = schedule_from_alpha_bar({1, 1, 0.5});  // no noise at t = 0 and 1
  for (const char* type : {"eps", "x0", "v"}) {
    for (const char* sampler : {"ddpm", "ddim"}) {
      p.type = type;
      const Table table = compile_table(clean_end, p, make_options(sampler, 3, "keep_eps"));
      validate_table(table.rows, kCpuFlags);
      CHECK(table.rows[1].wx[kX0] == 1 && table.rows[1].wx[kZ] == 0);
    }
  }
  p.type = "eps";
  CHECK_ERROR(Code::kOption, compile_table(schedule_from_alpha_bar({0.5, 1e-200}), p, make_options("ddpm", 0, "none")),
              "float32");
}

void test_refusals() {
  const Schedule s = make_schedule("linear", 1000);
  const auto with = [&](auto change) {
    SolverOptions o;
    Prediction p;
    change(o, p);
    compile_table(s, p, o);
  };
  CHECK_ERROR(Code::kOption, with([](auto& o, auto&) { o.sampler = "plms"; }), "ddpm, ddim");
  CHECK_ERROR(Code::kOption, with([](auto& o, auto&) { o.clip = "both"; }), "\"both\"");
  CHECK_ERROR(Code::kOption, with([](auto& o, auto&) { o.grid = "log"; }), "grid");
  CHECK_ERROR(Code::kOption, with([](auto& o, auto&) { o.variance = "big"; }), "variance");
  CHECK_ERROR(Code::kOption, with([](auto& o, auto&) { o.variance = "fixed_large"; }), "only ddpm");
  for (int steps : {-1, 1001}) {
    CHECK_ERROR(Code::kOption, with([=](auto& o, auto&) { o.steps = steps; }), "steps");
  }
  CHECK_ERROR(Code::kOption, with([](auto& o, auto&) { o.sampler = "ddpm", o.steps = 1001; }), "1001");
  for (double eta : {-0.1, 1.1, kInf}) {
    CHECK_ERROR(Code::kOption, with([=](auto& o, auto&) { o.eta = eta; }), "eta");
  }
  CHECK_ERROR(Code::kOption, with([](auto& o, auto&) { o.sampler = "ddpm", o.eta = 0.5; }), "variance");
  CHECK_ERROR(Code::kOption, with([](auto& o, auto&) { o.clip_lo = kNan; }), "clip");
  CHECK_ERROR(Code::kOption, with([](auto& o, auto&) { o.clip_lo = 2; }), "clip");
  CHECK_ERROR(Code::kOption, with([](auto&, auto& p) { p.type = "delta"; }), "prediction");
  CHECK_ERROR(Code::kOption, with([](auto&, auto& p) { p.variance = "?"; }), "variance");
  for (double scale : {0.0, -1.0, kNan, kInf}) {
    CHECK_ERROR(Code::kOption, with([=](auto&, auto& p) { p.time_scale = scale; }), "time scale");
  }
}

void test_validate() {
  const std::vector<StepRow> good = compile_table(make_schedule("linear", 1000), {}, make_options("ddim", 3, "none")).rows;
  const auto with = [&](auto change, uint32_t executor = kCpuFlags) {
    std::vector<StepRow> rows = good;
    change(rows);
    validate_table(rows, executor);
  };
  with([](auto&) {});
  CHECK_ERROR(Code::kOption, with([](auto& r) { r.clear(); }), "got 0");
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[1].flags = 1u << 13; }), "rows[1].flags");
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[1].flags = kThreshold; }, kPush | kLast), "THRESHOLD");
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[1].flags = kLast; }), "LAST");
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[2].flags = 0; }), "LAST");
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[0].flags = kClip; }, kLast), "CLIP");
  for (size_t offset = 4; offset < offsetof(StepRow, spare); offset += 4) {
    if (offset == offsetof(StepRow, noise_index)) continue;
    for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      CHECK_ERROR(Code::kOption, with([=](auto& r) { std::memcpy(reinterpret_cast<char*>(&r[0]) + offset, &bad, 4); }),
                  "byte " + std::to_string(offset));
    }
  }
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[0].spare[21] = 1; }), "spare");
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[0].flags = kClip, r[0].clip_lo = 1, r[0].clip_hi = -1; }), "clip");
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[0].flags = kNoEval; }), "NO_EVAL");
  with([](auto& r) { r[0].flags = kPush, r[1].wx[kH1] = 1; });
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[0].flags = kPush, r[0].wx[kH1] = 1; }), "h1");
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[0].flags = kPush, r[1].wx[kH2] = 1; }), "h2");
  with([](auto& r) { r[0].flags = kKeep, r[1].wx[kY] = 1; });
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[0].wx[kY] = 1; }), "KEEP");
  CHECK_ERROR(Code::kOption, with([](auto& r) { r[0].flags = kKeep, r[0].wy[6] = 1; }), "KEEP");
}

}  // namespace

int main() {
  test_formulas();
  test_identities();
  test_by_hand();
  test_table();
  test_ends_of_schedules();
  test_refusals();
  test_validate();
  return finish();
}
