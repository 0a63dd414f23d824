// Integer timestep grids. Every one is computed from an integer index, and its length is checked.
#include <cmath>
#include <cstdint>

#include "error.h"
#include "schedule.h"

namespace ddpm_rt {
namespace {

constexpr int kMaxT = 1 << 16;

[[noreturn]] void refuse(const std::string& message) { throw Error(Code::kOption, message); }

// numerator / denominator to the nearest integer, halves to even, from integers only.
int64_t round_half_even(int64_t numerator, int64_t denominator) {
  const int64_t quotient = numerator / denominator, twice = 2 * (numerator % denominator);
  return quotient + (twice > denominator || (twice == denominator && quotient % 2 == 1) ? 1 : 0);
}

void check_steps(int T, int steps, int most, const char* of_what) {
  if (T < 1 || T > kMaxT) refuse("schedule: expected 1 to " + std::to_string(kMaxT) + " timesteps, got " + std::to_string(T));
  if (steps < 1 || steps > most) {
    refuse("steps: expected 1 to " + std::to_string(most) + " (" + of_what + "), got " + std::to_string(steps));
  }
}

// The post-condition of every grid here; ascending in, descending out.
std::vector<int> descending(const std::vector<int>& ascending, int T, int steps) {
  std::vector<int> visited(ascending.rbegin(), ascending.rend());
  bool is_good = static_cast<int>(visited.size()) == steps;
  for (size_t i = 0; i < visited.size(); ++i) {
    is_good = is_good && visited[i] >= 0 && visited[i] < T && (i == 0 || visited[i] < visited[i - 1]);
  }
  if (!is_good) throw Error(Code::kInternal, "grid: expected strictly decreasing timesteps of the schedule, got others");
  return visited;
}

}  // namespace

std::vector<int> timesteps(const std::string& grid, int T, int steps) {
  const bool is_uniform = grid == "uniform";
  check_steps(T, steps, is_uniform && T > 1 ? T - 1 : T, is_uniform ? "one less than the schedule's timesteps" : "the schedule's timesteps");
  std::vector<int> ascending(static_cast<size_t>(steps));
  for (int k = 0; k < steps; ++k) {
    const int64_t wide = k;
    int64_t t;
    if (grid == "leading") {
      t = wide * (T / steps);
    } else if (grid == "linspace") {
      t = steps == 1 ? 0 : round_half_even(wide * (T - 1), steps - 1);
    } else if (grid == "trailing") {
      t = round_half_even(static_cast<int64_t>(T) * (wide + 1), steps) - 1;
    } else if (is_uniform) {
      t = round_half_even((wide + 1) * (T - 1), steps);
    } else {
      refuse("grid: expected leading, linspace, trailing or uniform, got \"" + grid + "\"");
    }
    ascending[static_cast<size_t>(k)] = static_cast<int>(t);
  }
  return descending(ascending, T, steps);
}

std::vector<int> section_timesteps(int T, const std::vector<int>& counts, bool accumulate) {
  const int sections = static_cast<int>(counts.size());
  if (sections < 1 || sections > T) {
    refuse("grid: expected 1 to " + std::to_string(T) + " section counts, got " + std::to_string(sections));
  }
  std::vector<int> ascending;
  int start = 0;
  for (int i = 0; i < sections; ++i) {
    const int size = T / sections + (i < T % sections ? 1 : 0), count = counts[static_cast<size_t>(i)];
    if (count < 1 || count > size) {
      refuse("grid: expected 1 to " + std::to_string(size) + " timesteps in section " + std::to_string(i) + " of " +
             std::to_string(sections) + ", got " + std::to_string(count));
    }
    const double stride = count == 1 ? 1 : static_cast<double>(size - 1) / (count - 1);
    double at = 0;
    for (int k = 0; k < count; ++k, at += stride) {
      const int64_t exact = count == 1 ? 0 : round_half_even(static_cast<int64_t>(k) * (size - 1), count - 1);
      ascending.push_back(start + static_cast<int>(accumulate ? std::nearbyint(at) : static_cast<double>(exact)));
    }
    start += size;
  }
  const int steps = static_cast<int>(ascending.size());
  return descending(ascending, T, steps);
}

std::vector<int> ddim_timesteps(int T, int steps) {
  check_steps(T, steps, T, "the schedule's timesteps");
  for (int stride = 1; stride <= T; ++stride) {
    if ((T + stride - 1) / stride != steps) continue;
    std::vector<int> ascending;
    for (int t = 0; t < T; t += stride) ascending.push_back(t);
    return descending(ascending, T, steps);
  }
  refuse("grid: expected a count that an integer stride over " + std::to_string(T) + " timesteps gives, got ddim" +
         std::to_string(steps) + "; grid leading takes any count");
}

std::vector<int> lcm_timesteps(int T, int original, int steps) {
  if (original < 1 || original > T) {
    refuse("original_steps: expected 1 to " + std::to_string(T) + " (the schedule's timesteps), got " + std::to_string(original));
  }
  check_steps(T, steps, original, "original_steps, the timesteps of the distillation");
  std::vector<int> ascending(static_cast<size_t>(steps));
  for (int i = 0; i < steps; ++i) {  // floor(i original / steps) counts from the noisy end
    const int64_t from_noise = static_cast<int64_t>(i) * original / steps;
    ascending[static_cast<size_t>(steps - 1 - i)] = static_cast<int>((original - from_noise) * (T / original) - 1);
  }
  return descending(ascending, T, steps);
}

}  // namespace ddpm_rt
