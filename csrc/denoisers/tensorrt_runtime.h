// The library with one runtime: opened, its version checked, its errors as exceptions.
#ifndef DDPM_RT_DENOISERS_TENSORRT_RUNTIME_H_
#define DDPM_RT_DENOISERS_TENSORRT_RUNTIME_H_

#include <cstdint>
#include <string>
#include <vector>

#include "denoisers/tensorrt_api.h"
#include "dynamic_library.h"
#include "error.h"

namespace ddpm_rt {
namespace nv {

// "; COMMAND" at the end of a message: what makes an engine that fits, and one for the GPU at hand.
struct Remedy {
  std::string any, for_gpu;
};

class Runtime {
 public:
  // `library`: a path or a name for the loader; empty: libnvinfer.so.11, then libtensorrt_rtx.so.1. Throws Error(kBackend).
  explicit Runtime(const std::string& library);

  const std::string& kind() const { return kind_; }        // "tensorrt" or "tensorrt_rtx"
  const std::string& version() const { return version_; }  // "1.7.1.116"
  const std::string& path() const { return path_; }        // as it was opened
  bool is_rtx() const { return is_rtx_; }

  // What the header says of an engine, bits of Diagnostic. 0 for TensorRT proper, which has no such check.
  uint64_t diagnose(const std::vector<uint8_t>& engine) const;
  // `what` names the engine in messages, `remedy` ends them. Throws Error: kPlan for bytes that are no engine,
  // kBackend for another version, kDevice for another or a missing GPU, or a driver too old.
  Owned deserialize(const std::vector<uint8_t>& engine, const std::string& what, const Remedy& remedy) const;

  // Throws Error(kBackend) with what the library logged since the last call that failed, or began.
  [[noreturn]] static void fail(const std::string& what, Code code = Code::kBackend, const std::string& remedy = "");

 private:
  std::string path_, kind_, version_;
  DynamicLibrary library_;
  bool is_rtx_ = false;
  Owned runtime_;
};

}  // namespace nv
}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISERS_TENSORRT_RUNTIME_H_
