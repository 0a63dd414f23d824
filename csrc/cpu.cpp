#include "cpu.h"

#include <cstdint>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define DDPM_RT_CPUID 1
#include <cpuid.h>
#endif

namespace ddpm_rt {

#ifdef DDPM_RT_CPUID
namespace {

// XCR0: which registers the operating system saves.
uint64_t enabled_state() {
  unsigned a, b, c, d;
  constexpr unsigned kOsxsave = 1u << 27;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsxsave)) return 0;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

}  // namespace

bool cpu_has_amx_bf16() {
  unsigned a, b, c, d;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr uint64_t kTileState = uint64_t{3} << 17;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & kAmxBf16) && (d & kAmxTile) && (enabled_state() & kTileState) == kTileState;
}

std::string isa_class() {
  __builtin_cpu_init();
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (v4) return cpu_has_amx_bf16() ? "x86-64-v4+amx" : "x86-64-v4";
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "x86-64-v3" : "x86-64";
}
#else
bool cpu_has_amx_bf16() { return false; }

std::string isa_class() {
#if defined(__aarch64__) || defined(_M_ARM64)
  return "aarch64";
#elif defined(_M_X64)
  return "x86-64";
#else
  return "other";
#endif
}
#endif

}  // namespace ddpm_rt
