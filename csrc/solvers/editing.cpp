// Tables of edits: from the middle of the way, with a known picture, and backwards.
//
// Image to image (SDEdit, Meng et al. 2108.01073) is the end of a table: n - floor(n strength) of its n steps are left out, as
// diffusers' img2img pipelines count, and the state begins as alpha image + sigma noise.
//
// Inpainting (RePaint, Lugmayr et al. 2201.09865 algorithm 1): after each step to a level ' the known part becomes
// alpha' image + sigma' noise (BLEND); and from every jump_length-th level the state goes back jump_length levels by noise,
// resamples - 1 times, where the published code does (its get_schedule_jump). One row without evaluation is a whole jump:
// the noise of several steps is one Gaussian.
//
// Inversion (DDIM, Song et al. 2010.02502 eq. 13 and 14, as in Dhariwal & Nichol 2105.05233 appendix F): the steps of eta 0,
// backwards. A step from level b to a is x_a / alpha_a = x_b / alpha_b - c eps(x_b), c = sigma_b / alpha_b - sigma_a / alpha_a;
// the state at b, unknown, is what eps is of. The first evaluation takes x_a for it, as diffusers' DDIMInverseScheduler does;
// each further one what the last came to (fixed-point iteration, Pan et al. 2309.04907), from x_a kept as the anchor.
#include <cmath>

#include "solver_parts.h"

namespace ddpm_rt {
namespace {

// q(x_to | x_from) where `to` is the noisier one.
RowF64 noise_row(const Level& from, const Level& to) {
  const double share = to.alpha / from.alpha;
  RowF64 row;
  row.flags = kNoEval;
  row.p = 1 / from.alpha;  // a preview's x0
  row.wx[kX] = share;
  row.wx[kZ] = std::sqrt(std::fmax(0, to.sigma * to.sigma - share * share * from.sigma * from.sigma));
  return row;
}

}  // namespace

void check_editing(const SolverOptions& o) {
  constexpr int kMost = 1000;
  const EditOptions& e = o.edit;
  const auto in_range = [](const char* field, int value) {
    if (value < 1 || value > kMost) refuse(std::string(field) + ": expected 1 to " + std::to_string(kMost) + ", got " + std::to_string(value));
  };
  if (e.keeps_known) {
    in_range("jump_length", e.jump_length);
    in_range("resamples", e.resamples);
    if (!is_one_of(o.sampler, {"ddpm", "ddim", "euler", "euler_ancestral"})) {
      refuse("mask: expected sampler ddpm, ddim, euler or euler_ancestral, got " + o.sampler +
             ": its steps are built on earlier predictions, which the known picture makes stale");
    }
    if (o.s_churn > 0) refuse("mask: expected s_churn 0, got " + number(o.s_churn) + ": resamples puts noise back");
  }
  if (e.inversion == 0) return;
  in_range("iterations", e.inversion);
  if (o.sampler != "ddim" || o.eta != 0) {
    refuse("sampler: expected ddim with eta 0 to invert, got " + o.sampler + " with eta " + number(o.eta));
  }
}

void skip_steps(Course* course) {
  const double strength = course->o.edit.strength;
  if (std::isnan(strength)) return;
  const size_t n = course->steps();
  if (!(strength >= 0 && strength <= 1)) refuse("strength: expected a number in [0, 1], got " + number(strength));
  const auto taken = static_cast<size_t>(static_cast<double>(n) * strength);
  if (taken == 0) {
    refuse("strength: expected at least one of " + std::to_string(n) + " steps, " + number(1 / static_cast<double>(n)) + " or more, got " +
           number(strength));
  }
  const auto skipped = static_cast<std::ptrdiff_t>(n - taken);
  course->levels.erase(course->levels.begin(), course->levels.begin() + skipped);
  if (!course->to.empty()) course->to.erase(course->to.begin(), course->to.begin() + skipped);
}

Rows with_known(const Course& course, const Rows& steps) {
  const size_t n = course.steps(), jump = static_cast<size_t>(course.o.edit.jump_length);
  std::vector<int> left(n, 0);  // jumps that remain, by the level they start from
  for (size_t i = jump; i < n; ++i) {
    if ((n - 1 - i) % jump == 0) left[i] = course.o.edit.resamples - 1;
  }
  Rows rows;
  for (size_t at = 0; at < n;) {
    RowF64 row = steps[at];
    const Level& reached = course.next(at);
    const bool is_end = at + 1 == n;
    row.flags |= kBlend;
    row.ky = is_end ? 1 : reached.alpha;  // the finished picture holds the known one as it is
    row.kz = is_end ? 0 : reached.sigma;
    rows.push_back(row);
    ++at;
    if (at == n || left[at] == 0) continue;
    --left[at];
    at -= jump;
    rows.push_back(noise_row(reached, course.levels[at]));
  }
  return rows;
}

Rows compile_inversion(const Course& course) {
  Rows rows;
  for (size_t i = course.steps(); i-- > 0;) {
    const Level &b = course.levels[i], &a = course.next(i);
    const double share = b.alpha / a.alpha, on_eps = b.sigma - share * a.sigma;
    for (int k = 0; k < course.o.edit.inversion; ++k) {
      RowF64 row = row_at(course, b);
      row.wx[k == 0 ? kX : kY] += share;
      add_eps(course, b, on_eps, row.wx);
      if (k == 0 && course.o.edit.inversion > 1) {
        row.flags |= kKeep;
        row.wy[kX] = 1;
      }
      rows.push_back(row);
    }
  }
  return rows;
}

}  // namespace ddpm_rt
