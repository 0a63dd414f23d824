// PNDM (Liu et al. 2202.09778): linear multistep over eps with the transfer of eq. 11, which is DDIM's. The first steps are
// either one improved Euler step (S-PNDM, algorithm 2; PLMS) or three Runge-Kutta steps (F-PNDM, algorithm 1, eq. 12).
//
// | symbol | meaning                                                        |
// |--------|----------------------------------------------------------------|
// | y      | the state at the start of a warm-up step                       |
// | a, b   | the transfer x' = a x + b eps                                  |
#include <cmath>

#include "solver_parts.h"

namespace ddpm_rt {
namespace {

constexpr size_t kRungeKuttaSteps = 3;

struct Transfer {
  double a, b;
};
Transfer transfer(const Level& from, const Level& to) {
  if (from.alpha == 0) {
    refuse("grid: expected levels with a signal, as pndm steps in eps, got alpha_bar 0 (zero terminal SNR) at t " +
           number(from.t) + ": use ddim, or a grid that does not visit it");
  }
  return {to.alpha / from.alpha, to.sigma - to.alpha * from.sigma / from.alpha};
}

// diffusers keeps raw outputs and converts their sum with the state that is stepped, at the level that it is stepped from: for
// v that is not the sum of the eps.
class Writer {
 public:
  explicit Writer(const Course& course)
      : course_(course), is_raw_(course.o.compat == "diffusers" && course.prediction.type == "v") {}

  Transfer between(const Level& from, const Level& to) const {
    const Transfer t = transfer(from, to);
    return is_raw_ ? Transfer{t.a + t.b * from.sigma, t.b * from.alpha} : t;
  }
  void add_model(const Level& at, double weight, double* w) const {
    if (is_raw_) w[kE] += weight;
    else add_eps(course_, at, weight, w);
  }
  void push(const Level& at, RowF64* row) const {
    row->flags |= kPush;
    add_model(at, 1, row->wh);
  }

 private:
  const Course& course_;
  const bool is_raw_;
};

// Adams-Bashforth weights of this row and of h1, h2, h3 (eq. 10 with fewer terms at the start).
const double kAdams[4][4] = {{1}, {3. / 2, -1. / 2}, {23. / 12, -16. / 12, 5. / 12}, {55. / 24, -59. / 24, 37. / 24, -9. / 24}};

void add_multistep(const Course& course, const Writer& writer, size_t i, size_t known, Rows* rows) {
  const Level& from = course.levels[i];
  const Transfer t = writer.between(from, course.next(i));
  const double* adams = kAdams[known < 3 ? known : 3];
  RowF64 row = row_at(course, from);
  row.wx[kX] = t.a;
  writer.add_model(from, t.b * adams[0], row.wx);
  for (size_t k = 1; k < 4; ++k) row.wx[kH1 + k - 1] = t.b * adams[k];
  if (i + 1 < course.steps()) writer.push(from, &row);
  rows->push_back(row);
}

// Improved Euler from level 0 to 1: the second row evaluates where the first led and steps again from the start.
void add_improved_euler(const Course& course, const Writer& writer, Rows* rows) {
  const Level &from = course.levels[0], &next = course.levels[1];
  const Transfer t = writer.between(from, course.next(0));
  RowF64 first = row_at(course, from), second = row_at(course, next);
  first.flags |= kKeep;
  first.wy[kX] = 1;
  first.wx[kX] = t.a;
  writer.add_model(from, t.b, first.wx);
  writer.push(from, &first);
  Transfer again = t;
  if (!course.to.empty()) {  // diffusers steps from t1 + T / steps to t1
    again = writer.between(level_at(course.schedule, next.t + from.t - course.to[0].t), next);
  }
  second.wx[kY] = again.a;
  second.wx[kH1] = again.b / 2;
  writer.add_model(next, again.b / 2, second.wx);
  rows->push_back(first);
  rows->push_back(second);
}

// One Runge-Kutta step, four rows. The third must add up eps_1, eps_2 and eps_3 and has room for eps_1 only (h1): eps_2 is
// taken back out of the state that it made, x = a y + b eps_2.
void add_runge_kutta(const Course& course, const Writer& writer, size_t i, Rows* rows) {
  const Level &from = course.levels[i], &to = course.levels[i + 1];
  const bool is_discrete = course.schedule.is_discrete();
  double half = (from.t - to.t) / 2;
  Level middle = level_at(course.schedule, from.t - half), first_to = middle, second_to = middle;
  if (is_discrete) {
    half = std::floor((course.to.empty() ? from.t - to.t : from.t - course.to[i].t) / 2);
    middle = first_to = second_to = level_at(course.schedule, from.t - half);
    if (!course.to.empty()) middle = second_to = level_at(course.schedule, to.t + half);  // diffusers: halves rounded apart
  }
  const Level third_to = course.to.empty() ? to : level_at(course.schedule, middle.t - half);
  const Transfer to_first = writer.between(from, first_to), to_second = writer.between(from, second_to),
                 to_third = writer.between(from, third_to), whole = writer.between(from, to);
  RowF64 row = row_at(course, from);
  row.flags |= kKeep;
  row.wy[kX] = 1;
  row.wx[kX] = to_first.a;
  writer.add_model(from, to_first.b, row.wx);
  writer.push(from, &row);
  rows->push_back(row);

  row = row_at(course, middle);
  row.wx[kY] = to_second.a;
  writer.add_model(middle, to_second.b, row.wx);
  rows->push_back(row);

  row = row_at(course, middle);
  row.wx[kY] = to_third.a;
  writer.add_model(middle, to_third.b, row.wx);
  row.flags |= kKeep;
  row.wy[kH1] = whole.b / 6;
  row.wy[kX] = whole.b / (3 * to_second.b);
  row.wy[6] = whole.a - row.wy[kX] * to_second.a;
  writer.add_model(middle, whole.b / 3, row.wy);
  rows->push_back(row);

  row = row_at(course, to);
  row.wx[kY] = 1;
  writer.add_model(to, whole.b / 6, row.wx);
  rows->push_back(row);
}

}  // namespace

Rows compile_pndm(const Course& course) {
  const Writer writer(course);
  Rows rows;
  if (course.o.skip_prk_steps == 1) {
    if (course.steps() == 1) {
      add_multistep(course, writer, 0, 0, &rows);
      return rows;
    }
    add_improved_euler(course, writer, &rows);
    for (size_t i = 1; i < course.steps(); ++i) add_multistep(course, writer, i, i, &rows);
    return rows;
  }
  for (size_t i = 0; i < kRungeKuttaSteps; ++i) add_runge_kutta(course, writer, i, &rows);
  for (size_t i = kRungeKuttaSteps; i < course.steps(); ++i) add_multistep(course, writer, i, i, &rows);
  return rows;
}

}  // namespace ddpm_rt
