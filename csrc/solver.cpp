// | symbol          | meaning                                                                       |
// |-----------------|-------------------------------------------------------------------------------|
// | ab, ab_p        | alpha_bar of this row's timestep and of the next visited one (1 at the end)   |
// | a, s; a_p       | sqrt(ab), sqrt(1 - ab); sqrt(ab_p)                                            |
// | beta            | 1 - ab / ab_p, the respaced beta (Nichol & Dhariwal eq. 19)                   |
// | e, eps          | the network's output; the noise estimate it stands for                        |
// Sources: Ho et al. 2006.11239 (DDPM), Song et al. 2010.02502 (DDIM), Salimans & Ho 2202.00512 (v).
#include "solver.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "error.h"

namespace ddpm_rt {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(Code::kOption, message); }

std::string number(double v) {
  char text[40];
  snprintf(text, sizeof text, "%.9g", v);
  return text;
}

void expect_one_of(const char* field, const std::string& value, std::initializer_list<const char*> allowed) {
  std::string list;
  for (const char* a : allowed) {
    if (value == a) return;
    list += list.empty() ? a : std::string(", ") + a;
  }
  refuse(std::string(field) + ": expected one of " + list + ", got \"" + value + "\"");
}

const SamplerInfo& find_sampler(const std::string& name) {
  std::string list;
  for (const SamplerInfo& info : samplers()) {
    if (info.name == name) return info;
    list += list.empty() ? info.name : ", " + info.name;
  }
  refuse("sampler: expected one of " + list + ", got \"" + name + "\"");
}

void validate(const Prediction& prediction, const SolverOptions& o, const SamplerInfo& sampler) {
  expect_one_of("prediction", prediction.type, {"eps", "x0", "v"});
  expect_one_of("variance of the network", prediction.variance, {"fixed", "learned", "learned_range"});
  if (prediction.variance != "fixed") {
    refuse("variance of the network: expected fixed, got \"" + prediction.variance +
           "\": learned variances have no executor in this version");
  }
  if (!(prediction.time_scale > 0) || !std::isfinite(prediction.time_scale)) {
    refuse("time scale: expected a finite number above 0, got " + number(prediction.time_scale));
  }
  expect_one_of("clip", o.clip, {"none", "keep_eps", "rederive"});
  if (o.clip != "none" && !(std::isfinite(o.clip_lo) && std::isfinite(o.clip_hi) && o.clip_lo < o.clip_hi)) {
    refuse("clip range: expected finite low < high, got [" + number(o.clip_lo) + ", " + number(o.clip_hi) + "]");
  }
  if (!(o.eta >= 0 && o.eta <= 1)) refuse("eta: expected a number in [0, 1], got " + number(o.eta));
  if (o.eta != 0 && !sampler.takes_eta) {
    refuse("eta: expected 0 with sampler " + sampler.name + ", got " + number(o.eta) +
           ": its noise is set by variance; eta belongs to ddim (eq. 16)");
  }
  expect_one_of("variance", o.variance, {"fixed_small", "fixed_large"});
  if (o.variance != "fixed_small" && sampler.name != "ddpm") {
    refuse("variance: expected it unset (fixed_small) with sampler " + sampler.name + ", got \"" + o.variance +
           "\": only ddpm chooses between variances; ddim's noise is set by eta");
  }
}

// x' += weight * eps, with eps written in what the row has.
//   clip rederive, or an x0 network without clipping:  eps = (x - a x0) / s    (the clipped x0)
//   otherwise, from the network's output:  eps: e;   x0: (x - a e) / s;   v: a e + s x
void add_eps(RowF64* row, double weight, double a, double s, const std::string& type, const std::string& clip) {
  if (weight == 0) return;  // also where s = 0: then ab_p = 1 and eps has no weight
  if (clip == "rederive" || (clip == "none" && type == "x0")) {
    row->wx[kX] += weight / s;
    row->wx[kX0] -= weight * a / s;
  } else if (type == "eps") {
    row->wx[kE] += weight;
  } else if (type == "x0") {
    row->wx[kX] += weight / s;
    row->wx[kE] -= weight * a / s;
  } else {
    row->wx[kX] += weight * s;
    row->wx[kE] += weight * a;
  }
}

