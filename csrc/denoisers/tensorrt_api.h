// The part of TensorRT's C++ interface that the denoiser uses, by slot: one declaration for TensorRT 11 and TensorRT-RTX 1,
// opened at run time, so none of their headers is needed. Where they are found, test_tensorrt_slots holds these against them.
//
// An object of the library is {vtable, impl}; its public methods are not virtual and go through impl's table, behind the
// two entries of impl's destructor. So method `slot` is impl->table[2 + slot], and takes impl as `this`. (Itanium C++ ABI:
// Linux, and Windows with other entries, which is why this backend is for Linux.)
#ifndef DDPM_RT_DENOISERS_TENSORRT_API_H_
#define DDPM_RT_DENOISERS_TENSORRT_API_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ddpm_rt {
namespace nv {

constexpr int kMajorTensorRt = 11, kMajorRtx = 1;  // the only ones these slots hold for: 10 had more virtual methods
constexpr int kOldestRtxMinor = 5;

struct Dims {
  static constexpr int kMost = 8;
  int32_t n;
  int64_t d[kMost];
};

enum DataType : int32_t { kFloat = 0, kHalf = 1, kInt32 = 3, kBf16 = 7, kInt64 = 8 };
enum IoMode : int32_t { kNone = 0, kInput = 1, kOutput = 2 };
enum Selector : int32_t { kMin = 0, kOpt = 1, kMax = 2 };
enum Severity : int32_t { kInternalError = 0, kError = 1, kWarning = 2, kInfo = 3, kVerbose = 4 };
constexpr int32_t kLinear = 0;        // TensorFormat
constexpr int32_t kUserManaged = 2;   // ExecutionContextAllocationStrategy
constexpr int32_t kEager = 1;         // DynamicShapesKernelSpecializationStrategy
constexpr size_t kAddressAlign = 256;  // of what setTensorAddress takes

// EngineValidity and EngineInvalidityDiagnostics
constexpr int32_t kInvalid = 2;
enum Diagnostic : uint64_t {
  kVersionMismatch = 1, kUnsupportedCapability = 2, kOldDriver = 4, kOldRuntime = 8, kNoGpuMemory = 16, kMalformed = 32,
  kCudaError = 64,
};

namespace runtime {
enum : size_t { kDeserializeCudaEngine = 1, kGetEngineHeaderSize = 21, kGetEngineValidity = 22 };  // the last two: RTX
}
namespace engine {
enum : size_t {
  kGetNbOptimizationProfiles = 6, kGetTensorShape = 13, kGetTensorDataType = 14, kGetTensorIoMode = 17, kGetTensorFormat = 20,
  kGetProfileShape = 23, kGetNbIoTensors = 24, kGetIoTensorName = 25, kGetDeviceMemorySizeV2 = 42, kCreateExecutionContext = 3,
  kCreateExecutionContextWithRuntimeConfig = 45, kCreateRuntimeConfig = 46,
};
}
namespace context {
enum : size_t {
  kSetOptimizationProfileAsync = 14, kSetInputShape = 18, kGetTensorShape = 19, kSetTensorAddress = 21, kEnqueueV3 = 34,
  kSetDeviceMemoryV2 = 46, kIsStreamCapturable = 50,  // the last one: RTX
};
}
namespace config {  // IRuntimeConfig
enum : size_t { kSetExecutionContextAllocationStrategy = 1, kSetDynamicShapesKernelSpecializationStrategy = 6 };  // 6: RTX
}

struct Object {
  void** table;  // [1]: the destructor that also frees
  void* impl;
};

struct Destroy {
  void operator()(Object* object) const { reinterpret_cast<void (*)(void*)>(object->table[1])(object); }
};
using Owned = std::unique_ptr<Object, Destroy>;

template <typename Result, typename... Arguments>
Result call(Object* object, size_t slot, Arguments... arguments) {
  void** const table = *static_cast<void***>(object->impl);
  return reinterpret_cast<Result (*)(void*, Arguments...)>(table[2 + slot])(object->impl, arguments...);
}

// ILogger 1.0, which the host program implements. The order of the virtual methods is the interface.
struct InterfaceInfo {
  const char* kind;
  int32_t major, minor;
};
class LoggerInterface {
 public:
  virtual int32_t api_language() const noexcept { return 0; }
  virtual InterfaceInfo interface_info() const noexcept { return {"ILogger", 1, 0}; }
  virtual ~LoggerInterface() noexcept = default;
  virtual void log(int32_t severity, const char* message) noexcept = 0;
};

}  // namespace nv
}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISERS_TENSORRT_API_H_
