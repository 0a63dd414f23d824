// CHECK and CHECK_NEAR count and print failures; finish() prints "N passed, M failed" and is main's return value.
#ifndef DDPM_RT_TESTS_CHECK_H_
#define DDPM_RT_TESTS_CHECK_H_

#include <cmath>
#include <cstdio>

inline int checks_passed = 0, checks_failed = 0;

#define CHECK(cond)                                                          \
  do {                                                                       \
    if (cond) {                                                              \
      ++checks_passed;                                                       \
    } else {                                                                 \
      ++checks_failed;                                                       \
      std::printf("%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #cond);          \
    }                                                                        \
  } while (0)

#define CHECK_NEAR(a, b, tol)                                                                             \
  do {                                                                                                    \
    const double check_a = (a), check_b = (b), check_tol = (tol);                                         \
    if (std::fabs(check_a - check_b) <= check_tol) {                                                      \
      ++checks_passed;                                                                                    \
    } else {                                                                                              \
      ++checks_failed;                                                                                    \
      std::printf("%s:%d: %s = %.17g, %s = %.17g, apart %.3g > %.3g\n", __FILE__, __LINE__, #a, check_a, #b, check_b, \
                  std::fabs(check_a - check_b), check_tol);                                               \
    }                                                                                                     \
  } while (0)

inline int finish() {
  std::printf("%d passed, %d failed\n", checks_passed, checks_failed);
  return checks_failed == 0 && checks_passed > 0 ? 0 : 1;
}

#endif  // DDPM_RT_TESTS_CHECK_H_
