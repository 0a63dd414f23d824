#include "denoisers/tensorrt_graph.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace ddpm_rt {
namespace nv {
namespace {

struct TypeName {
  DataType type;
  const char* name;
  size_t bytes;
};
constexpr TypeName kTypes[] = {
    {kFloat, "float32", 4}, {kHalf, "float16", 2}, {kBf16, "bfloat16", 2}, {kInt32, "int32", 4}, {kInt64, "int64", 8}};

const TypeName* find_type(int32_t type) {
  for (const TypeName& t : kTypes) {
    if (t.type == type) return &t;
  }
  return nullptr;
}

std::string type_text(int32_t type) {
  const TypeName* known = find_type(type);
  return known != nullptr ? known->name : "type " + std::to_string(type);
}

// x and eps are what the step reads and writes; t, label and rows have one type each.
bool takes_type(const std::string& role, int32_t type) {
  if (role == "label") return type == kInt64;
  if (role == "x" || role == "eps") return type == kFloat || type == kHalf || type == kBf16;
  return type == kFloat;
}

std::string wanted_type(const std::string& role) {
  if (role == "label") return "int64";
  return role == "x" || role == "eps" ? "float32, float16 or bfloat16" : "float32";
}

std::vector<int64_t> list_of(const Dims& dims) {
  if (dims.n < 0 || dims.n > Dims::kMost) return {};
  return {dims.d, dims.d + dims.n};
}

}  // namespace

TensorRtGraph::TensorRtGraph(const Runtime& runtime, const std::vector<uint8_t>& engine, std::vector<Port> inputs, Port output,
                             std::string what, Remedy remedy)
    : runtime_(runtime), what_(std::move(what)), remedy_(std::move(remedy)), engine_(runtime.deserialize(engine, what_, remedy_)) {
  for (Port& port : inputs) {
    GraphPort made;
    made.port = std::move(port);
    ports_.push_back(std::move(made));
  }
  GraphPort last;
  last.port = std::move(output);
  last.is_output = true;
  ports_.push_back(std::move(last));
  const int32_t count = call<int32_t>(engine_.get(), engine::kGetNbIoTensors);
  if (count != static_cast<int32_t>(ports_.size())) {
    throw Error(Code::kBackend, what_ + ": expected " + std::to_string(ports_.size()) + " inputs and outputs, got " + std::to_string(count));
  }
  for (GraphPort& port : ports_) check_port(&port);
  read_profiles();
}

Dims TensorRtGraph::dims(const char* tensor) const { return call<Dims>(engine_.get(), engine::kGetTensorShape, tensor); }

void TensorRtGraph::check_port(GraphPort* port) {
  const char* const name = port->port.name.c_str();
  const std::string field = what_ + ": " + port->port.role + " (" + port->port.name + ")";
  const int32_t mode = call<int32_t>(engine_.get(), engine::kGetTensorIoMode, name);
  if (mode != (port->is_output ? kOutput : kInput)) {
    std::string seen;
    const int32_t count = call<int32_t>(engine_.get(), engine::kGetNbIoTensors);
    for (int32_t i = 0; i < count; ++i) {
      const char* other = call<const char*>(engine_.get(), engine::kGetIoTensorName, i);
      seen += (i > 0 ? ", " : "") + std::string(other != nullptr ? other : "?");
    }
    throw Error(Code::kBackend, field + ": expected an " + (port->is_output ? "output" : "input") + " of this name, got " + seen);
  }
  const int32_t type = call<int32_t>(engine_.get(), engine::kGetTensorDataType, name);
  if (!takes_type(port->port.role, type)) {
    throw Error(Code::kBackend, field + ": expected " + wanted_type(port->port.role) + ", got " + type_text(type));
  }
  if (call<int32_t>(engine_.get(), engine::kGetTensorFormat, name) != kLinear) {
    throw Error(Code::kBackend, field + ": expected row-major memory (LINEAR), got another format");
  }
  const std::vector<int64_t> found = list_of(dims(name));
  std::vector<int64_t> want = port->port.dims(-1);
  if (port->is_output && port->port.row.empty() && found.size() > 1) want = found;
  bool fits = found.size() == want.size() && !found.empty();
  for (size_t i = 1; fits && i < found.size(); ++i) fits = found[i] == want[i] && found[i] > 0;
  if (!fits) {
    throw Error(Code::kBackend, field + ": expected shape " + dims_text(port->port.dims(-1)) + " (-1: any), got " + dims_text(found));
  }
  port->port.row.assign(found.begin() + 1, found.end());
  port->type = static_cast<DataType>(type);
  port->row_bytes = port->port.row_elements() * find_type(type)->bytes;
}

void TensorRtGraph::read_profiles() {
  const int32_t count = call<int32_t>(engine_.get(), engine::kGetNbOptimizationProfiles);
  const char* const name = ports_.front().port.name.c_str();
  const int64_t fixed = dims(name).d[0];
  for (int32_t i = 0; i < count; ++i) {
    const auto rows = [&](int32_t selector) {
      if (fixed > 0) return static_cast<int>(fixed);
      const Dims d = call<Dims>(engine_.get(), engine::kGetProfileShape, name, i, selector);
      return d.n > 0 && d.d[0] > 0 && d.d[0] <= (1 << 20) ? static_cast<int>(d.d[0]) : 0;
    };
    profiles_.push_back({rows(kMin), rows(kOpt), rows(kMax)});
    const Profile& p = profiles_.back();
    if (p.least < 1 || p.best < p.least || p.most < p.best) {
      throw Error(Code::kBackend, what_ + ": expected profiles of 1 <= least <= best <= most rows, got " + std::to_string(p.least) +
                                      ", " + std::to_string(p.best) + ", " + std::to_string(p.most));
    }
  }
  if (profiles_.empty()) throw Error(Code::kBackend, what_ + ": expected an optimization profile, got none");
}

const GraphPort& TensorRtGraph::port(const std::string& role) const {
  for (const GraphPort& port : ports_) {
    if (port.port.role == role) return port;
  }
  throw Error(Code::kInternal, what_ + ": expected a port of role " + role + ", got none");
}

size_t TensorRtGraph::scratch_bytes() const {
  return static_cast<size_t>(std::max<int64_t>(0, call<int64_t>(engine_.get(), engine::kGetDeviceMemorySizeV2)));
}

int TensorRtGraph::most_rows() const {
  int most = 0;
  for (const Profile& p : profiles_) most = std::max(most, p.most);
  return most;
}

// The one that was tuned nearest to this many rows, by ratio.
size_t TensorRtGraph::profile_for(int bucket) const {
  size_t best = profiles_.size();
  double nearest = 0;
  std::string ranges;
  for (size_t i = 0; i < profiles_.size(); ++i) {
    const Profile& p = profiles_[i];
    ranges += (i > 0 ? ", " : "") + std::to_string(p.least) + " to " + std::to_string(p.most);
    if (bucket < p.least || bucket > p.most) continue;
    const double distance = std::fabs(std::log(static_cast<double>(bucket) / p.best));
    if (best < profiles_.size() && distance >= nearest) continue;
    best = i;
    nearest = distance;
  }
  if (best < profiles_.size()) return best;
  throw Error(Code::kBackend, what_ + ": expected a batch its profiles take (" + ranges + " rows), got " + std::to_string(bucket) + remedy_.any);
}

void TensorRtGraph::bind(const std::string& role, void* base, const DevicePtr& device) {
  for (GraphPort& port : ports_) {
    if (port.port.role != role) continue;
    port.base = static_cast<char*>(base);
    const bool lies_aligned = port.row_bytes % kAddressAlign == 0 && reinterpret_cast<uintptr_t>(base) % kAddressAlign == 0;
    if (!lies_aligned) port.stage = DeviceBuffer(device, static_cast<size_t>(most_rows()) * port.row_bytes, "engine inputs and outputs");
  }
}

void TensorRtGraph::set_scratch(void* scratch, size_t bytes) {
  scratch_ = scratch;
  scratch_bytes_ = bytes;
}

void TensorRtGraph::prepare(int bucket, const DeviceStream& stream) {
  if (contexts_.count(bucket) > 0) return;
  const size_t profile = profile_for(bucket);
  Context made;
  if (runtime_.is_rtx()) {  // kernels for these very shapes, compiled here and not in the middle of a captured graph
    const Owned config(call<Object*>(engine_.get(), engine::kCreateRuntimeConfig));
    if (!config) Runtime::fail(what_ + ": expected a runtime configuration, got none");
    call<void>(config.get(), config::kSetExecutionContextAllocationStrategy, kUserManaged);
    call<void>(config.get(), config::kSetDynamicShapesKernelSpecializationStrategy, kEager);
    made.handle.reset(call<Object*>(engine_.get(), engine::kCreateExecutionContextWithRuntimeConfig, config.get()));
  } else {
    made.handle.reset(call<Object*>(engine_.get(), engine::kCreateExecutionContext, kUserManaged));
  }
  if (!made.handle) Runtime::fail(what_ + ": expected an execution context, got none");
  Object* const context = made.handle.get();
  if (!call<bool>(context, context::kSetOptimizationProfileAsync, static_cast<int32_t>(profile), stream.get())) {
    Runtime::fail(what_ + ": expected profile " + std::to_string(profile) + " to be taken, got a refusal");
  }
  for (const GraphPort& port : ports_) {
    if (port.is_output) continue;
    Dims shape{};
    const std::vector<int64_t> sizes = port.port.dims(bucket);
    shape.n = static_cast<int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), shape.d);
    if (!call<bool>(context, context::kSetInputShape, port.port.name.c_str(), static_cast<const Dims*>(&shape))) {
      Runtime::fail(what_ + ": " + port.port.name + ": expected shape " + dims_text(sizes) + " to be taken, got a refusal", Code::kBackend, remedy_.any);
    }
  }
  call<void>(context, context::kSetDeviceMemoryV2, scratch_, static_cast<int64_t>(scratch_bytes_));
  made.addresses.assign(ports_.size(), nullptr);
  run(&made, {bucket, 0}, stream);
  stream.synchronize();
  if (runtime_.is_rtx()) is_capturable_ = is_capturable_ && call<bool>(context, context::kIsStreamCapturable, stream.get());
  contexts_.emplace(bucket, std::move(made));
}

