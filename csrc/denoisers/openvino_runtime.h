// The library with one core, its errors as exceptions, its objects owned.
#ifndef DDPM_RT_DENOISERS_OPENVINO_RUNTIME_H_
#define DDPM_RT_DENOISERS_OPENVINO_RUNTIME_H_

#include <memory>
#include <string>
#include <vector>

#include "denoisers/openvino_api.h"
#include "dynamic_library.h"
#include "error.h"

namespace ddpm_rt {
namespace openvino {

constexpr const char* kDevice = "CPU";

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

constexpr const char* kInstall = "; `pip install openvino`, or name libopenvino_c in BackendOptions.library";

inline DynamicLibrary open_library(const std::string& path) {
  std::string why;
  if (!path.empty()) {
    DynamicLibrary library = DynamicLibrary::open(path, &why);
    if (!library) throw Error(Code::kBackend, "openvino: expected a library, got: " + why + kInstall);
    return library;
  }
#if defined(_WIN32)
  const std::vector<std::string> names{"openvino_c.dll"};
  const std::string tried = names[0];
#elif defined(__APPLE__)
  const std::vector<std::string> names{"libopenvino_c.dylib"};
  const std::string tried = names[0];
#else
  // Wheels and distributions name the library by release: .so.2641 is 2026.4.1.
  std::vector<std::string> names{"libopenvino_c.so"};
  for (int year = 29; year >= 24; --year) {
    for (int patch = 69; patch >= 0; --patch) {
      if (patch % 10 <= 3) names.push_back("libopenvino_c.so." + std::to_string(100 * year + patch));
    }
  }
  const std::string tried = names[0] + " and " + names.back() + " to " + names[1];
#endif
  for (const std::string& name : names) {
    DynamicLibrary library = DynamicLibrary::open(name, &why);
    if (library) return library;
  }
  throw Error(Code::kBackend, "openvino: expected a library on the loader's path, got none of " + tried + kInstall);
}

// The library, resolved, with one core.
class Runtime {
 public:
  explicit Runtime(const std::string& path)
      : library_(open_library(path)), api_(resolve(library_)), core_(nullptr, api_.core_free) {
    core_ = make<Core>("ov_core_create", api_.core_free, api_.core_create);
    Version version{};
    check(api_.get_version(&version), "ov_get_openvino_version");
    version_ = version.build != nullptr ? version.build : "";
    api_.version_free(&version);
  }

  const Api& api() const { return api_; }
  const Core* core() const { return core_.get(); }
  const std::string& version() const { return version_; }

  void check(Status status, const char* function) const {
    if (status == 0) return;
    const char* kind = api_.get_error_info(status);
    std::string message = std::string("openvino: ") + function + " failed: " + (kind != nullptr ? kind : "unknown");
    if (api_.get_last_err_msg != nullptr) {
      if (const char* last = api_.get_last_err_msg()) {
        message += std::string(": ") + last;
        api_.free(last);
      }
    }
    throw Error(Code::kBackend, message.substr(0, 2000));
  }

  // Calls function(arguments..., &object) and owns what it made.
  template <class T, class Function, class... Arguments>
  Owned<T> make(const char* name, void (*release)(T*), Function function, Arguments... arguments) const {
    T* object = nullptr;
    check(function(arguments..., &object), name);
    return Owned<T>(object, release);
  }

  std::string take(char* value) const {
    std::string text = value != nullptr ? value : "";
    api_.free(value);
    return text;
  }

 private:
  DynamicLibrary library_;
  Api api_;
  Owned<Core> core_;
  std::string version_;
};

// Throws unless the device computes in this precision: the plug-in would fall back without a word.
inline std::string precision_hint(const Runtime& runtime, const std::string& precision) {
  if (precision == "fp32") return "f32";
  const bool bf16 = precision == "bf16";
  if (!bf16 && precision != "fp16") {
    throw Error(Code::kBackend, "precision: expected fp32, bf16 or fp16 for openvino, got " + precision);
  }
  char* value = nullptr;
  runtime.check(runtime.api().core_get_property(runtime.core(), kDevice, "OPTIMIZATION_CAPABILITIES", &value),
                "ov_core_get_property");
  const std::string has = runtime.take(value);
  if (has.find(bf16 ? "BF16" : "FP16") == std::string::npos) {
    throw Error(Code::kBackend, "precision: expected one this CPU computes in (" + has + "), got " + precision);
  }
  return bf16 ? "bf16" : "f16";
}

}  // namespace openvino
}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISERS_OPENVINO_RUNTIME_H_
