// The owners over the emulated device: order on a stream, waits, graphs that do not run when they are recorded, typed errors.
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "emulated.h"
#include "expect_error.h"

using namespace ddpm_rt;

namespace {

// A stream's work as the host sees it: a pinned block copied through device memory.
struct Line {
  explicit Line(const DevicePtr& device, size_t bytes = 1 << 20)
      : stream(device), memory(device, bytes, "memory"), host(device, bytes, "host"), back(device, bytes, "back") {}
  void send() const { stream.copy(memory.as<void>(), host.as<void>(), memory.bytes(), DeviceCopy::kToDevice); }
  void fetch() const { stream.copy(back.as<void>(), memory.as<void>(), memory.bytes(), DeviceCopy::kToHost); }
  void set(char value) const { std::memset(host.as<void>(), value, host.bytes()); }
  bool holds(char value) const {
    for (size_t i = 0; i < back.bytes(); ++i) {
      if (back.as<char>()[i] != value) return false;
    }
    return true;
  }
  DeviceStream stream;
  DeviceBuffer memory;
  PinnedBuffer host, back;
};

void test_facts() {
  const DevicePtr device = emulated::open(1);
  CHECK(device->ordinal() == 1 && std::string(device->api().name) == "emulated");
  CHECK(device->facts().major == 9 && device->driver_version() == 13000);
  CHECK(device->free_memory() > 0 && device->facts().memory_bytes >= device->free_memory());
  int current = -1;
  device->api().current_device(&current);
  CHECK(current == 0);
  {
    const DeviceScope scope(*device);
    device->api().current_device(&current);
    CHECK(current == 1);
  }
  device->api().current_device(&current);
  CHECK(current == 0);
}

void test_order_and_waits() {
  const DevicePtr device = emulated::open();
  const Line line(device);
  line.set(7);
  line.send();
  line.fetch();
  const DeviceEvent done(device, false);
  done.record(line.stream);
  while (!done.is_reached()) std::this_thread::yield();
  CHECK(line.holds(7));

  // Another stream waits for the first without the host doing so.
  const Line other(device);
  line.set(9);
  line.send();
  done.record(line.stream);
  other.stream.wait(done);
  other.stream.copy(other.back.as<void>(), line.memory.as<void>(), line.memory.bytes(), DeviceCopy::kToHost);
  other.stream.synchronize();
  CHECK(other.holds(9));

  const DeviceEvent start(device, true), end(device, true);
  start.record(line.stream);
  line.fetch();
  end.record(line.stream);
  end.synchronize();
  CHECK(DeviceEvent::seconds(start, end) > 0);
}

void test_graphs() {
  const DevicePtr device = emulated::open();
  const Line line(device);
  line.stream.zero(line.memory.as<void>(), line.memory.bytes());
  line.set(3);
  const DeviceGraph graph = DeviceGraph::capture(device, line.stream, [&] { line.send(); });
  line.fetch();
  line.stream.synchronize();
  CHECK(line.holds(0));  // recorded, not run
  graph.launch(line.stream);
  line.fetch();
  line.stream.synchronize();
  CHECK(line.holds(3));
  line.set(4);
  graph.launch(line.stream);  // reads what lies there now
  line.fetch();
  line.stream.synchronize();
  CHECK(line.holds(4));

  // A raw graph of somebody else's as a node.
  const DeviceApi& api = device->api();
  void* raw = nullptr;
  CHECK(api.begin_capture(line.stream.get()) == 0);
  line.send();
  CHECK(api.end_capture(line.stream.get(), &raw) == 0);
  const DeviceGraph parent = DeviceGraph::capture(device, line.stream, [&] {
    device->check(api.add_child(line.stream.get(), raw), "child");
    line.fetch();
  });
  api.destroy_graph(raw);
  line.set(5);
  parent.launch(line.stream);
  line.stream.synchronize();
  CHECK(line.holds(5));

  // What may not happen during a capture spoils it, and the stream is as good as before.
  CHECK_ERROR(Code::kDevice, DeviceGraph::capture(device, line.stream, [&] { DeviceBuffer(device, 16, "late"); }), "late");
  CHECK_ERROR(Code::kDevice, DeviceGraph::capture(device, line.stream, [&] { line.stream.synchronize(); }), "stream");
  CHECK_ERROR(Code::kBackend, DeviceGraph::capture(device, line.stream, [&] { throw Error(Code::kBackend, "mine: expected x, got y"); }), "mine");
  line.set(6);
  line.send();
  line.fetch();
  line.stream.synchronize();
  CHECK(line.holds(6));
}

void test_moves() {
  const DevicePtr device = emulated::open();
  const int64_t before = emulated::get("allocate") - emulated::get("release");
  {
    DeviceBuffer a(device, 64, "a");
    void* const at = a.as<void>();
    DeviceBuffer b = std::move(a);
    CHECK(!a && b.as<void>() == at);
    a = DeviceBuffer(device, 32, "c");
    b = std::move(a);
    CHECK(b.as<void>() != at && b.bytes() == 32);
    const DeviceBuffer empty(device, 0, "none");
    CHECK(!empty);
  }
  CHECK(emulated::get("allocate") - emulated::get("release") == before);
}

void test_errors() {
  const DevicePtr device = emulated::open();
  const Line line(device, 256);
  emulated::set("fail allocate", 1);
  CHECK_ERROR(Code::kDevice, DeviceBuffer(device, 1000, "states"), "states: 1000 bytes");
  DeviceBuffer again(device, 1000, "states");
  CHECK_ERROR(Code::kDevice, DeviceBuffer(device, size_t{1} << 60, "too much"), "out of memory");
  std::vector<char> pageable(256);
  CHECK_ERROR(Code::kDevice, line.stream.copy(line.memory.as<void>(), pageable.data(), 256, DeviceCopy::kToDevice), "copy");
  emulated::set("fail to_device", 2);
  line.send();
  CHECK_ERROR(Code::kDevice, line.send(), "unspecified launch failure");
  line.send();
  line.stream.synchronize();

  CHECK_ERROR(Code::kDevice, Device::open("/nowhere/libddpm_rt_cuda.so", 0), "/nowhere/libddpm_rt_cuda.so");
  CHECK_ERROR(Code::kDevice, Device::open("", 0), "libddpm_rt_cuda.so");
  CHECK_ERROR(Code::kDevice, Device::open("libm.so.6", 0), "ddpm_rt_device_api");
  CHECK_ERROR(Code::kDevice, emulated::open(7), "cuda:0 to cuda:1, got cuda:7");
  CHECK_ERROR(Code::kDevice, emulated::open(-1), "cuda:-1");
  emulated::set("capability", 7);
  CHECK_ERROR(Code::kDevice, emulated::open(), "compute capability 8.0 or later, got 7.0");
  emulated::set("capability", 9);
  emulated::set("device_error", kDeviceDriverTooOld);
  emulated::set("driver", 0);
  CHECK_ERROR(Code::kDevice, emulated::open(), "expected an NVIDIA driver for cuda:0, got none");
  emulated::set("driver", 11040);
  CHECK_ERROR(Code::kDevice, emulated::open(), "CUDA 13.0 or later, got one for CUDA 11.4");
  emulated::set("driver", 13000);
  emulated::set("device_error", kDeviceNone);
  CHECK_ERROR(Code::kDevice, emulated::open(), "expected a GPU for cuda:0, got none");
  emulated::set("device_error", 0);
  emulated::set("devices", 0);
  CHECK_ERROR(Code::kDevice, emulated::open(), "expected a GPU for cuda:0, got none");
  emulated::set("devices", 2);
  CHECK(emulated::open() != nullptr);
}

// The library itself: with a GPU it opens, without one it loads and says so.
void test_the_real_library() {
#if defined(DDPM_RT_REAL)
  DevicePtr device;
  const std::string refusal = message_of(Code::kDevice, [&] {
    device = Device::open(DDPM_RT_REAL, 0);
    throw Error(Code::kDevice, "");
  });
  if (device == nullptr) {
    std::printf("%s\n", refusal.c_str());
    CHECK(contains(refusal, "expected an NVIDIA driver") || contains(refusal, "expected a GPU"));
    return;
  }
  const DeviceScope scope(*device);
  const Line line(device);
  line.set(11);
  line.send();
  line.fetch();
  line.stream.synchronize();
  CHECK(line.holds(11));
#endif
}

}  // namespace

int main() {
  test_facts();
  test_order_and_waits();
  test_graphs();
  test_moves();
  test_errors();
  test_the_real_library();
  return finish();
}
