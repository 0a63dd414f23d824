// What the C API's step functions, on the CPU and on a device, check of a caller's row and operands. Refusals are Error.
#ifndef DDPM_RT_CAPI_STEP_CHECKS_H_
#define DDPM_RT_CAPI_STEP_CHECKS_H_

#include <cstddef>
#include <cstdint>

#include "ddpm_rt/ddpm_rt.h"
#include "step.h"

namespace ddpm_rt {

StepRow read_row(const void* bytes, const char* field);  // bytes need not be aligned

struct GivenOperands {
  const void* eps;
  const uint64_t* seeds;
  const float *history, *anchor;
};
// What the row reads is there.
void expect_operands(const StepRow& row, const GivenOperands& given, const ddpm_rt_step_operands& operands);

// The next row is there where its input is to be written, and the place in the ring is one.
void expect_next(const StepRow& row, const void* next_row, const float* in, uint32_t ring);

float finite_scale(double scale, const char* field);
float rescale_share(double rescale);  // phi, 0 to 1
void expect_count(size_t count, size_t elements);  // their product of floats, three times, fits a size_t

}  // namespace ddpm_rt

#endif  // DDPM_RT_CAPI_STEP_CHECKS_H_
