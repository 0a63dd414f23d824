// SHA-256 (FIPS 180-4), incremental. sha256() of plan.h is the one-call form.
#ifndef DDPM_RT_SHA256_H_
#define DDPM_RT_SHA256_H_

#include <cstddef>
#include <cstdint>

#include "plan.h"

namespace ddpm_rt {

class Sha256 {
 public:
  // portable: leave the processor's SHA instructions unused; the digest is the same.
  explicit Sha256(bool portable = false);
  void update(const void* data, size_t bytes);
  Digest finish();  // once, at the end

  static bool has_instructions();

 private:
  using Compress = void (*)(uint32_t state[8], const uint8_t* blocks, size_t count);
  Compress compress_;
  uint32_t state_[8];
  uint64_t total_ = 0;
  uint8_t pending_[64];  // the last total_ % 64 bytes
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_SHA256_H_
