// Move-only owners over DeviceApi: streams, events, memory, graphs. Failures are Error(kDevice); destructors let errors
// pass, since the driver may be gone before them. Nothing uses a default stream.
//
// Methods neither allocate on the device nor wait for it unless they say so. Constructors of buffers, streams, events and
// graphs allocate; releasing memory may wait for the device.
#ifndef DDPM_RT_DEVICE_H_
#define DDPM_RT_DEVICE_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "device_api.h"
#include "dynamic_library.h"
#include "error.h"

namespace ddpm_rt {

inline size_t bytes_of(GpuType type) { return type == kGpuF32 ? 4 : 2; }

class Device {
 public:
  // `library`: a path; empty: libddpm_rt_cuda.so beside this library. Throws Error(kDevice): no library, another version
  // of it, no driver or too old a one, no device, no such device, too old a device.
  static std::shared_ptr<const Device> open(const std::string& library, int ordinal);

  const DeviceApi& api() const { return *api_; }
  const DeviceFacts& facts() const { return facts_; }
  int ordinal() const { return ordinal_; }
  int driver_version() const { return driver_; }
  int runtime_version() const { return runtime_; }
  const std::string& library() const { return library_; }
  uint64_t free_memory() const;

  void check(int error, const char* what) const;  // throws Error(kDevice) "what: ..." unless 0
  [[noreturn]] void refuse(int error, const std::string& what) const;

 private:
  Device() = default;
  DynamicLibrary handle_;
  const DeviceApi* api_ = nullptr;
  std::string library_;
  DeviceFacts facts_{};
  int ordinal_ = 0, driver_ = 0, runtime_ = 0;
};

using DevicePtr = std::shared_ptr<const Device>;

// Makes `device` the calling thread's for its own life: another user of the device on this thread keeps theirs.
class DeviceScope {
 public:
  explicit DeviceScope(const Device& device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  const Device& device_;
  int before_ = 0;
};

// A handle of the runtime, and how it is given back.
class DeviceHandle {
 public:
  DeviceHandle() = default;
  DeviceHandle(DevicePtr device, void* handle, int (*destroy)(void*))
      : device_(std::move(device)), handle_(handle), destroy_(destroy) {}
  ~DeviceHandle() { reset(); }
  DeviceHandle(DeviceHandle&& other) noexcept
      : device_(std::move(other.device_)), handle_(std::exchange(other.handle_, nullptr)), destroy_(other.destroy_) {}
  DeviceHandle& operator=(DeviceHandle&& other) noexcept {
    if (this != &other) {
      reset();
      device_ = std::move(other.device_);
      handle_ = std::exchange(other.handle_, nullptr);
      destroy_ = other.destroy_;
    }
    return *this;
  }
  DeviceHandle(const DeviceHandle&) = delete;
  DeviceHandle& operator=(const DeviceHandle&) = delete;

  void* get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }
  const Device& device() const { return *device_; }
  const DeviceApi& api() const { return device_->api(); }

 private:
  void reset() {
    if (handle_ != nullptr) destroy_(std::exchange(handle_, nullptr));
  }
  DevicePtr device_;
  void* handle_ = nullptr;
  int (*destroy_)(void*) = nullptr;
};

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(const DevicePtr& device, size_t bytes, const char* what);  // uninitialised; `what` for the error
  size_t bytes() const { return bytes_; }
  explicit operator bool() const { return static_cast<bool>(handle_); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(handle_.get());
  }

 private:
  DeviceHandle handle_;
  size_t bytes_ = 0;
};

class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(const DevicePtr& device, size_t bytes, const char* what);  // uninitialised
  size_t bytes() const { return bytes_; }
  explicit operator bool() const { return static_cast<bool>(handle_); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(handle_.get());
  }

 private:
  DeviceHandle handle_;
  size_t bytes_ = 0;
};

class DeviceEvent;

class DeviceStream {
 public:
  DeviceStream() = default;
  explicit DeviceStream(const DevicePtr& device);
  void* get() const { return handle_.get(); }
  void copy(void* to, const void* from, size_t bytes, DeviceCopy kind) const;  // host memory must be pinned
  void zero(void* to, size_t bytes) const;
  void wait(const DeviceEvent& event) const;  // the stream waits, not the caller
  void synchronize() const;             // the caller waits for all work so far
  const Device& device() const { return handle_.device(); }

 private:
  DeviceHandle handle_;
};

class DeviceEvent {
 public:
  DeviceEvent() = default;
  DeviceEvent(const DevicePtr& device, bool is_timed);
  void record(const DeviceStream& stream) const;
  bool is_reached() const;   // of the latest record; throws what the device failed with
  void synchronize() const;  // the caller waits
  void* get() const { return handle_.get(); }
  // Between two timed events that were reached.
  static double seconds(const DeviceEvent& start, const DeviceEvent& end);

 private:
  DeviceHandle handle_;
};

class DeviceGraph {
 public:
  DeviceGraph() = default;
  // What `work` puts on the stream, recorded and not run. What `work` throws ends the capture and passes.
  static DeviceGraph capture(const DevicePtr& device, const DeviceStream& stream, const std::function<void()>& work);
  void launch(const DeviceStream& stream) const;
  explicit operator bool() const { return static_cast<bool>(exec_); }

 private:
  DeviceHandle exec_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_DEVICE_H_
