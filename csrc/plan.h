// The plan file: one container, pure data. docs/plan_format.md is the specification.
//
//   0     header, 64 bytes: magic "DDPMPLAN", u32 format version (1), u32 header bytes (64), u64 file bytes,
//         u64 manifest offset, u64 manifest bytes, u64 table offset (96), u32 section count, 12 bytes zero
//   64    SHA-256 of [header | manifest | section table]: 32 bytes
//   96    section table: per section 128 bytes: name[64] NUL-padded, u64 offset, u64 bytes, sha256[32], 16 bytes zero
//   ...   manifest, UTF-8 JSON, right after the table
//   4096k sections in table order, each at the first multiple of 4096 after what precedes it, padded with zeros; the
//         file ends with the last section's bytes
// The counts and lengths decide every offset, so each offset has one right value and nothing can overlap.
#ifndef DDPM_RT_PLAN_H_
#define DDPM_RT_PLAN_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ddpm_rt {

constexpr uint32_t kPlanFormat = 1;
constexpr size_t kMaxManifestBytes = 1 << 20;
constexpr size_t kMaxSections = 1024;

using Digest = std::array<uint8_t, 32>;
Digest sha256(const void* data, size_t bytes);
std::string hex(const Digest& digest);

struct SectionInfo {
  std::string name;
  uint64_t offset, bytes;
  Digest sha256;
};

// An open plan: header, manifest and table verified on open (no allocation larger than what the file's real size
// allows), sections read with pread and verified on every read. Safe to share between threads.
class Plan {
 public:
  static std::shared_ptr<const Plan> open(const std::string& path);  // throws Error(kPlan)
  ~Plan();
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  const std::string& path() const { return path_; }
  const std::string& manifest() const { return manifest_; }  // JSON text
  const std::vector<SectionInfo>& sections() const { return sections_; }
  bool has(const std::string& section) const;
  std::vector<uint8_t> read(const std::string& section) const;  // verified; throws Error(kPlan)
  void verify() const;                                          // every section, and that the padding is zero

 private:
  Plan() = default;
  const SectionInfo& find(const std::string& section) const;
  void check_digest(const SectionInfo& info, const Digest& found) const;
  std::string path_, manifest_;
  std::vector<SectionInfo> sections_;
  int fd_ = -1;
};

// Writes to a temporary name in the same folder, fsyncs, renames. Nothing is left behind on failure. `path` may name a
// regular file, which is replaced, or nothing; the manifest's meaning is not checked here (spec.h does).
void write_plan(const std::string& path, const std::string& manifest,
                const std::vector<std::pair<std::string, std::vector<uint8_t>>>& sections);

}  // namespace ddpm_rt

#endif  // DDPM_RT_PLAN_H_
