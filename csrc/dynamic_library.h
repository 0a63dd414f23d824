// A shared library opened at run time: how the backends are reached without linking them.
#ifndef DDPM_RT_DYNAMIC_LIBRARY_H_
#define DDPM_RT_DYNAMIC_LIBRARY_H_

#include <string>
#include <utility>

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace ddpm_rt {

// Move-only. The code stays mapped after the handle is closed: thread pools inside a backend outlive our objects.
class DynamicLibrary {
 public:
  DynamicLibrary() = default;
  // Empty if it cannot be opened; `why` then holds the loader's words.
  static DynamicLibrary open(const std::string& path, std::string* why) {
    DynamicLibrary library;
#ifdef _WIN32
    const DWORD flags = path.find_first_of("/\\") == std::string::npos ? 0 : LOAD_WITH_ALTERED_SEARCH_PATH;
    HMODULE module = LoadLibraryExA(path.c_str(), nullptr, flags);
    if (module != nullptr) {
      HMODULE pinned;
      GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS,
                         reinterpret_cast<LPCSTR>(module), &pinned);
    } else {
      *why = path + ": error " + std::to_string(GetLastError());
    }
    library.handle_ = reinterpret_cast<void*>(module);
#else
    library.handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library.handle_ == nullptr) {
      const char* text = dlerror();
      *why = text != nullptr ? text : path + ": cannot be opened";
    }
#endif
    return library;
  }
  ~DynamicLibrary() { close(); }
  DynamicLibrary(DynamicLibrary&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  DynamicLibrary& operator=(DynamicLibrary&& other) noexcept {
    if (this != &other) {
      close();
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  DynamicLibrary(const DynamicLibrary&) = delete;
  DynamicLibrary& operator=(const DynamicLibrary&) = delete;

  explicit operator bool() const { return handle_ != nullptr; }

  // Null if the library has no such symbol.
  template <class Function>
  Function* symbol(const char* name) const {
#ifdef _WIN32
    return reinterpret_cast<Function*>(GetProcAddress(reinterpret_cast<HMODULE>(handle_), name));
#else
    return reinterpret_cast<Function*>(dlsym(handle_, name));
#endif
  }

 private:
  void close() {
    if (handle_ == nullptr) return;
#ifdef _WIN32
    FreeLibrary(reinterpret_cast<HMODULE>(handle_));
#else
    dlclose(handle_);
#endif
  }

  void* handle_ = nullptr;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_DYNAMIC_LIBRARY_H_
