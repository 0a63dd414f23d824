// DeviceApi over host memory. Stricter than CUDA where CUDA forgives: asynchronous copies need pinned host memory, null
// streams are refused, and a call that would wait or allocate during a capture fails and spoils the capture.
#include <algorithm>
#include <cstring>
#include <map>
#include <new>

#include "cuda_emulation.h"
#include "device_api.h"
#include "emulated_control.h"
#include "emulated_stream.h"

namespace ddpm_rt {

EmulatedControl& emulated_control() {
  static EmulatedControl control;
  return control;
}

namespace {

constexpr int kInvalid = 1, kNoMemory = 2, kInvalidDevice = 101, kCaptureUnsupported = 900, kCaptureSpoiled = 901, kInjected = 719;
constexpr size_t kAlign = 256;
constexpr uint64_t kMemory = uint64_t{8} << 30;

#define DDPM_RT_COUNT(kind, error) \
  if (counted(&emulated_control().kind, &emulated_control().fail_##kind)) return error

thread_local int current = 0;
thread_local bool is_capturing = false, is_spoiled = false;

// Where memory came from: a copy from elsewhere is refused.
class Blocks {
 public:
  void* add(size_t bytes) {
    void* data = ::operator new(bytes, std::align_val_t{kAlign}, std::nothrow);
    if (data == nullptr) return nullptr;
    std::memset(data, 0xA5, bytes);  // nothing may rely on fresh memory
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_[static_cast<char*>(data)] = bytes;
    return data;
  }
  bool remove(void* data) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (blocks_.erase(static_cast<char*>(data)) == 0) return false;
    }
    ::operator delete(data, std::align_val_t{kAlign});
    return true;
  }
  bool holds(const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    std::lock_guard<std::mutex> lock(mutex_);
    auto after = blocks_.upper_bound(const_cast<char*>(from));
    if (after == blocks_.begin()) return false;
    --after;
    return from + bytes <= after->first + after->second;
  }
  uint64_t used() {
    std::lock_guard<std::mutex> lock(mutex_);
    uint64_t total = 0;
    for (const auto& block : blocks_) total += block.second;
    return total;
  }

 private:
  std::mutex mutex_;
  std::map<char*, size_t> blocks_;
};

Blocks& device_blocks() {
  static Blocks* blocks = new Blocks;  // outlives whatever is released at exit
  return *blocks;
}
Blocks& pinned_blocks() {
  static Blocks* blocks = new Blocks;
  return *blocks;
}

// A call that CUDA forbids while this thread captures.
bool is_forbidden() {
  if (is_capturing) is_spoiled = true;
  return is_capturing;
}

const char* error_text(int error) {
  switch (error) {
    case 0: return "no error";
    case kInvalid: return "invalid argument";
    case kNoMemory: return "out of memory";
    case kDeviceDriverTooOld: return "CUDA driver version is insufficient for CUDA runtime version";
    case kDeviceNone: return "no CUDA-capable device is detected";
    case kInvalidDevice: return "invalid device ordinal";
    case kDeviceNotReady: return "device not ready";
    case kInjected: return "unspecified launch failure";
    case kCaptureUnsupported: return "operation not permitted when stream is capturing";
    case kCaptureSpoiled: return "operation failed due to a previous error during capture";
  }
  return "unknown error";
}

int versions(int* driver, int* runtime) {
  *driver = static_cast<int>(emulated_control().driver);
  *runtime = static_cast<int>(emulated_control().runtime);
  return 0;
}
int device_count(int* count) {
  *count = static_cast<int>(emulated_control().devices);
  return static_cast<int>(emulated_control().device_error);
}
int facts(int device, DeviceFacts* facts) {
  if (device < 0 || device >= emulated_control().devices) return kInvalidDevice;
  *facts = DeviceFacts{};
  std::strcpy(facts->name, "emulated device");
  facts->major = static_cast<int>(emulated_control().capability);
  facts->multiprocessors = 1;
  facts->is_host_memory = 1;
  facts->memory_bytes = kMemory;
  return 0;
}
int current_device(int* device) { return *device = current, 0; }
int set_device(int device) {
  if (device < 0 || device >= emulated_control().devices) return kInvalidDevice;
  return current = device, 0;
}
int free_memory(uint64_t* free_bytes, uint64_t* total) {
  *total = kMemory;
  *free_bytes = kMemory - std::min(kMemory, device_blocks().used());
  return 0;
}

int allocate_from(Blocks& blocks, void** data, size_t bytes) {
  if (is_forbidden()) return kCaptureUnsupported;
  if (bytes > kMemory) return kNoMemory;
  *data = blocks.add(bytes);
  return *data != nullptr ? 0 : kNoMemory;
}
int allocate(void** data, size_t bytes) {
  DDPM_RT_COUNT(allocate, kNoMemory);
  return allocate_from(device_blocks(), data, bytes);
}
int allocate_pinned(void** data, size_t bytes) {
  DDPM_RT_COUNT(allocate_pinned, kNoMemory);
  return allocate_from(pinned_blocks(), data, bytes);
}
int release(void* data) {
  DDPM_RT_COUNT(release, kInjected);
  if (is_forbidden()) return kCaptureUnsupported;
  return device_blocks().remove(data) ? 0 : kInvalid;
}
int release_pinned(void* data) {
  DDPM_RT_COUNT(release_pinned, kInjected);
  if (is_forbidden()) return kCaptureUnsupported;
  return pinned_blocks().remove(data) ? 0 : kInvalid;
}

bool is_device(const void* data, size_t bytes) { return device_blocks().holds(data, bytes); }
bool is_pinned(const void* data, size_t bytes) { return pinned_blocks().holds(data, bytes); }

int copy(void* to, const void* from, size_t bytes, DeviceCopy kind, void* stream) {
  bool is_right = stream != nullptr;
  if (kind == DeviceCopy::kToDevice) {
    DDPM_RT_COUNT(to_device, kInjected);
    is_right = is_right && is_pinned(from, bytes) && is_device(to, bytes);
  } else if (kind == DeviceCopy::kToHost) {
    DDPM_RT_COUNT(to_host, kInjected);
    is_right = is_right && is_device(from, bytes) && is_pinned(to, bytes);
  } else {
    DDPM_RT_COUNT(on_device, kInjected);
    is_right = is_right && is_device(from, bytes) && is_device(to, bytes);
  }
  if (!is_right) return kInvalid;
  emulated_enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return 0;
}
int fill(void* to, int byte, size_t bytes, void* stream) {
  DDPM_RT_COUNT(fill, kInjected);
  if (stream == nullptr || !is_device(to, bytes)) return kInvalid;
  emulated_enqueue(stream, [=] { std::memset(to, byte, bytes); });
  return 0;
}

EmulatedStream* stream_of(void* stream) { return static_cast<EmulatedStream*>(stream); }

int create_stream(void** stream) { return *stream = new EmulatedStream, 0; }
int destroy_stream(void* stream) { return delete stream_of(stream), 0; }
int synchronize_stream(void* stream) {
  DDPM_RT_COUNT(synchronize, kInjected);
  if (stream == nullptr) return kInvalid;
  if (is_forbidden()) return kCaptureUnsupported;
  stream_of(stream)->synchronize();
  return 0;
}

// The event's own reference: a queued record may outlive the handle.
using SharedEvent = std::shared_ptr<EmulatedEvent>;
SharedEvent& shared(void* event) { return *static_cast<SharedEvent*>(event); }

int create_event(void** event, int) { return *event = new SharedEvent(std::make_shared<EmulatedEvent>()), 0; }
int destroy_event(void* event) { return delete static_cast<SharedEvent*>(event), 0; }
int record_event(void* event, void* stream) {
  DDPM_RT_COUNT(record, kInjected);
  if (stream == nullptr) return kInvalid;
  if (stream_of(stream)->is_capturing()) return is_spoiled = true, kCaptureUnsupported;
  const SharedEvent e = shared(event);
  uint64_t record;
  {
    std::lock_guard<std::mutex> lock(e->mutex);
    record = ++e->recorded;
  }
  emulated_enqueue(stream, [e, record] {
    std::lock_guard<std::mutex> lock(e->mutex);
    e->done = record;
    e->when = std::chrono::steady_clock::now();
    e->reached.notify_all();
  });
  return 0;
}
int stream_wait(void* stream, void* event) {
  DDPM_RT_COUNT(stream_wait, kInjected);
  if (stream == nullptr) return kInvalid;
  if (stream_of(stream)->is_capturing()) return is_spoiled = true, kCaptureUnsupported;
  const SharedEvent e = shared(event);
  uint64_t record;
  {
    std::lock_guard<std::mutex> lock(e->mutex);
    record = e->recorded;
  }
  emulated_enqueue(stream, [e, record] { e->wait_for(record); });
  return 0;
}
int query_event(void* event) {
  DDPM_RT_COUNT(query, kInjected);
  if (is_forbidden()) return kCaptureUnsupported;
  const SharedEvent e = shared(event);
  std::lock_guard<std::mutex> lock(e->mutex);
  return e->done >= e->recorded ? 0 : kDeviceNotReady;
}
int synchronize_event(void* event) {
  DDPM_RT_COUNT(synchronize, kInjected);
  if (is_forbidden()) return kCaptureUnsupported;
  const SharedEvent e = shared(event);
  uint64_t record;
  {
    std::lock_guard<std::mutex> lock(e->mutex);
    record = e->recorded;
  }
  e->wait_for(record);
  return 0;
}
int elapsed(void* start, void* end, double* seconds) {
  *seconds = std::chrono::duration<double>(shared(end)->when - shared(start)->when).count();
  return 0;
}

int begin_capture(void* stream) {
  DDPM_RT_COUNT(capture, kInjected);
  if (stream == nullptr || is_capturing) return kInvalid;
  is_capturing = true;
  is_spoiled = false;
  stream_of(stream)->begin_capture();
  return 0;
}
int end_capture(void* stream, void** graph) {
  *graph = nullptr;
  if (!is_capturing) return kInvalid;
  is_capturing = false;
  const std::shared_ptr<const EmulatedNodes> nodes = stream_of(stream)->end_capture();
  if (is_spoiled) return kCaptureSpoiled;
  *graph = new EmulatedGraph{nodes};
  return 0;
}
void put_nodes(void* stream, const std::shared_ptr<const EmulatedNodes>& nodes) {
  emulated_enqueue(stream, [nodes] {
    for (const EmulatedWork& node : *nodes) node();
  });
}
int add_child(void* stream, void* graph) {
  DDPM_RT_COUNT(add_child, kInjected);
  if (stream == nullptr || graph == nullptr || !stream_of(stream)->is_capturing()) return kInvalid;
  put_nodes(stream, static_cast<EmulatedGraph*>(graph)->nodes);
  return 0;
}
int instantiate(void** exec, void* graph) {
  DDPM_RT_COUNT(instantiate, kNoMemory);
  *exec = new EmulatedGraph{static_cast<EmulatedGraph*>(graph)->nodes};
  return 0;
}
int launch_graph(void* exec, void* stream) {
  DDPM_RT_COUNT(launch_graph, kInjected);
  if (stream == nullptr) return kInvalid;
  put_nodes(stream, static_cast<EmulatedGraph*>(exec)->nodes);
  return 0;
}
int destroy_graph(void* graph) { return delete static_cast<EmulatedGraph*>(graph), 0; }

int step(const GpuLane& lane, uint32_t needs, void* stream) {
  DDPM_RT_COUNT(step, kInjected);
  return stream != nullptr ? launch_step(lane, needs, stream) : kInvalid;
}
int advance(const GpuLane& lane, void* stream) {
  DDPM_RT_COUNT(advance, kInjected);
  return stream != nullptr ? launch_advance(lane, stream) : kInvalid;
}
int apply(const GpuLane& lane, const GpuPacket& packet, void* stream) {
  DDPM_RT_COUNT(apply, kInjected);
  return stream != nullptr ? launch_apply(lane, packet, stream) : kInvalid;
}
int finish(const GpuLane& lane, const GpuFinish* items, uint32_t count, void* stream) {
  DDPM_RT_COUNT(finish, kInjected);
  return stream != nullptr ? launch_finish(lane, items, count, stream) : kInvalid;
}
int gaussian_mixture(const GpuMixture& mixture, const GpuNetwork& network, uint64_t elements, int32_t first, uint32_t count,
                     void* stream) {
  DDPM_RT_COUNT(network, kInjected);
  return stream != nullptr ? launch_gaussian_mixture(mixture, network, elements, first, count, stream) : kInvalid;
}

DeviceApi make_api() {
  cuda_emulation::enqueue = &emulated_enqueue;
  DeviceApi api{};
  fill_device_header(&api, "emulated");
#define DDPM_RT_FILL(name) api.name = &name;
  DDPM_RT_FILL(error_text) DDPM_RT_FILL(versions) DDPM_RT_FILL(device_count) DDPM_RT_FILL(facts)
  DDPM_RT_FILL(current_device) DDPM_RT_FILL(set_device) DDPM_RT_FILL(free_memory)
  DDPM_RT_FILL(allocate) DDPM_RT_FILL(release) DDPM_RT_FILL(allocate_pinned) DDPM_RT_FILL(release_pinned)
  DDPM_RT_FILL(copy) DDPM_RT_FILL(fill)
  DDPM_RT_FILL(create_stream) DDPM_RT_FILL(destroy_stream) DDPM_RT_FILL(synchronize_stream) DDPM_RT_FILL(stream_wait)
  DDPM_RT_FILL(create_event) DDPM_RT_FILL(destroy_event) DDPM_RT_FILL(record_event) DDPM_RT_FILL(query_event)
  DDPM_RT_FILL(synchronize_event) DDPM_RT_FILL(elapsed)
  DDPM_RT_FILL(begin_capture) DDPM_RT_FILL(end_capture) DDPM_RT_FILL(add_child) DDPM_RT_FILL(instantiate)
  DDPM_RT_FILL(launch_graph) DDPM_RT_FILL(destroy_graph)
  DDPM_RT_FILL(step) DDPM_RT_FILL(advance) DDPM_RT_FILL(apply) DDPM_RT_FILL(finish) DDPM_RT_FILL(gaussian_mixture)
#undef DDPM_RT_FILL
  api.destroy_exec = &destroy_graph;
  return api;
}

}  // namespace
}  // namespace ddpm_rt

extern "C" {

__attribute__((visibility("default"))) const ddpm_rt::DeviceApi* ddpm_rt_device_api() {
  static const ddpm_rt::DeviceApi api = ddpm_rt::make_api();
  return &api;
}

// Host work in a stream's order, or recorded: for networks that the tests write themselves.
__attribute__((visibility("default"))) void ddpm_rt_emulated_enqueue(void* stream, void (*work)(void*), void* user) {
  ddpm_rt::emulated_enqueue(stream, [=] { work(user); });
}

// 0 where there is no number of that name.
__attribute__((visibility("default"))) int ddpm_rt_emulated_set(const char* name, int64_t value) {
  std::atomic<int64_t>* number = ddpm_rt::emulated_control().find(name);
  if (number != nullptr) *number = value;
  return number != nullptr;
}
__attribute__((visibility("default"))) int64_t ddpm_rt_emulated_get(const char* name) {
  std::atomic<int64_t>* number = ddpm_rt::emulated_control().find(name);
  return number != nullptr ? number->load() : -1;
}

}  // extern "C"
