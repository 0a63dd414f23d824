#include "device.h"

#include <string>

namespace ddpm_rt {
namespace {

constexpr const char* kLibraryName = "libddpm_rt_cuda.so";
constexpr int kLeastMajor = 8;  // what libddpm_rt_cuda.so has code for

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

// The folder this library was loaded from, with its slash; empty where unknown.
std::string own_folder() {
#ifndef _WIN32
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) != 0 && info.dli_fname != nullptr) {
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    if (slash != std::string::npos) return path.substr(0, slash + 1);
  }
#endif
  return "";
}

[[noreturn]] void refuse_device(const std::string& message) { throw Error(Code::kDevice, message); }

void check_version(const DeviceApi& api, const std::string& path) {
  const bool is_ours = api.version == kDeviceApiVersion && api.bytes == sizeof(DeviceApi) && api.row_version == kRowVersion &&
                       api.rng_version == kRngVersion && api.layout == device_layout();
  if (is_ours) return;
  refuse_device("cuda_library: expected device interface " + std::to_string(kDeviceApiVersion) + " with row version " +
                std::to_string(kRowVersion) + " and the layout of this build, got interface " + std::to_string(api.version) +
                " with row version " + std::to_string(api.row_version) + " in " + path +
                ": build both from the same sources");
}

}  // namespace

DevicePtr Device::open(const std::string& library, int ordinal) {
  std::shared_ptr<Device> device(new Device);
  const std::string folder = own_folder();
  const std::string wanted = " for cuda:" + std::to_string(ordinal);
  device->library_ = library.empty() ? folder + kLibraryName : library;
  std::string why;
  device->handle_ = DynamicLibrary::open(device->library_, &why);
  if (!device->handle_) {
    refuse_device("device: expected the GPU part of ddpm_rt" + wanted + ", got none: " + why +
                  " (looked for " + device->library_ + "; a build with -DDDPM_RT_CUDA=ON makes it)");
  }
  const auto entry = device->handle_.symbol<DeviceApiFn>(kDeviceApiSymbol);
  if (entry == nullptr) {
    refuse_device("cuda_library: expected a library with " + std::string(kDeviceApiSymbol) + ", got " + device->library_ + " without it");
  }
  device->api_ = entry();
  check_version(*device->api_, device->library_);

  const DeviceApi& api = *device->api_;
  api.versions(&device->driver_, &device->runtime_);
  int count = 0;
  const int error = api.device_count(&count);
  if (error == kDeviceDriverTooOld && device->driver_ == 0) {
    refuse_device("device: expected an NVIDIA driver" + wanted + ", got none (asked " + device->library_ + ")");
  }
  if (error == kDeviceDriverTooOld) {
    refuse_device("device: expected a driver for CUDA " + version_text(device->runtime_) + " or later, got one for CUDA " +
                  version_text(device->driver_) + ": update the driver");
  }
  if (error == kDeviceNone || (error == 0 && count == 0)) {
    refuse_device("device: expected a GPU" + wanted + ", got none (asked " + device->library_ + ", driver for CUDA " +
                  version_text(device->driver_) + ")");
  }
  device->check(error, "device");
  if (ordinal < 0 || ordinal >= count) {
    refuse_device("device: expected cuda:0 to cuda:" + std::to_string(count - 1) + ", got cuda:" + std::to_string(ordinal));
  }
  device->ordinal_ = ordinal;
  device->check(api.facts(ordinal, &device->facts_), "device");
  if (device->facts_.major < kLeastMajor) {
    refuse_device("device: expected compute capability " + std::to_string(kLeastMajor) + ".0 or later, got " +
                  std::to_string(device->facts_.major) + "." + std::to_string(device->facts_.minor) + " of " +
                  device->facts_.name);
  }
  return device;
}

uint64_t Device::free_memory() const {
  uint64_t free_bytes = 0, total = 0;
  check(api_->free_memory(&free_bytes, &total), "memory");
  return free_bytes;
}

void Device::refuse(int error, const std::string& what) const {
  const char* text = api_->error_text(error);
  throw Error(Code::kDevice, what + ": expected success, got error " + std::to_string(error) + " of " + api_->name + ": " +
                                 (text != nullptr ? text : "unknown"));
}

void Device::check(int error, const char* what) const {
  if (error != 0) refuse(error, what);
}

