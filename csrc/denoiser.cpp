#include "denoiser.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "clock.h"
#include "error.h"

#ifdef __linux__
#include <sched.h>
#endif

namespace ddpm_rt {

void Denoiser::embed(const float*, const int64_t*, size_t, float*) {
  throw Error(Code::kInternal, "embed: expected a backend whose network reads rows, got one without");
}

double Denoiser::timed_run(const Call* calls, size_t count) {
  const double start = now();
  run(calls, count);
  return now() - start;
}

#ifdef __linux__
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

int topology_id(int cpu, const char* name) {
  const std::string line =
      first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" + std::string(name));
  int id = -1;
  return std::sscanf(line.c_str(), "%d", &id) == 1 ? id : -1;
}

// Physical cores among the processors this thread may run on; 0: unknown.
int cores_in_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
  std::set<std::pair<int, int>> cores;
  int processors = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    ++processors;
    const int core = topology_id(cpu, "core_id");
    if (core >= 0) cores.emplace(topology_id(cpu, "physical_package_id"), core);
  }
  return cores.empty() ? processors : static_cast<int>(cores.size());
}

// Whole processors the control groups allow, the tightest on the way up; 0: unlimited.
int cgroup_quota() {
  double best = 0;
  const auto consider = [&best](double quota, double period) {
    if (quota > 0 && period > 0) best = best == 0 ? quota / period : std::min(best, quota / period);
  };
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && controllers.find("cpu") == std::string::npos) continue;
    const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (std::string group = line.substr(second + 1);; group.resize(group.rfind('/'))) {
      if (group == "/") group.clear();
      double quota = 0, period = 0;
      if (v2) {
        if (std::sscanf(first_line(root + group + "/cpu.max").c_str(), "%lf %lf", &quota, &period) == 2) {
          consider(quota, period);
        }
      } else if (std::sscanf(first_line(root + group + "/cpu.cfs_quota_us").c_str(), "%lf", &quota) == 1 &&
                 std::sscanf(first_line(root + group + "/cpu.cfs_period_us").c_str(), "%lf", &period) == 1) {
        consider(quota, period);
      }
      if (group.rfind('/') == std::string::npos) break;
    }
  }
  return best == 0 ? 0 : std::max(1, static_cast<int>(best));
}

}  // namespace

int default_threads() {
  int threads = cores_in_affinity();
  if (threads == 0) threads = static_cast<int>(std::thread::hardware_concurrency());
  const int quota = cgroup_quota();
  if (quota > 0) threads = std::min(threads, quota);
  return std::max(1, threads);
}
#else
int default_threads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }
#endif

}  // namespace ddpm_rt
