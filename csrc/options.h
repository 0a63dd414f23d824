// The one table of options. Python's signatures, the command line, the C structs and docs/options.md follow it.
#ifndef DDPM_RT_OPTIONS_H_
#define DDPM_RT_OPTIONS_H_

#include <vector>

namespace ddpm_rt {

// Fields and their order are those of ddpm_rt_option_info. default_value is Python's literal, without quotes; "None"
// means chosen, drawn or taken from the plan, as `help` says.
struct OptionInfo {
  const char* name;
  const char* aliases;        // comma separated, may be empty
  const char* type;           // int | float | string | bool | array | callable | choice:a|b|c
  const char* range;
  const char* default_value;
  const char* scope;          // engine | sample
  const char* help;
};

const std::vector<OptionInfo>& option_table();

}  // namespace ddpm_rt

#endif  // DDPM_RT_OPTIONS_H_
