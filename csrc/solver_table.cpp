// Rows as the executors take them: rounded once, or from outside and checked.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "error.h"
#include "solver_parts.h"

namespace ddpm_rt {
namespace {

constexpr size_t kFlagsAt = 0, kNoiseIndexAt = offsetof(StepRow, noise_index) / 4;
static_assert(offsetof(StepRow, spare) / 4 == kRowFields, "row_fields lists every word of StepRow before the spare ones");

float rounded(double v, double t) {
  if (!(std::fabs(v) <= std::numeric_limits<float>::max())) {
    refuse("schedule: expected levels whose weights fit float32, got " + number(v) + " at network time " + number(t));
  }
  return static_cast<float>(v) + 0.0f;  // -0 becomes +0
}

StepRow rounded_row(const RowF64& from) {
  double fields[kRowFields];
  float words[kRowFields];
  row_fields(from, fields);
  for (size_t w = 0; w < kRowFields; ++w) words[w] = rounded(fields[w], from.t);
  StepRow row{};
  std::memcpy(&row, words, sizeof words);
  row.flags = from.flags;
  row.noise_index = from.noise_index;
  return row;
}

void set_registers(Table* table) {
  table->nfe = 0;
  for (const StepRow& row : table->rows) {
    table->nfe += (row.flags & kNoEval) == 0;
    table->uses_history = table->uses_history || (row.flags & kPush);
    table->uses_anchor = table->uses_anchor || (row.flags & kKeep);
  }
}

}  // namespace

void row_fields(const RowF64& r, double out[kRowFields]) {
  const double head[] = {static_cast<double>(r.flags), r.t, r.t2, r.gs, static_cast<double>(r.noise_index), r.c_in, r.p, r.q,
                         r.clip_lo, r.clip_hi, r.threshold_p, r.threshold_cap, r.phi, r.ge, r.gm, r.snr, r.log_var_lo,
                         r.log_var_hi, r.ky, r.kz};
  const double tail[] = {r.vx, r.v0, r.lq, r.lp};
  static_assert(sizeof head + sizeof r.wx + sizeof r.wy + sizeof r.wh + sizeof tail == kRowFields * sizeof(double),
                "every field once");
  char* to = reinterpret_cast<char*>(out);
  const auto append = [&to](const double* from, size_t bytes) {
    std::memcpy(to, from, bytes);
    to += bytes;
  };
  append(head, sizeof head);
  append(r.wx, sizeof r.wx);
  append(r.wy, sizeof r.wy);
  append(r.wh, sizeof r.wh);
  append(tail, sizeof tail);
}

Table compile_table(const Schedule& schedule, const Prediction& prediction, const SolverOptions& options) {
  const TableF64 exact = compile_rows(schedule, prediction, options);
  Table table;
  table.rows.reserve(exact.rows.size());
  for (const RowF64& row : exact.rows) table.rows.push_back(rounded_row(row));
  table.init_sigma = rounded(exact.init_sigma, exact.rows.front().t);
  table.start_alpha = exact.start_alpha;
  table.start_sigma = exact.start_sigma;
  table.steps = exact.options.steps;
  const std::string& compat = exact.options.compat;
  // guided-diffusion and k-diffusion truncate to uint8; diffusers rounds, EDM rounds halves up: round in all but 1 of 2^24.
  if (!compat.empty()) table.uint8_rule = compat == "guided-diffusion" || compat == "k-diffusion" ? "truncate" : "round";
  set_registers(&table);
  return table;
}

Table table_from_rows(std::vector<StepRow> rows, double init_sigma, uint32_t executor_flags) {
  validate_table(rows, executor_flags);
  if (!(init_sigma > 0) || !(init_sigma <= std::numeric_limits<float>::max())) {
    refuse("init_sigma: expected a finite number above 0, got " + number(init_sigma));
  }
  Table table;
  table.rows = std::move(rows);
  table.init_sigma = init_sigma;
  table.steps = static_cast<int>(table.rows.size());
  set_registers(&table);
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
    for (size_t w = kFlagsAt + 1; w < kRowFields; ++w) {
      if (w != kNoiseIndexAt && !std::isfinite(words[w])) {
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
