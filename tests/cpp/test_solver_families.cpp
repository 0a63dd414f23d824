// Identities that the solvers must have whatever the network: which of them are the same map, exactness on data that is a
// point, shapes of tables, registers. Their formulas are held against the twins in tests/python/test_samplers_twin.py.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "expect_error.h"
#include "solver.h"

using namespace ddpm_rt;

namespace {

double noise(uint32_t i) { return 1.7 * std::sin(12.9898 * static_cast<double>(i + 1)); }

SolverOptions options_of(const std::string& sampler, int steps, const std::string& grid = "") {
  SolverOptions o;
  o.sampler = sampler;
  o.steps = steps;
  o.grid = grid;
  o.clip = "none";
  return o;
}

// The whole of kernels/step.h that the samplers use, for one element.
double execute(const std::vector<RowF64>& rows, double x, const std::function<double(double, double)>& network) {
  double h[3] = {NAN, NAN, NAN}, y = NAN;
  for (const RowF64& r : rows) {
    const double e = r.flags & kNoEval ? NAN : network(r.c_in * x, r.t);
    const auto term = [](double w, double v) { return w == 0 ? 0 : w * v; };
    const double x0 = term(r.p, x) + term(r.q, e), z = noise(r.noise_index);
    const double values[8] = {x, e, x0, h[0], h[1], h[2], y, z};
    double next = 0, kept = y, pushed = 0;
    for (int k = 0; k < 8; ++k) next += term(r.wx[k], values[k]);
    if (r.flags & kKeep) {
      kept = 0;
      for (int k = 0; k < 7; ++k) kept += term(r.wy[k], values[k]);
    }
    if (r.flags & kPush) {
      for (int k = 0; k < 3; ++k) pushed += term(r.wh[k], values[k]);
      h[2] = h[1], h[1] = h[0], h[0] = pushed;
    }
    x = next, y = kept;
  }
  return x;
}

const Schedule& linear() {
  static const Schedule s = make_schedule("linear", 1000);
  return s;
}

double bounded(double x, double t) { return std::tanh(1.3 * x + t / 1000) * (0.5 + t / 1000); }

double run(const SolverOptions& o, const Schedule& s = linear(), const Prediction& p = {}, double unit = 0.8) {
  const TableF64 table = compile_rows(s, p, o);
  return execute(table.rows, table.init_sigma * unit, bounded);
}

void test_the_same_map() {
  for (int steps : {1, 2, 10, 50}) {
    for (const char* grid : {"trailing", "karras", "exponential"}) {
      const double ddim = run(options_of("ddim", steps, grid));
      CHECK_NEAR(run(options_of("euler", steps, grid)), ddim, 1e-11);
      SolverOptions o = options_of("unipc", steps, grid);
      o.order = 1;
      SolverOptions lms = options_of("lms", steps, grid);
      lms.order = 1;
      CHECK_NEAR(run(lms), ddim, 1e-10);
      SolverOptions deis = options_of("deis", steps, grid);
      deis.order = 1;
      CHECK_NEAR(run(deis), ddim, 1e-11);
      SolverOptions low = options_of("dpmpp_2m", steps, grid);
      low.steps = 1;
      if (steps == 1) {
        for (const char* sampler : {"dpmpp_2m", "dpmpp_3m", "unipc", "dpmpp_2s", "pndm", "heun"}) {
          CHECK_NEAR(run(options_of(sampler, 1, grid)), ddim, 1e-10);
        }
      }
      SolverOptions noisy = options_of("ddim", steps, grid), sde = options_of("dpmpp_2m_sde", steps, grid);
      noisy.eta = 1;
      const double ancestral = run(noisy);
      CHECK_NEAR(run(options_of("euler_ancestral", steps, grid)), ancestral, 1e-10);
      CHECK_NEAR(run(options_of("ddpm", steps, grid)), ancestral, 1e-10);
      if (steps == 1) CHECK_NEAR(run(sde), ancestral, 1e-10);
      sde.eta = 0;
      CHECK_NEAR(run(sde), run(options_of("dpmpp_2m", steps, grid)), 1e-12);
    }
  }
}

// x0 = mu whatever x: every sampler that ends without noise ends at mu.
void test_a_point_is_reached() {
  const double mu = 0.3;
  for (const SamplerInfo& s : samplers()) {
    if (s.name == "pc") continue;
    for (int steps : {1, 2, 5, 20}) {
      SolverOptions o = options_of(s.name, steps);
      if (s.name == "langevin") o.inner_steps = 3;
      if (s.name == "lcm") o.timestep_scaling = 0;
      const TableF64 table = compile_rows(linear(), {}, o);
      const double got = execute(table.rows, table.init_sigma * 0.8, [&](double x, double t) {
        const Level level = level_at(linear(), t);
        return (x - level.alpha * mu) / level.sigma;
      });
      CHECK_NEAR(got, mu, 1e-10);
    }
  }
}

void test_tables() {
  for (const SamplerInfo& s : samplers()) {
    for (int steps : {3, 12}) {
      SolverOptions o = options_of(s.name, steps);
      const TableF64 exact = compile_rows(linear(), {}, o);
      const Table table = compile_table(linear(), {}, o);
      CHECK(table.steps == steps && table.rows.size() == exact.rows.size());
      CHECK(table.nfe == s.nfe_first + s.nfe_each * steps);
      validate_table(table.rows, kCpuFlags | kNorm);
      for (size_t i = 0; i < table.rows.size(); ++i) {
        double fields[kRowFields];
        row_fields(exact.rows[i], fields);
        float words[64];
        std::memcpy(words, &table.rows[i], sizeof words);
        bool equal = table.rows[i].noise_index == i;
        for (size_t w = 1; w < kRowFields; ++w) equal = equal && (w == 4 || words[w] == static_cast<float>(fields[w]));
        CHECK(equal && table.rows[i].gs == 1);
      }
      const bool pushes = s.name == "pndm" || s.name == "unipc" || s.name == "lms" || s.name == "deis" ||
                          (s.name.compare(0, 5, "dpmpp") == 0 && s.name != "dpmpp_2s");
      const bool keeps = s.name == "heun" || s.name == "unipc" || s.name == "dpmpp_2s" || s.name == "pndm";
      CHECK(table.uses_history == pushes && table.uses_anchor == keeps);
    }
  }
}

void test_resolve() {
  const SolverOptions o = resolve(linear(), {}, options_of("unipc", 0));
  CHECK(o.is_resolved && o.steps == 20 && o.order == 2 && o.solver_type == "bh1" && o.grid == "uniform" && o.final_sigma == "zero");
  CHECK(o.eta == 0 && o.variance == "fixed_small");
  const SolverOptions twice = resolve(linear(), {}, o);
  CHECK(twice.steps == 20 && twice.grid == "uniform");
  SolverOptions d = options_of("unipc", 10);
  d.compat = "diffusers";
  d.clip.clear();
  const SolverOptions r = resolve(linear(), {}, d);
  CHECK(r.solver_type == "bh2" && r.clip == "none" && r.spacing == "linspace");
  CHECK_ERROR(Code::kOption, find_sampler("plms"), "ddpm, ddim, pndm");
  for (const SamplerInfo& s : samplers()) {
    for (const auto& option : s.options) {
      CHECK(std::any_of(solver_options().begin(), solver_options().end(), [&](const auto& i) { return i.name == option.first; }));
    }
  }
}

void test_set_option() {
  SolverOptions o;
  const auto set = [&](const char* name, OptionValue::Kind kind, double number, const std::string& text = "",
                       std::vector<double> list = {}) { set_solver_option(name, OptionValue{kind, number, text, list}, &o); };
  set("order", OptionValue::kNumber, 3);
  set("euler_at_final", OptionValue::kBool, 1);
  set("rho", OptionValue::kNumber, 5.5);
  set("solver_type", OptionValue::kText, 0, "heun");
  set("sigmas", OptionValue::kList, 0, "", {3, 2});
  CHECK(o.order == 3 && o.euler_at_final == 1 && o.rho == 5.5 && o.solver_type == "heun" && o.sigmas.size() == 2);
  CHECK_ERROR(Code::kOption, set("orders", OptionValue::kNumber, 3), "unknown name");
  CHECK_ERROR(Code::kOption, set("order", OptionValue::kNumber, 2.5), "order");
  CHECK_ERROR(Code::kOption, set("order", OptionValue::kBool, 1), "order");
  CHECK_ERROR(Code::kOption, set("order", OptionValue::kNumber, 1e300), "order");
  CHECK_ERROR(Code::kOption, set("rho", OptionValue::kNumber, 0), "rho");
  CHECK_ERROR(Code::kOption, set("rho", OptionValue::kNumber, std::nan("")), "rho");
  CHECK_ERROR(Code::kOption, set("solver_type", OptionValue::kText, 0, "midpoint|heun"), "solver_type");
  CHECK_ERROR(Code::kOption, set("solver_type", OptionValue::kText, 0, ""), "solver_type");
  CHECK_ERROR(Code::kOption, set("sigmas", OptionValue::kList, 0), "sigmas");
  CHECK_ERROR(Code::kOption, set("sigmas", OptionValue::kNumber, 1), "sigmas");
}

void test_table_from_rows() {
  const std::vector<StepRow> rows = compile_table(linear(), {}, options_of("unipc", 5)).rows;
  const Table t = table_from_rows(rows, 2, kCpuFlags);
  CHECK(t.init_sigma == 2 && t.nfe == 5 && t.uses_history && t.uses_anchor);
  CHECK_ERROR(Code::kOption, table_from_rows({}, 1, kCpuFlags), "rows");
  CHECK_ERROR(Code::kOption, table_from_rows(rows, 0, kCpuFlags), "init_sigma");
}

}  // namespace

int main() {
  test_the_same_map();
  test_a_point_is_reached();
  test_tables();
  test_resolve();
  test_set_option();
  test_table_from_rows();
  return finish();
}
