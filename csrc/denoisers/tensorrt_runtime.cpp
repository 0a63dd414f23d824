#include "denoisers/tensorrt_runtime.h"

#include <cstring>
#include <mutex>
#include <utility>

namespace ddpm_rt {
namespace nv {
namespace {

constexpr const char* kInstall = "; `pip install \"ddpm_rt[tensorrt]\"`, or name the library in tensorrt_library";
constexpr size_t kMostLogged = 2000;

// One for the process and never destroyed: the libraries keep the first logger they are given beyond its runtime. What
// it holds is taken by the call that fails; a failure elsewhere at the same moment may mix in its words.
class Logger final : public LoggerInterface {
 public:
  static Logger& shared() {
    static Logger* logger = new Logger;
    return *logger;
  }
  void log(int32_t severity, const char* message) noexcept override {
    if (severity > kError || message == nullptr) return;
    try {
      std::lock_guard<std::mutex> lock(mutex_);
      if (text_.size() < kMostLogged) text_ += (text_.empty() ? "" : "; ") + std::string(message);
    } catch (...) {  // out of memory: the words are lost, the failure is not
    }
  }
  std::string take() {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(text_, std::string());
  }

 private:
  std::mutex mutex_;
  std::string text_;
};

DynamicLibrary open_library(const std::string& wanted, std::string* path) {
  std::string why, tried;
  const std::vector<std::string> names = wanted.empty() ? std::vector<std::string>{"libnvinfer.so.11", "libtensorrt_rtx.so.1"}
                                                        : std::vector<std::string>{wanted};
  for (const std::string& name : names) {
    DynamicLibrary library = DynamicLibrary::open(name, &why);
    *path = name;
    if (library) return library;
    tried += (tried.empty() ? "" : ", ") + why;
  }
  throw Error(Code::kBackend, "tensorrt: expected libnvinfer.so.11 or libtensorrt_rtx.so.1, got: " + tried + kInstall);
}

// What the library reports of an engine's header, worst first: these are certain, unlike what a failed load logs.
struct Verdict {
  uint64_t bit;
  Code code;
  const char* needed;
  const char* found;
};
constexpr Verdict kVerdicts[] = {
    {kMalformed, Code::kPlan, "a serialized engine", "bytes that are none"},
    {kVersionMismatch, Code::kBackend, "an engine of this library's version", "one of another version"},
    {kUnsupportedCapability, Code::kDevice, "an engine for this GPU", "one for other compute capabilities"},
    {kOldDriver, Code::kDevice, "an NVIDIA driver as new as the engine asks for", "an older one"},
    {kOldRuntime, Code::kDevice, "a CUDA runtime as new as the engine asks for", "an older one"},
    {kNoGpuMemory, Code::kDevice, "memory for the engine on this GPU", "too little"},
};

// What a failed load logs, surest first: the header is all that the check above sees of an engine, and without a driver every
// load also logs a CUDA error.
constexpr Verdict kLogged[] = {
    {0, Code::kPlan, "a whole engine", "Serialization assertion"},
    {0, Code::kPlan, "a whole engine", "No engine found in plan"},
    {0, Code::kDevice, "an NVIDIA GPU and its driver", "cudaError 35: CUDA driver version is insufficient for CUDA runtime version"},
    {0, Code::kDevice, "an NVIDIA GPU", "cudaError 100: no CUDA-capable device is detected"},
};

}  // namespace

Runtime::Runtime(const std::string& library) : library_(open_library(library, &path_)) {
  const auto number = [this](const char* name) {
    auto* get = library_.symbol<int32_t()>(name);
    if (get == nullptr) throw Error(Code::kBackend, "tensorrt: expected a library with " + std::string(name) + ", got " + path_);
    return get();
  };
  const int32_t major = number("getInferLibMajorVersion"), minor = number("getInferLibMinorVersion");
  version_ = std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(number("getInferLibPatchVersion")) + "." +
             std::to_string(number("getInferLibBuildVersion"));
  is_rtx_ = major == kMajorRtx;
  kind_ = is_rtx_ ? "tensorrt_rtx" : "tensorrt";
  if ((!is_rtx_ && major != kMajorTensorRt) || (is_rtx_ && minor < kOldestRtxMinor)) {
    throw Error(Code::kBackend, "tensorrt: expected TensorRT 11, or TensorRT-RTX 1.5 or later, got version " + version_ + " at " +
                                    path_ + kInstall);
  }
  using Create = void*(void* logger, int32_t version) noexcept;
  auto* create = library_.symbol<Create>("createInferRuntime_INTERNAL");
  if (create == nullptr) throw Error(Code::kBackend, "tensorrt: expected a library with createInferRuntime_INTERNAL, got " + path_);
  Logger::shared().take();
  runtime_.reset(static_cast<Object*>(create(&Logger::shared(), number("getInferLibVersion"))));
  if (!runtime_) fail("tensorrt: expected a runtime of " + path_ + ", got none");
}

uint64_t Runtime::diagnose(const std::vector<uint8_t>& engine) const {
  if (!is_rtx_) return 0;
  if (static_cast<int64_t>(engine.size()) < call<int64_t>(runtime_.get(), runtime::kGetEngineHeaderSize)) return kMalformed;
  uint64_t diagnostics = 0;
  const int32_t validity = call<int32_t>(runtime_.get(), runtime::kGetEngineValidity, static_cast<const void*>(engine.data()),
                                         static_cast<int64_t>(engine.size()), &diagnostics);
  return validity == kInvalid ? diagnostics : 0;
}

Owned Runtime::deserialize(const std::vector<uint8_t>& engine, const std::string& what, const Remedy& remedy) const {
  Logger::shared().take();
  const uint64_t diagnostics = diagnose(engine);
  for (const Verdict& verdict : kVerdicts) {
    if ((diagnostics & verdict.bit) == 0) continue;
    fail(what + ": expected " + verdict.needed + " (" + kind_ + " " + version_ + "), got " + verdict.found, verdict.code,
         verdict.bit == kUnsupportedCapability ? remedy.for_gpu : remedy.any);
  }
  Owned made(call<Object*>(runtime_.get(), runtime::kDeserializeCudaEngine, static_cast<const void*>(engine.data()), engine.size()));
  if (made) return made;
  const std::string logged = Logger::shared().take();
  for (const Verdict& verdict : kLogged) {
    if (logged.find(verdict.found) == std::string::npos) continue;
    throw Error(verdict.code, what + ": expected " + verdict.needed + " for " + kind_ + " " + version_ + ", got " + verdict.found);
  }
  throw Error(Code::kBackend, what + ": expected an engine that " + kind_ + " " + version_ + " loads on this GPU, got: " +
                                  (logged.empty() ? "no reason given" : logged) + remedy.any);
}

void Runtime::fail(const std::string& what, Code code, const std::string& remedy) {
  const std::string logged = Logger::shared().take();
  throw Error(code, what + (logged.empty() ? "" : ": " + logged) + remedy);
}

}  // namespace nv
}  // namespace ddpm_rt
