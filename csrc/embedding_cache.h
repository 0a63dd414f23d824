// Rows of the time embedding network, computed once per (t, label) and kept.
#ifndef DDPM_RT_EMBEDDING_CACHE_H_
#define DDPM_RT_EMBEDDING_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "denoiser.h"
#include "step.h"

namespace ddpm_rt {

class EmbeddingCache {
 public:
  static constexpr size_t kBytes = size_t{64} << 20;
  static constexpr size_t kAhead = 64;

  // resident: most (t, label) pairs one tick can need; bounds how far ahead a miss computes.
  EmbeddingCache(size_t width, size_t capacity, size_t resident);

  // Puts the embedding of (row->t, label) into evaluation e. On a miss computes rows [row, end) of the table ahead.
  void fill(Denoiser& denoiser, const Evaluations& evaluations, size_t e, int64_t label, const StepRow* row,
            const StepRow* end);
  void zero(const Evaluations& evaluations, size_t first, size_t last);  // padding
  void clear();

 private:
  using Row = std::unique_ptr<float[]>;
  const float* compute(Denoiser& denoiser, int64_t label, const StepRow* row, const StepRow* end);

  size_t width_, ahead_;
  std::unordered_map<uint64_t, Row> rows_;
  std::vector<const float*> placed_;  // what evaluation e holds; null: nothing known
  std::vector<float> t_, computed_;
  std::vector<int64_t> label_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_EMBEDDING_CACHE_H_
