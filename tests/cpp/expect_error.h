// message_of(code, f): the text of the Error with that code which f throws; "" and a failed CHECK for anything else.
#ifndef DDPM_RT_TESTS_EXPECT_ERROR_H_
#define DDPM_RT_TESTS_EXPECT_ERROR_H_

#include <exception>
#include <string>

#include "check.h"
#include "error.h"

template <typename F>
std::string message_of(ddpm_rt::Code code, F f) {
  try {
    f();
  } catch (const ddpm_rt::Error& e) {
    if (e.code() == code) return e.what();
    std::printf("code %d, expected %d: %s\n", static_cast<int>(e.code()), static_cast<int>(code), e.what());
  } catch (const std::exception& e) {
    std::printf("not an Error: %s\n", e.what());
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The error names every part: field, expected, found.
#define CHECK_ERROR(code, statement, part)                                               \
  do {                                                                                   \
    const std::string check_message = message_of(code, [&] { statement; });              \
    const bool check_named = !check_message.empty() && contains(check_message, part) &&  \
                             contains(check_message, "expected") && contains(check_message, "got"); \
    if (!check_named) std::printf("message: %s\n", check_message.c_str());               \
    CHECK(check_named);                                                                  \
  } while (0)

#endif  // DDPM_RT_TESTS_EXPECT_ERROR_H_
