// A sample of the tick tests: a table of random rows, and what the CPU makes of it step by step.
#ifndef DDPM_RT_TESTS_GPU_SAMPLE_H_
#define DDPM_RT_TESTS_GPU_SAMPLE_H_

#include "gpu_arena.h"
#include "step_case.h"

namespace gpu_case {

using namespace ddpm_rt;
using step_case::Random;

struct LaneSetup {
  uint32_t channels, pixels;
  GpuType in_type, out_type;
  GpuLayout layout;
  uint32_t rows_bytes;  // of a precomputed embedding; 0: none
};

// Stands in for the network, on both sides.
inline float network(float in, float t, int64_t label, uint32_t i) {
  return 0.75f * in + 0.001f * t + 0.1f * static_cast<float>(label) - 0.01f * static_cast<float>(i % 7);
}

struct Sample {
  std::vector<StepRow> table;
  uint64_t seed = 0;
  float scale = 1.0f, sigma = 1.0f;
  int64_t label[kRoles] = {};
  bool is_previewed = false;
  GpuFormat format = kFinishFloat;
  std::vector<float> start, x, history[3], anchor, preview;  // start: empty is the sample's own noise
  std::vector<float> in[kRoles];                             // as the network reads it
  std::vector<uint8_t> embedding[kRoles];
  Array<StepRow> device_table;
  Array<float> device_start;
  Array<uint8_t> device_embedding[kRoles];
  size_t row = 0;
  uint32_t ring = 0;
  uint8_t bad = 0;
  int slot = -1;

  static constexpr uint32_t kMostRows = 6;

  Sample(Random* random, const LaneSetup& setup, Arena* arena) {
    const size_t n = static_cast<size_t>(setup.channels) * setup.pixels;
    make_table(random);
    seed = static_cast<uint64_t>(random->next()) << 32 | random->next();
    constexpr float kScales[] = {0.0f, 1.0f, 2.5f, 4.0f};
    scale = kScales[random->below(4)];
    sigma = random->coin() ? 1.0f : 1.75f;
    for (int64_t& l : label) l = random->below(11);
    is_previewed = random->coin();
    format = static_cast<GpuFormat>(random->below(3));
    device_table = arena->take<StepRow>(table.size());
    std::copy(table.begin(), table.end(), device_table.host);
    if (random->below(3) == 0) {
      start.resize(n);
      device_start = arena->take<float>(n);
      for (size_t i = 0; i < n; ++i) device_start[i] = start[i] = random->uniform();
    }
    for (int role = 0; role < kRoles && setup.rows_bytes > 0; ++role) {
      embedding[role].resize(table.size() * setup.rows_bytes);
      device_embedding[role] = arena->take<uint8_t>(embedding[role].size());
      for (size_t i = 0; i < embedding[role].size(); ++i) {
        device_embedding[role][i] = embedding[role][i] = static_cast<uint8_t>(random->next());
      }
    }
  }

  bool is_finished() const { return row == table.size(); }

  // As the engine decides it: exactly 1 or 0 needs one evaluation only.
  bool needs(size_t at, int role) const {
    if (at >= table.size() || role == kRoleGuide || (table[at].flags & kNoEval)) return false;
    const float s = 1.0f + (scale - 1.0f) * table[at].gs;
    return role == kRoleCond ? s != 0.0f : s != 1.0f;
  }

  void begin_on_cpu(size_t n, GpuType in_type) {
    x.resize(n);
    if (start.empty()) {
      fill_normals(seed, 0, kStreamInit, 0, n, x.data());
    } else {
      x = start;
    }
    for (float& v : x) v = sigma * v;
    for (std::vector<float>& h : history) h.assign(n, 0.0f);
    anchor.assign(n, 0.0f);
    preview.assign(n, 0.0f);
    for (std::vector<float>& role_in : in) {
      role_in.resize(n);
      for (size_t i = 0; i < n; ++i) role_in[i] = rounded(in_type, table[0].c_in * x[i]);
    }
  }

  void step_on_cpu(GpuType in_type, GpuType out_type) {
    const size_t n = x.size();
    StepSlot step{};
    step.row = &table[row];
    step.next = row + 1 < table.size() ? step.row + 1 : nullptr;
    step.seed = seed;
    step.scale = scale;
    step.x = x.data();
    std::vector<float> out[kRoles], next_in(n);
    for (int role = 0; role < kRoles; ++role) {
      if (!needs(row, role)) continue;
      out[role].resize(n);
      for (uint32_t i = 0; i < n; ++i) out[role][i] = rounded(out_type, network(in[role][i], step.row->t, label[role], i));
    }
    step.cond = out[kRoleCond].empty() ? nullptr : out[kRoleCond].data();
    step.uncond = out[kRoleUncond].empty() ? nullptr : out[kRoleUncond].data();
    for (int k = 0; k < 3; ++k) step.history[k] = history[k].data();
    step.ring = ring;
    step.anchor = anchor.data();
    step.in[0] = next_in.data();
    step.x0_out = preview.data();
    step_cpu(&step, 1, n, &bad);
    for (std::vector<float>& role_in : in) {
      for (size_t i = 0; i < n; ++i) role_in[i] = rounded(in_type, next_in[i]);
    }
    if (step.row->flags & kPush) ring = (ring + 2) % 3;
    ++row;
  }

 private:
  // Random weights that a table may have: no history or anchor before a row has written it.
  void make_table(Random* random) {
    table.resize(1 + random->below(kMostRows));
    uint32_t pushes = 0, kept = 0;
    for (StepRow& r : table) {
      r = step_case::Case(random, 1).row;
      r.flags &= ~uint32_t{kLast | kNoEval};
      if (random->below(8) == 0) {
        r.flags |= kNoEval;
        r.q = r.wx[kE] = r.wy[kE] = r.wh[kE] = 0.0f;
      }
      for (uint32_t h = pushes; h < 3; ++h) r.wx[kH1 + h] = r.wy[kH1 + h] = 0.0f;
      if (kept == 0) r.wx[kY] = r.wy[kY] = 0.0f;
      for (float& w : r.wx) w *= 0.25f;                // the state stays in range
      r.gs = random->below(3) == 0 ? 0.0f : 1.0f;      // a guidance interval
      r.t = static_cast<float>(random->below(1000));
      r.t2 = static_cast<float>(random->below(1000));
      r.c_in = random->coin() ? 1.0f : 0.5f + static_cast<float>(random->below(8)) * 0.125f;
      pushes += (r.flags & kPush) != 0;
      kept += (r.flags & kKeep) != 0;
    }
    table.back().flags |= kLast;
  }
};

}  // namespace gpu_case

#endif  // DDPM_RT_TESTS_GPU_SAMPLE_H_
