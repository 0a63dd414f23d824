// Engines compiled by a backend for a machine: what their cards say, and where they lie. They are machine code, so they come
// from the user's own cache (ddpm-rt build), or from a plan that the caller trusts.
//
// The card is JSON: `library` and `version` that built the engine and alone can load it, `network` and `source` (SHA-256 of the
// section it was made from), `precision`, `capabilities` (["8.6"]; empty: what the library says), `profiles` ([least, best,
// most] rows), `bytes`, `sha256`. In the cache it is KEY.json beside KEY.engine; in a plan an entry of the manifest's
// `engines`, with the `section` that holds the engine. Where the engine is the plan's network (kind "tensorrt"), only
// library, network, precision and section are needed.
#ifndef DDPM_RT_NATIVE_ENGINE_H_
#define DDPM_RT_NATIVE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "plan.h"

namespace ddpm_rt {

constexpr const char* kTensorRt = "tensorrt";
constexpr const char* kTensorRtRtx = "tensorrt_rtx";

struct NativeEngine {
  std::string where;                       // for messages: a file, or a plan and its section
  std::string network, source;             // source: hex digest; empty where the engine is all there is
  std::string library, version, precision;
  std::vector<std::string> capabilities;   // "8.6"; empty: not stated
  std::string digest;                      // hex SHA-256 of the engine
  int64_t stamp = 0;                       // of the cache's file: later is newer
  std::function<std::vector<uint8_t>()> read;  // verified; throws Error(kPlan)
};

// Those that the manifest lists. Throws Error(kPlan) for a card that is not one.
std::vector<NativeEngine> engines_in_plan(const std::shared_ptr<const Plan>& plan);

// Those in `folder` made from a section with this digest, newest first. A folder or file that others than its owner can write
// is passed over, and so is a card that is none: `skipped` then says why.
std::vector<NativeEngine> engines_in_cache(const std::string& folder, const std::string& source, std::string* skipped);

}  // namespace ddpm_rt

#endif  // DDPM_RT_NATIVE_ENGINE_H_