void TensorRtGraph::enqueue(const DeviceCall& call, const DeviceStream& stream) {
  const auto found = contexts_.find(call.bucket);
  if (found == contexts_.end()) throw Error(Code::kInternal, what_ + ": bucket " + std::to_string(call.bucket) + " was not prepared");
  run(&found->second, call, stream);
}

void TensorRtGraph::run(Context* context, const DeviceCall& wanted, const DeviceStream& stream) {
  const size_t bucket = static_cast<size_t>(wanted.bucket);
  const auto is_staged = [](const char* address) { return reinterpret_cast<uintptr_t>(address) % kAddressAlign != 0; };
  for (size_t i = 0; i < ports_.size(); ++i) {
    const GraphPort& port = ports_[i];
    char* address = port.at(wanted.first);
    if (is_staged(address)) {
      if (!port.is_output) stream.copy(port.stage.as<void>(), address, bucket * port.row_bytes, DeviceCopy::kOnDevice);
      address = port.stage.as<char>();
    }
    if (context->addresses[i] == address) continue;
    if (!call<bool>(context->handle.get(), context::kSetTensorAddress, port.port.name.c_str(), static_cast<void*>(address))) {
      Runtime::fail(what_ + ": " + port.port.name + ": expected its address to be taken, got a refusal");
    }
    context->addresses[i] = address;
  }
  if (!call<bool>(context->handle.get(), context::kEnqueueV3, stream.get())) {
    Runtime::fail(what_ + ": expected a batch of " + std::to_string(wanted.bucket) + " to run, got a failure");
  }
  for (const GraphPort& port : ports_) {
    char* const address = port.at(wanted.first);
    if (port.is_output && is_staged(address)) {
      stream.copy(address, port.stage.as<void>(), bucket * port.row_bytes, DeviceCopy::kOnDevice);
    }
  }
}

}  // namespace nv
}  // namespace ddpm_rt
