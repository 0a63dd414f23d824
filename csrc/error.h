// The one exception type of the library's inside; the C edge turns it into a status and a message.
#ifndef DDPM_RT_ERROR_H_
#define DDPM_RT_ERROR_H_

#include <stdexcept>
#include <string>

namespace ddpm_rt {

// Same numbers as ddpm_rt_status in the C API.
enum class Code {
  kPlan = 1,
  kShape = 2,
  kOption = 3,
  kDevice = 4,
  kBackend = 5,
  kNumeric = 6,
  kCancelled = 7,
  kInternal = 8,
};

// Message form: "field: expected ..., got ..." and, where it helps, what to do.
class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_ERROR_H_
