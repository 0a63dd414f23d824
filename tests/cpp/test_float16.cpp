// float16 and bfloat16 by their definition: every value of the 16 bits, and the nearest to every value between two.
#include <cmath>
#include <limits>

#include "check.h"
#include "float16.h"

using namespace ddpm_rt;

namespace {

// The value that 16 bits stand for: sign, `exponent_bits`, the rest; NaN and infinities where the exponent is full.
double meaning(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = bits & ((1 << mantissa_bits) - 1), one = 1 << mantissa_bits;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa / one, 1 - bias);
  return sign * std::ldexp(1.0 + mantissa / one, exponent - bias);
}

template <typename ToFloat, typename FromFloat>
void check_type(int exponent_bits, ToFloat to_float, FromFloat from_float) {
  bool same = true, nearest = true, even = true;
  const uint16_t infinity = static_cast<uint16_t>(((1 << exponent_bits) - 1) << (15 - exponent_bits));
  for (uint32_t b = 0; b < 65536; ++b) {
    const uint16_t bits = static_cast<uint16_t>(b);
    const double value = meaning(bits, exponent_bits);
    const float got = to_float(bits);
    same = same && (std::isnan(value) ? std::isnan(got) : got == value && std::signbit(got) == std::signbit(value));
    same = same && from_float(got) == (std::isnan(value) ? 0x7FFF : bits);
    const uint16_t magnitude = bits & 0x7FFF;
    if (magnitude >= infinity) continue;
    // Between this value and the next: below the middle it is this one, above it the next, in the middle the even one.
    const double here = std::fabs(value);
    const double next = magnitude + 1 == infinity ? 2.0 * here - meaning(magnitude - 1, exponent_bits) : meaning(magnitude + 1, exponent_bits);
    const float middle = static_cast<float>((here + next) / 2.0);
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    const uint16_t mark = bits & 0x8000;
    nearest = nearest && from_float(sign * std::nextafter(middle, 0.0f)) == bits;
    nearest = nearest && from_float(sign * std::nextafter(middle, std::numeric_limits<float>::infinity())) == (mark | (magnitude + 1));
    even = even && from_float(sign * middle) == (mark | (magnitude + (magnitude & 1)));
  }
  CHECK(same);
  CHECK(nearest);
  CHECK(even);
  CHECK(from_float(std::numeric_limits<float>::max()) == infinity);
  CHECK(from_float(-1e-45f) == 0x8000);
}

}  // namespace

int main() {
  check_type(5, half_to_float, float_to_half);
  check_type(8, bfloat16_to_float, float_to_bfloat16);
  CHECK(floats_to_halves(1.0f, -2.0f) == 0xC0003C00u && floats_to_bfloat16s(1.0f, -2.0f) == 0xC0003F80u);
  return finish();
}
