// What the tests set and read of the emulated device: one table of named numbers, also reached by name from outside
// (ddpm_rt_emulated_set, ddpm_rt_emulated_get).
#ifndef DDPM_RT_TESTS_EMULATED_CONTROL_H_
#define DDPM_RT_TESTS_EMULATED_CONTROL_H_

#include <atomic>
#include <cstdint>
#include <cstring>

namespace ddpm_rt {

// Counted: calls by kind. Failures: "fail X" = n lets the n-th call of that kind from now on fail, once; 0: none.
// Settings: devices, driver, runtime, capability (major), device_error (of device_count).
#define DDPM_RT_EMULATED_KINDS(F)                                                                                    \
  F(allocate) F(release) F(allocate_pinned) F(release_pinned) F(to_device) F(to_host) F(on_device) F(fill)           \
  F(synchronize) F(query) F(record) F(stream_wait) F(capture) F(instantiate) F(launch_graph) F(add_child)        \
  F(step) F(advance) F(apply) F(finish) F(network)

#define DDPM_RT_EMULATED_SETTINGS(F) F(devices, 2) F(driver, 13000) F(runtime, 13000) F(capability, 9) F(device_error, 0)

struct EmulatedControl {
#define DDPM_RT_DECLARE_KIND(name) std::atomic<int64_t> name{0}, fail_##name{0};
  DDPM_RT_EMULATED_KINDS(DDPM_RT_DECLARE_KIND)
#undef DDPM_RT_DECLARE_KIND
#define DDPM_RT_DECLARE_SETTING(name, value) std::atomic<int64_t> name{value};
  DDPM_RT_EMULATED_SETTINGS(DDPM_RT_DECLARE_SETTING)
#undef DDPM_RT_DECLARE_SETTING

  std::atomic<int64_t>* find(const char* name) {
#define DDPM_RT_FIND_KIND(kind)                                 \
    if (std::strcmp(name, #kind) == 0) return &kind;            \
    if (std::strcmp(name, "fail " #kind) == 0) return &fail_##kind;
    DDPM_RT_EMULATED_KINDS(DDPM_RT_FIND_KIND)
#undef DDPM_RT_FIND_KIND
#define DDPM_RT_FIND_SETTING(setting, value) \
    if (std::strcmp(name, #setting) == 0) return &setting;
    DDPM_RT_EMULATED_SETTINGS(DDPM_RT_FIND_SETTING)
#undef DDPM_RT_FIND_SETTING
    return nullptr;
  }
};

EmulatedControl& emulated_control();

// Counts a call; true where it is the one that shall fail.
inline bool counted(std::atomic<int64_t>* calls, std::atomic<int64_t>* fail) {
  calls->fetch_add(1);
  int64_t left = fail->load();
  while (left > 0 && !fail->compare_exchange_weak(left, left - 1)) {
  }
  return left == 1;
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_TESTS_EMULATED_CONTROL_H_
