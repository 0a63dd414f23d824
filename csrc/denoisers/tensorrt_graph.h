// One engine: its ports checked against the model's, and for each bucket an execution context with its shapes fixed.
//
// All contexts share one piece of scratch memory, so their calls belong on one stream.
#ifndef DDPM_RT_DENOISERS_TENSORRT_GRAPH_H_
#define DDPM_RT_DENOISERS_TENSORRT_GRAPH_H_

#include <map>
#include <string>
#include <vector>

#include "denoisers/graph_ports.h"
#include "denoisers/tensorrt_runtime.h"
#include "device_denoiser.h"

namespace ddpm_rt {
namespace nv {

// An input or output in device memory: [places, row].
struct GraphPort {
  Port port;               // role, name, sizes of a row
  bool is_output = false;
  DataType type = kFloat;
  size_t row_bytes = 0;
  char* base = nullptr;
  DeviceBuffer stage;      // where rows go that do not begin at a multiple of kAddressAlign

  char* at(int first) const { return base + static_cast<size_t>(first) * row_bytes; }
};

class TensorRtGraph {
 public:
  struct Profile {
    int least, best, most;  // rows
  };

  // `what` and `remedy`: see Runtime::deserialize. Inputs first, the output last; its row may be unknown (empty).
  TensorRtGraph(const Runtime& runtime, const std::vector<uint8_t>& engine, std::vector<Port> inputs, Port output, std::string what,
                Remedy remedy);

  const GraphPort& port(const std::string& role) const;  // throws Error(kInternal) where there is none
  size_t scratch_bytes() const;
  int most_rows() const;

  // Where a role's list begins. Allocates staging memory for the widest call where rows do not lie aligned.
  void bind(const std::string& role, void* base, const DevicePtr& device);
  void set_scratch(void* scratch, size_t bytes);
  // Makes calls of `bucket` runnable and runs one at place 0. Allocates and waits.
  void prepare(int bucket, const DeviceStream& stream);
  void enqueue(const DeviceCall& call, const DeviceStream& stream);
  bool is_capturable() const { return is_capturable_; }  // every prepared bucket says so

 private:
  struct Context {
    Owned handle;
    std::vector<const void*> addresses;  // by port, as the context has them
  };

  void check_port(GraphPort* port);
  void read_profiles();
  size_t profile_for(int bucket) const;
  void run(Context* context, const DeviceCall& call, const DeviceStream& stream);
  Dims dims(const char* tensor) const;

  const Runtime& runtime_;
  const std::string what_;
  Remedy remedy_;
  Owned engine_;
  std::vector<GraphPort> ports_;
  std::vector<Profile> profiles_;
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  bool is_capturable_ = true;
  std::map<int, Context> contexts_;  // destroyed before engine_
};

}  // namespace nv
}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISERS_TENSORRT_GRAPH_H_