DeviceScope::DeviceScope(const Device& device) : device_(device) {
  device.check(device.api().current_device(&before_), "device");
  device.check(device.api().set_device(device.ordinal()), "device");
}

DeviceScope::~DeviceScope() {
  if (before_ != device_.ordinal()) device_.api().set_device(before_);
}

namespace {

[[noreturn]] void refuse_memory(const Device& device, int error, size_t bytes, const char* what, const char* kind) {
  uint64_t free_bytes = 0, total = 0;
  const bool is_known = device.api().free_memory(&free_bytes, &total) == 0;
  device.refuse(error, std::string(what) + ": " + std::to_string(bytes) + " bytes of " + kind + " memory" +
                           (is_known ? ", of which " + std::to_string(free_bytes) + " are free on the device" : ""));
}

}  // namespace

DeviceBuffer::DeviceBuffer(const DevicePtr& device, size_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = nullptr;
  const int error = device->api().allocate(&data, bytes);
  if (error != 0) refuse_memory(*device, error, bytes, what, "device");
  handle_ = DeviceHandle(device, data, device->api().release);
}

PinnedBuffer::PinnedBuffer(const DevicePtr& device, size_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = nullptr;
  const int error = device->api().allocate_pinned(&data, bytes);
  if (error != 0) refuse_memory(*device, error, bytes, what, "pinned host");
  handle_ = DeviceHandle(device, data, device->api().release_pinned);
}

DeviceStream::DeviceStream(const DevicePtr& device) {
  void* stream = nullptr;
  device->check(device->api().create_stream(&stream), "stream");
  handle_ = DeviceHandle(device, stream, device->api().destroy_stream);
}

void DeviceStream::copy(void* to, const void* from, size_t bytes, DeviceCopy kind) const {
  if (bytes == 0) return;
  device().check(handle_.api().copy(to, from, bytes, kind, get()), "copy");
}

void DeviceStream::zero(void* to, size_t bytes) const {
  if (bytes == 0) return;
  device().check(handle_.api().fill(to, 0, bytes, get()), "fill");
}

void DeviceStream::wait(const DeviceEvent& event) const { device().check(handle_.api().stream_wait(get(), event.get()), "stream wait"); }

void DeviceStream::synchronize() const { device().check(handle_.api().synchronize_stream(get()), "stream"); }

DeviceEvent::DeviceEvent(const DevicePtr& device, bool is_timed) {
  void* event = nullptr;
  device->check(device->api().create_event(&event, is_timed ? 1 : 0), "event");
  handle_ = DeviceHandle(device, event, device->api().destroy_event);
}

void DeviceEvent::record(const DeviceStream& stream) const {
  handle_.device().check(handle_.api().record_event(get(), stream.get()), "event");
}

bool DeviceEvent::is_reached() const {
  const int error = handle_.api().query_event(get());
  if (error == kDeviceNotReady) return false;
  handle_.device().check(error, "device");
  return true;
}

void DeviceEvent::synchronize() const { handle_.device().check(handle_.api().synchronize_event(get()), "event"); }

double DeviceEvent::seconds(const DeviceEvent& start, const DeviceEvent& end) {
  double seconds = 0;
  end.handle_.device().check(end.handle_.api().elapsed(start.get(), end.get(), &seconds), "event");
  return seconds;
}

DeviceGraph DeviceGraph::capture(const DevicePtr& device, const DeviceStream& stream, const std::function<void()>& work) {
  const DeviceApi& api = device->api();
  device->check(api.begin_capture(stream.get()), "capture");
  void* graph = nullptr;
  try {
    work();
  } catch (...) {
    if (api.end_capture(stream.get(), &graph) == 0 && graph != nullptr) api.destroy_graph(graph);
    throw;
  }
  device->check(api.end_capture(stream.get(), &graph), "capture");
  const DeviceHandle captured(device, graph, api.destroy_graph);
  void* exec = nullptr;
  device->check(api.instantiate(&exec, graph), "graph");
  DeviceGraph made;
  made.exec_ = DeviceHandle(device, exec, api.destroy_exec);
  return made;
}

void DeviceGraph::launch(const DeviceStream& stream) const { exec_.device().check(exec_.api().launch_graph(exec_.get(), stream.get()), "graph launch"); }

}  // namespace ddpm_rt
