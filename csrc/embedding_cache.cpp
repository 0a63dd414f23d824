#include "embedding_cache.h"

#include <algorithm>
#include <cstring>

namespace ddpm_rt {
namespace {

uint64_t key_of(float t, int64_t label) {
  uint32_t bits;
  std::memcpy(&bits, &t, sizeof bits);
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(label);
}

}  // namespace

EmbeddingCache::EmbeddingCache(size_t width, size_t capacity, size_t resident) : width_(width) {
  // A tick's working set must fit, or every tick would clear what the next one needs.
  const size_t rows = kBytes / (std::max<size_t>(width, 1) * sizeof(float));
  ahead_ = std::min(kAhead, std::max<size_t>(1, rows / std::max<size_t>(resident, 1)));
  if (width > 0) placed_.resize(capacity, nullptr);
}

void EmbeddingCache::clear() {
  rows_.clear();
  std::fill(placed_.begin(), placed_.end(), nullptr);
}

void EmbeddingCache::zero(const Evaluations& evaluations, size_t first, size_t last) {
  if (width_ == 0 || first >= last) return;
  std::memset(evaluations.rows + first * width_, 0, (last - first) * width_ * sizeof(float));
  std::fill(placed_.begin() + static_cast<std::ptrdiff_t>(first), placed_.begin() + static_cast<std::ptrdiff_t>(last), nullptr);
}

void EmbeddingCache::fill(Denoiser& denoiser, const Evaluations& evaluations, size_t e, int64_t label,
                          const StepRow* row, const StepRow* end) {
  const auto found = rows_.find(key_of(row->t, label));
  const float* embedding = found != rows_.end() ? found->second.get() : compute(denoiser, label, row, end);
  if (placed_[e] == embedding) return;
  std::memcpy(evaluations.rows + e * width_, embedding, width_ * sizeof(float));
  placed_[e] = embedding;
}

const float* EmbeddingCache::compute(Denoiser& denoiser, int64_t label, const StepRow* row, const StepRow* end) {
  t_.clear();
  for (const StepRow* r = row; r != end && t_.size() < ahead_; ++r) {
    const bool is_new = !(r->flags & kNoEval) && rows_.find(key_of(r->t, label)) == rows_.end() &&
                        std::find(t_.begin(), t_.end(), r->t) == t_.end();
    if (is_new) t_.push_back(r->t);
  }
  label_.assign(t_.size(), label);
  computed_.resize(t_.size() * width_);
  denoiser.embed(t_.data(), label_.data(), t_.size(), computed_.data());
  if ((rows_.size() + t_.size()) * width_ * sizeof(float) > kBytes) clear();
  for (size_t i = 0; i < t_.size(); ++i) {
    Row copy(new float[width_]);
    std::memcpy(copy.get(), computed_.data() + i * width_, width_ * sizeof(float));
    rows_[key_of(t_[i], label)] = std::move(copy);
  }
  return rows_.find(key_of(row->t, label))->second.get();
}

}  // namespace ddpm_rt
