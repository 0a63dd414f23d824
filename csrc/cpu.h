// What the processor can do, as far as results and precision depend on it.
#ifndef DDPM_RT_CPU_H_
#define DDPM_RT_CPU_H_

#include <string>

namespace ddpm_rt {

bool cpu_has_amx_bf16();  // tiles and bf16 products, switched on by the operating system
std::string isa_class();  // "x86-64-v4+amx", "x86-64-v4", "x86-64-v3", "x86-64", "aarch64", "other"

}  // namespace ddpm_rt

#endif  // DDPM_RT_CPU_H_
