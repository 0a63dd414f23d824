// The interface of networks on a device, beside denoiser.h: limits / prepare / bind / enqueue.
//
// A lane packs the evaluations of one tick into lists in device memory (GpuNetwork) and asks for calls over stretches of
// them. A call runs `bucket` rows from place `first` on; rows past those in use are zero. Nothing is copied: the network
// reads and writes the lane's lists, in the stream's order.
#ifndef DDPM_RT_DEVICE_DENOISER_H_
#define DDPM_RT_DEVICE_DENOISER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "native_engine.h"
#include "spec.h"

namespace ddpm_rt {

struct DeviceLimits {
  size_t in_elements = 0;          // per row of in, out
  size_t out_elements = 0;
  GpuType in_type = kGpuF32, out_type = kGpuF32;
  GpuLayout layout = kGpuNchw;     // of both
  size_t rows_bytes = 0;           // > 0: the network reads `rows` instead of t and label; embed() fills them
  bool takes_label = false;
  bool any_batch = false;          // bucket sizes are free, and a row's bits do not depend on its neighbours
  bool is_capturable = false;      // enqueue may run while the stream captures
  bool has_graphs = false;         // raw_graph answers
  int max_bucket = 256;
};

struct DeviceCall {
  int32_t bucket, first;
};

class DeviceDenoiser {
 public:
  virtual ~DeviceDenoiser() = default;
  virtual const DeviceLimits& limits() const = 0;
  virtual std::string describe() const = 0;  // one line of JSON for info(): backend, version, precision, device
  // The lists all later calls use. Called once per lane before anything else.
  virtual void bind(const GpuNetwork& network) = 0;
  // Makes calls of this bucket runnable and warms them up; slow; idempotent; may allocate and wait. Throws Error(kBackend).
  virtual void prepare(int bucket, const DeviceStream& stream) = 0;
  // Puts one call on the stream. Throws Error(kBackend), with nothing that was put there reading or writing other rows.
  virtual void enqueue(const DeviceCall& call, const DeviceStream& stream) = 0;
  // With has_graphs: a raw graph that does the same as enqueue, owned by the denoiser. May allocate, wait, and run the call
  // on a stream of its own: the lane's is idle.
  virtual void* raw_graph(const DeviceCall& call);
  // With rows_bytes > 0: rows [n, rows_bytes] in device memory, for (t[i], label[i]) in host memory, ready in the stream's
  // order; the arrays of t and label may change after the return. May allocate and wait.
  virtual void embed(const float* t, const int64_t* label, size_t n, void* rows, const DeviceStream& stream);
};

// A host program's network. Each function returns null, or its error's text, which must live until the next call.
struct DeviceFunctions {
  std::string name, version, precision = "fp32";  // letters, digits and ._+- only
  DeviceLimits limits;
  struct Call {
    const void* x;        // [count, ...] device memory, as all that follows
    const float* t;
    const int64_t* label;
    const void* rows;
    void* out;
    size_t count;
    void* stream;
  };
  std::function<const char*(const Call&)> enqueue;
  std::function<const char*(const Call&, void** graph)> capture;  // with has_graphs
  std::function<const char*(const float* t, const int64_t* label, size_t count, void* rows, void* stream)> embed;
};

// Compiled engines to choose from, of one precision of the denoiser. `library`: paths to choose from, with ":" between
// them; empty: the loader's names.
struct NativeOptions {
  std::vector<NativeEngine> engines;
  std::string precision, library;
  std::string remedy, remedy_for_gpu;  // "; COMMAND": what makes a fitting engine, and one for this very GPU; for messages
};

std::unique_ptr<DeviceDenoiser> make_gaussian_mixture_gpu(const ModelSpec&, const Plan&, const DevicePtr&, const DeviceStream&);
std::unique_ptr<DeviceDenoiser> make_device_callable(const ModelSpec&, const DeviceFunctions&, const DevicePtr&);
std::unique_ptr<DeviceDenoiser> make_tensorrt(const ModelSpec&, const NativeOptions&, const DevicePtr&);

// What the loader of engines says of a TensorRT library, as JSON (library, version), and whether it takes `engine` (may be
// null) on this machine: throws as make_tensorrt does.
std::string examine_tensorrt(const std::string& library, const std::vector<uint8_t>* engine);

}  // namespace ddpm_rt

#endif  // DDPM_RT_DEVICE_DENOISER_H_
