// Tables of edits: the end of a table, RePaint's way back, DDIM's inverse; every kind of schedule, float64.
#include <cmath>
#include <cstring>

#include "expect_error.h"
#include "solver.h"

using namespace ddpm_rt;

namespace {

Schedule schedule_of(const std::string& kind) {
  if (kind == "linear") return make_schedule(kind, 1000);
  Schedule s;
  s.kind = kind;
  return s;
}

Prediction prediction_of(const std::string& kind) {
  Prediction p;
  p.type = kind == "flow" ? "flow" : kind == "edm" ? "edm" : kind == "ve" ? "score" : "eps";
  return p;
}

SolverOptions options_of(const std::string& sampler, int steps) {
  SolverOptions o;
  o.sampler = sampler;
  o.steps = steps;
  o.clip = "none";
  return o;
}

constexpr const char* kKinds[] = {"linear", "vp", "sub_vp", "ve", "flow", "edm"};

// A step needs nothing but the state: the rows that strength leaves are the last ones of the whole table.
void test_strength() {
  for (const char* kind : kKinds) {
    for (const char* sampler : {"ddpm", "ddim", "euler_ancestral"}) {
      SolverOptions o = options_of(sampler, 10);
      const TableF64 whole = compile_rows(schedule_of(kind), prediction_of(kind), o);
      o.edit.strength = 0.35;
      const TableF64 part = compile_rows(schedule_of(kind), prediction_of(kind), o);
      CHECK(part.rows.size() == 3);
      for (size_t i = 0; i < part.rows.size(); ++i) {
        RowF64 expected = whole.rows[7 + i];
        expected.noise_index = static_cast<uint32_t>(i);
        double a[kRowFields], b[kRowFields];
        row_fields(part.rows[i], a);
        row_fields(expected, b);
        CHECK(std::memcmp(a, b, sizeof a) == 0);
      }
      o.edit.strength = 1;
      CHECK(compile_rows(schedule_of(kind), prediction_of(kind), o).rows.size() == whole.rows.size());
    }
  }
  SolverOptions o = options_of("dpmpp_2m", 10);  // a multistep method begins again
  o.edit.strength = 0.5;
  const Table table = compile_table(schedule_of("linear"), {}, o);
  CHECK(table.rows.size() == 5 && table.rows[0].wx[kH1] == 0 && table.rows[1].wx[kH1] != 0 && table.steps == 10);
  for (double bad : {-0.1, 1.1, 0.09, HUGE_VAL}) {
    o.edit.strength = bad;
    CHECK_ERROR(Code::kOption, compile_table(schedule_of("linear"), {}, o), "strength");
  }
}

// What BLEND makes of the known part and what a jump makes of the state both have the level's own alpha and sigma.
void test_repaint() {
  for (const char* kind : kKinds) {
    for (const char* sampler : {"ddpm", "ddim", "euler"}) {
      SolverOptions o = options_of(sampler, 9);
      o.edit.keeps_known = true;
      o.edit.jump_length = 2;
      o.edit.resamples = 3;
      const TableF64 table = compile_rows(schedule_of(kind), prediction_of(kind), o);
      size_t jumps = 0, evaluations = 0;
      double alpha = table.start_alpha, sigma = table.start_sigma;
      std::vector<double> alphas{alpha}, sigmas{sigma};  // before each row
      for (size_t i = 0; i < table.rows.size(); ++i) {
        const RowF64& row = table.rows[i];
        CHECK(row.noise_index == i);
        if (row.flags & kNoEval) {
          ++jumps;
          alpha *= row.wx[kX];
          sigma = std::hypot(sigma * row.wx[kX], row.wx[kZ]);
          CHECK_NEAR(alpha, alphas[i - 2], 1e-12);  // where it was two steps before
          CHECK_NEAR(sigma / sigmas[i - 2], 1, 1e-12);
        } else {
          ++evaluations;
          CHECK((row.flags & kBlend) != 0);
          alpha = row.ky;
          sigma = row.kz;
        }
        alphas.push_back(alpha);
        sigmas.push_back(sigma);
      }
      CHECK(jumps == 4 * 2 && evaluations == 9 + 2 * jumps);  // from levels 0, 2, 4, 6 counted from the end
      CHECK(table.rows.back().ky == 1 && table.rows.back().kz == 0 && (table.rows.back().flags & kLast));
    }
  }
  SolverOptions o = options_of("dpmpp_2m", 9);
  o.edit.keeps_known = true;
  CHECK_ERROR(Code::kOption, compile_rows(schedule_of("linear"), {}, o), "mask");
  o = options_of("ddpm", 9);
  o.edit.keeps_known = true;
  o.edit.jump_length = 0;
  CHECK_ERROR(Code::kOption, compile_rows(schedule_of("linear"), {}, o), "jump_length");
}

// Where the network's eps is the same at every state, each step of the inverse undoes DDIM's.
void test_inversion() {
  for (const char* kind : {"linear", "vp", "sub_vp", "ve"}) {
    for (int iterations : {1, 3}) {
      Prediction p;  // eps everywhere
      SolverOptions o = options_of("ddim", 12);
      const TableF64 forward = compile_rows(schedule_of(kind), p, o);
      o.edit.inversion = iterations;
      const TableF64 back = compile_rows(schedule_of(kind), p, o);
      CHECK(back.rows.size() == forward.rows.size() * static_cast<size_t>(iterations));
      const double eps = 0.7;
      double x = 0.3, y = 0;
      for (const RowF64& row : back.rows) {
        const double next = row.wx[kX] * x + row.wx[kE] * eps + row.wx[kX0] * (row.p * x + row.q * eps) + row.wx[kY] * y;
        if (row.flags & kKeep) y = row.wy[kX] * x;
        x = next;
      }
      for (const RowF64& row : forward.rows) x = row.wx[kX] * x + row.wx[kE] * eps + row.wx[kX0] * (row.p * x + row.q * eps);
      CHECK_NEAR(x, 0.3, 1e-9);
      validate_table(compile_table(schedule_of(kind), p, o).rows, kCpuFlags);
    }
  }
  SolverOptions o = options_of("ddim", 5);
  o.edit.inversion = 1;
  o.eta = 0.5;
  CHECK_ERROR(Code::kOption, compile_rows(schedule_of("linear"), {}, o), "eta 0");
}

}  // namespace

int main() {
  test_strength();
  test_repaint();
  test_inversion();
  return finish();
}
