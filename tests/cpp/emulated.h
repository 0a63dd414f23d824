// The emulated device from the tests' side: opened as the engine opens it, its counters and failures by name.
#ifndef DDPM_RT_TESTS_EMULATED_H_
#define DDPM_RT_TESTS_EMULATED_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "device.h"

namespace emulated {

inline const ddpm_rt::DynamicLibrary& library() {
  static std::string why;
  static const ddpm_rt::DynamicLibrary opened = ddpm_rt::DynamicLibrary::open(DDPM_RT_EMULATED, &why);
  return opened;
}

inline void set(const char* name, int64_t value) {
  if (library().symbol<int(const char*, int64_t)>("ddpm_rt_emulated_set")(name, value) != 0) return;
  std::printf("the emulated device has no %s\n", name);
  std::abort();
}

inline int64_t get(const char* name) {
  const int64_t value = library().symbol<int64_t(const char*)>("ddpm_rt_emulated_get")(name);
  if (value >= 0) return value;
  std::printf("the emulated device has no %s\n", name);
  std::abort();
}

inline ddpm_rt::DevicePtr open(int ordinal = 0) { return ddpm_rt::Device::open(DDPM_RT_EMULATED, ordinal); }

}  // namespace emulated

#endif  // DDPM_RT_TESTS_EMULATED_H_