// DDPM eq. 6, 7: the posterior mean reads x0 and x, never eps, so keep_eps and rederive are the same row.
void ddpm_row(RowF64* row, double ab, double ab_p, const std::string& variance) {
  const double beta = 1 - ab / ab_p;
  row->wx[kX0] = std::sqrt(ab_p) * beta / (1 - ab);
  row->wx[kX] = std::sqrt(ab / ab_p) * (1 - ab_p) / (1 - ab);
  row->wx[kZ] = variance == "fixed_large" ? std::sqrt(beta) : std::sqrt((1 - ab_p) / (1 - ab) * beta);
}

// DDIM eq. 12 with the sigma of eq. 16.
void ddim_row(RowF64* row, double ab, double ab_p, const std::string& type, const SolverOptions& o) {
  const double sigma = o.eta * std::sqrt((1 - ab_p) / (1 - ab)) * std::sqrt(1 - ab / ab_p);
  row->wx[kX0] = std::sqrt(ab_p);
  add_eps(row, std::sqrt(std::max(0.0, 1 - ab_p - sigma * sigma)), std::sqrt(ab), std::sqrt(1 - ab), type, o.clip);
  row->wx[kZ] = sigma;
}

// x0 = p x + q e for each prediction (DDPM eq. 4 solved for x0; Salimans & Ho for v).
void set_x0(RowF64* row, double ab, const std::string& type) {
  const double a = std::sqrt(ab), s = std::sqrt(1 - ab);
  if (type == "eps") {
    if (ab == 0) {
      refuse("prediction: expected x0 or v at timestep " + std::to_string(row->index) +
             ", where alpha_bar is 0 (zero terminal SNR), got eps: x_t holds no signal there, x0 = (x - eps) / 0. "
             "Use such a network, another schedule, or a grid that does not visit this timestep");
    }
    row->p = 1 / a;
    row->q = -s / a;
  } else if (type == "x0") {
    row->q = 1;
  } else {
    row->p = a;
    row->q = -s;
  }
}

float rounded(double v, int index) {
  if (!(std::fabs(v) <= std::numeric_limits<float>::max())) {
    refuse("schedule: expected alpha_bar whose weights fit float32, got " + number(v) + " at timestep " +
           std::to_string(index));
  }
  return static_cast<float>(v) + 0.0f;  // -0 becomes +0
}

}  // namespace

const std::vector<SamplerInfo>& samplers() {
  static const std::vector<SamplerInfo> kSamplers = {
      {"ddpm", "Ho et al. 2020, arXiv 2006.11239, algorithm 2", 1, 0, false},
      {"ddim", "Song et al. 2021, arXiv 2010.02502, eq. 12 and 16", 1, 50, true},
  };
  return kSamplers;
}

std::vector<RowF64> compile_rows(const Schedule& schedule, const Prediction& prediction, const SolverOptions& options) {
  const SamplerInfo& sampler = find_sampler(options.sampler);
  validate(prediction, options, sampler);
  const int T = schedule.T();
  const int steps = options.steps == 0 && sampler.default_steps == 0 ? T : options.steps;
  const std::vector<int> visited = timesteps(options.grid, T, steps);
  std::vector<RowF64> rows(visited.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    RowF64& row = rows[i] = RowF64{};
    row.index = visited[i];
    const double ab = schedule.alpha_bar[visited[i]];
    const double ab_p = i + 1 < rows.size() ? schedule.alpha_bar[visited[i + 1]] : 1;
    set_x0(&row, ab, prediction.type);
    if (ab_p == 1) {
      row.wx[kX0] = 1;  // the end of both samplers, and exact: x' = x0, no noise
    } else if (sampler.name == "ddpm") {
      ddpm_row(&row, ab, ab_p, options.variance);
    } else {
      ddim_row(&row, ab, ab_p, prediction.type, options);
    }
  }
  return rows;
}

