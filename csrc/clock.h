// Seconds on the clock that never jumps: for durations only.
#ifndef DDPM_RT_CLOCK_H_
#define DDPM_RT_CLOCK_H_

#include <chrono>

namespace ddpm_rt {

inline double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace ddpm_rt

#endif  // DDPM_RT_CLOCK_H_