Table compile_table(const Schedule& schedule, const Prediction& prediction, const SolverOptions& options) {
  const std::vector<RowF64> exact = compile_rows(schedule, prediction, options);
  Table table;
  table.rows.resize(exact.size());
  for (size_t i = 0; i < exact.size(); ++i) {
    const RowF64& from = exact[i];
    StepRow& row = table.rows[i] = StepRow{};
    if (i + 1 == exact.size()) row.flags |= kLast;
    row.t = rounded(from.index * prediction.time_scale, from.index);
    row.gs = 1;
    row.c_in = 1;
    row.noise_index = static_cast<uint32_t>(i);
    row.p = rounded(from.p, from.index);
    row.q = rounded(from.q, from.index);
    for (int k = 0; k < 8; ++k) row.wx[k] = rounded(from.wx[k], from.index);
    if (options.clip != "none") {
      row.flags |= kClip;
      row.clip_lo = rounded(options.clip_lo, from.index);
      row.clip_hi = rounded(options.clip_hi, from.index);
    }
  }
  table.nfe = static_cast<int>(table.rows.size());
  return table;
}

void validate_table(const std::vector<StepRow>& rows, uint32_t executor_flags) {
  static const char* const kNames[] = {"PUSH",  "KEEP",  "CLIP", "THRESHOLD", "RESCALE", "LEARNED_VAR", "LEARNED_RANGE",
                                       "GRAD", "BLEND", "NORM", "VLB",       "NO_EVAL", "LAST"};
  if (rows.empty()) refuse("rows: expected at least 1, got 0");
  int pushes = 0;
  bool kept = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    const StepRow& row = rows[i];
    const std::string field = "rows[" + std::to_string(i) + "].";
    if (row.flags & ~kKnownFlags) {
      refuse(field + "flags: expected bits below " + std::to_string(kKnownFlags + 1) + ", got " +
             std::to_string(row.flags));
    }
    for (int bit = 0; bit < 13; ++bit) {
      if (row.flags & ~executor_flags & (1u << bit)) {
        refuse(field + "flags: expected flags that have an executor here, got " + kNames[bit]);
      }
    }
    const bool is_last = i + 1 == rows.size();
    if (((row.flags & kLast) != 0) != is_last) {
      refuse(field + "flags: expected LAST on the last of " + std::to_string(rows.size()) + " rows and only there, got " +
             (is_last ? "none" : "LAST"));
    }
    float words[sizeof(StepRow) / 4];
    std::memcpy(words, &row, sizeof row);
    for (size_t w = 1; w < offsetof(StepRow, spare) / 4; ++w) {
      if (w != offsetof(StepRow, noise_index) / 4 && !std::isfinite(words[w])) {
        refuse(field + "byte " + std::to_string(4 * w) + ": expected a finite float32, got " + number(words[w]));
      }
    }
    for (uint32_t word : row.spare) {
      if (word != 0) refuse(field + "spare: expected zero, got " + std::to_string(word));
    }
    if ((row.flags & kClip) && !(row.clip_lo <= row.clip_hi)) {
      refuse(field + "clip: expected low <= high, got [" + number(row.clip_lo) + ", " + number(row.clip_hi) + "]");
    }
    if ((row.flags & kNoEval) && (row.q != 0 || row.wx[kE] != 0 || row.wy[kE] != 0 || row.wh[kE] != 0)) {
      refuse(field + "q and the weights of e: expected 0 with NO_EVAL, got another value");
    }
    for (int k = 0; k < 3; ++k) {
      const bool reads = row.wx[kH1 + k] != 0 || ((row.flags & kKeep) && row.wy[kH1 + k] != 0);
      if (reads && pushes <= k) {
        refuse(field + "h" + std::to_string(k + 1) + ": expected " + std::to_string(k + 1) + " earlier PUSH rows, got " +
               std::to_string(pushes));
      }
    }
    if (!kept && (row.wx[kY] != 0 || ((row.flags & kKeep) && row.wy[6] != 0))) {
      refuse(field + "y: expected an earlier KEEP row, got none");
    }
    pushes += (row.flags & kPush) != 0;
    kept = kept || (row.flags & kKeep);
  }
}

}  // namespace ddpm_rt
