// A TensorRT for the tests: its interface by slot, over the emulated device. Stricter than the library where that forgives:
// unaligned addresses, scratch memory too small, shapes outside the profile and a first run inside a capture all fail.
//
// An engine is 64 bytes that begin with "vtrt", then lines: "in|out NAME TYPE SIZES...", "profile LEAST BEST MOST",
// "scratch BYTES". Its network: with an input "t" alone (and "label") rows = [t, label, 0, ...]; else
// eps = 0.25 x + label / 32 + t / 8192, with t and label from inputs or from rows.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "float16.h"

// Not in an unnamed namespace: its implementation is another library's, which a compiler there may rule out.
struct Logger {
  virtual int32_t language() const noexcept = 0;
  struct Info {
    const char* kind;
    int32_t major, minor;
  };
  virtual Info info() const noexcept = 0;
  virtual ~Logger() = default;
  virtual void log(int32_t severity, const char* message) noexcept = 0;
};

namespace {

using ddpm_rt::bfloat16_to_float;
using ddpm_rt::float_to_bfloat16;
using ddpm_rt::float_to_half;
using ddpm_rt::half_to_float;

struct Dims {
  int32_t n;
  int64_t d[8];
};

// Set by the tests. Kind and version as the library's functions report them; n fails the n-th enqueue from now on.
struct Control {
  std::atomic<int64_t> major{1}, minor{7}, patch{1}, build{116}, diagnostics{0}, has_device{1}, fail_enqueue{0}, capturable{1};
  std::atomic<int64_t> contexts{0}, enqueues{0}, runs{0};
  void (*enqueue)(void* stream, void (*work)(void*), void* user) = nullptr;
} control;

Logger* logger = nullptr;

bool refuse(const std::string& message) {
  logger->log(1, message.c_str());
  return false;
}

struct Port {
  bool is_input = false;
  std::string name;
  int32_t type = 0;
  Dims dims{};
  size_t elements() const {
    size_t n = 1;
    for (int i = 1; i < dims.n; ++i) n *= static_cast<size_t>(dims.d[i]);
    return n;
  }
};

using Method = void (*)();

struct Engine {
  std::vector<Port> ports;
  std::vector<std::vector<int64_t>> profiles;
  int64_t scratch = 0;
  const Port* find(const char* name) const {
    for (const Port& p : ports) {
      if (p.name == name) return &p;
    }
    return nullptr;
  }
};

struct Config {
  int32_t allocation = 0, kernels = 0;
};

struct Work {
  std::vector<std::pair<Port, void*>> bound;
  int64_t rows;
};

struct Context {
  const Engine* engine = nullptr;
  Config config;
  int32_t profile = 0;
  bool is_warm = false;
  int64_t rows = 0, memory_bytes = 0;
  void* memory = nullptr;
  std::map<std::string, Dims> shapes;
  std::map<std::string, void*> addresses;
  std::deque<Work> works;  // recorded ones are run again and again
};

// What the library hands out is {table, impl}. Methods get impl, whose first word is its own table; the body lies behind.
template <class T>
struct Box {
  Method* table;
  T body;
};
template <class T>
T& body(void* impl) {
  return static_cast<Box<T>*>(impl)->body;
}

void unknown_slot() {
  logger->log(0, "a slot that no method of this interface has");
  std::abort();
}

template <class T>
struct Handle {
  void** table;
  void* impl;
  void* own[2];  // [1]: the destructor that frees
  Box<T> box;
  static void destroy(void* self) { delete static_cast<Handle*>(self); }
};

// `methods`: slot -> function; an interface's own destructors come before slot 0.
template <class T>
Handle<T>* make(const std::map<size_t, Method>& methods) {
  static std::vector<Method> table = [&] {
    std::vector<Method> t(2 + 64, &unknown_slot);
    for (const auto& m : methods) t[2 + m.first] = m.second;
    return t;
  }();
  auto* handle = new Handle<T>();
  handle->own[1] = reinterpret_cast<void*>(&Handle<T>::destroy);
  handle->table = handle->own;
  handle->box.table = table.data();
  handle->impl = &handle->box;
  return handle;
}
template <class F>
Method method(F* f) {
  return reinterpret_cast<Method>(f);
}

float load(int32_t type, const void* data, size_t i) {
  if (type == 0) return static_cast<const float*>(data)[i];
  if (type == 8) return static_cast<float>(static_cast<const int64_t*>(data)[i]);
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == 1 ? half_to_float(bits) : bfloat16_to_float(bits);
}
void store(int32_t type, void* data, size_t i, float value) {
  if (type == 0) static_cast<float*>(data)[i] = value;
  else static_cast<uint16_t*>(data)[i] = type == 1 ? float_to_half(value) : float_to_bfloat16(value);
}

void run(void* user) {
  const Work& work = *static_cast<Work*>(user);
  ++control.runs;
  std::map<std::string, std::pair<Port, void*>> at;
  for (const auto& b : work.bound) at[b.first.name] = b;
  const auto value = [&](const char* name, int64_t row, size_t i) {
    const auto found = at.find(name);
    if (found == at.end()) return 0.0f;
    return load(found->second.first.type, found->second.second, static_cast<size_t>(row) * found->second.first.elements() + i);
  };
  const bool is_embedding = at.count("x") == 0;
  const auto& out = at.at(is_embedding ? "rows" : "eps");
  for (int64_t row = 0; row < work.rows; ++row) {
    const bool has_rows = !is_embedding && at.count("rows") > 0;
    const float t = has_rows ? value("rows", row, 0) : value("t", row, 0);
    const float label = has_rows ? value("rows", row, 1) : value("label", row, 0);
    for (size_t i = 0; i < out.first.elements(); ++i) {
      const float embedded = i == 0 ? t : i == 1 ? label : 0.0f;
      const float eps = 0.25f * value("x", row, i) + 0.03125f * label + 0.0001220703125f * t;
      store(out.first.type, out.second, static_cast<size_t>(row) * out.first.elements() + i, is_embedding ? embedded : eps);
    }
  }
}

// ---- IExecutionContext

bool set_profile(void* self, int32_t profile, void* stream) {
  Context& c = body<Context>(self);
  if (stream == nullptr) return refuse("the default stream");
  if (profile < 0 || static_cast<size_t>(profile) >= c.engine->profiles.size()) return refuse("no such profile");
  return c.profile = profile, true;
}
bool set_input_shape(void* self, const char* name, const Dims* dims) {
  Context& c = body<Context>(self);
  const Port* port = c.engine->find(name);
  if (port == nullptr || !port->is_input || dims->n != port->dims.n) return refuse("no such input, or another rank");
  for (int i = 1; i < dims->n; ++i) {
    if (dims->d[i] != port->dims.d[i]) return refuse("another size");
  }
  const auto& p = c.engine->profiles[static_cast<size_t>(c.profile)];
  if (dims->d[0] < p[0] || dims->d[0] > p[2]) return refuse("a batch outside the profile");
  c.shapes[name] = *dims;
  c.rows = dims->d[0];
  return true;
}
bool set_tensor_address(void* self, const char* name, void* data) {
  Context& c = body<Context>(self);
  if (c.engine->find(name) == nullptr) return refuse("no such tensor");
  if (reinterpret_cast<uintptr_t>(data) % 256 != 0) return refuse("an address that is no multiple of 256");
  return c.addresses[name] = data, true;
}
void set_device_memory(void* self, void* memory, int64_t bytes) {
  body<Context>(self).memory = memory;
  body<Context>(self).memory_bytes = bytes;
}
bool is_stream_capturable(void* self, void*) { return control.capturable != 0 && body<Context>(self).is_warm; }
bool enqueue_v3(void* self, void* stream) {
  Context& c = body<Context>(self);
  ++control.enqueues;
  if (control.fail_enqueue > 0 && --control.fail_enqueue == 0) return refuse("an injected failure");
  if (stream == nullptr) return refuse("the default stream");
  if (c.config.allocation != 2) return refuse("a context that allocates by itself");
  if (control.major == 1 && c.config.kernels != 1) return refuse("kernels that are specialised when it suits the library");
  if (c.engine->scratch > 0 && (c.memory == nullptr || c.memory_bytes < c.engine->scratch)) return refuse("too little scratch memory");
  Work work{{}, c.rows};
  for (const Port& port : c.engine->ports) {
    if (port.is_input && c.shapes.count(port.name) == 0) return refuse("an input without a shape");
    if (c.addresses.count(port.name) == 0) return refuse("a tensor without an address");
    work.bound.emplace_back(port, c.addresses[port.name]);
  }
  c.is_warm = true;
  c.works.push_back(std::move(work));
  control.enqueue(stream, &run, &c.works.back());
  return true;
}

void* make_context(const Engine& engine, const Config& config) {
  auto* handle = make<Context>({{14, method(set_profile)},
                                {18, method(set_input_shape)},
                                {21, method(set_tensor_address)},
                                {34, method(enqueue_v3)},
                                {46, method(set_device_memory)},
                                {50, method(is_stream_capturable)}});
  handle->box.body.engine = &engine;
  handle->box.body.config = config;
  ++control.contexts;
  return handle;
}

// ---- IRuntimeConfig, ICudaEngine

void set_allocation(void* self, int32_t strategy) { body<Config>(self).allocation = strategy; }
void set_kernels(void* self, int32_t strategy) { body<Config>(self).kernels = strategy; }

void* create_context(void* self, int32_t allocation) {
  if (control.major == 1) return refuse("a context without a configuration"), nullptr;
  return make_context(body<Engine>(self), {allocation, 1});
}
void* create_config(void*) { return make<Config>({{1, method(set_allocation)}, {6, method(set_kernels)}}); }
void* create_context_with_config(void* self, void* config) {
  return make_context(body<Engine>(self), static_cast<Handle<Config>*>(config)->box.body);
}
int32_t profile_count(void* self) { return static_cast<int32_t>(body<Engine>(self).profiles.size()); }
Dims tensor_shape(void* self, const char* name) {
  const Port* port = body<Engine>(self).find(name);
  return port != nullptr ? port->dims : Dims{-1, {}};
}
int32_t tensor_type(void* self, const char* name) {
  const Port* port = body<Engine>(self).find(name);
  return port != nullptr ? port->type : 0;
}
int32_t tensor_mode(void* self, const char* name) {
  const Port* port = body<Engine>(self).find(name);
  return port == nullptr ? 0 : port->is_input ? 1 : 2;
}
int32_t tensor_format(void*, const char*) { return 0; }
Dims profile_shape(void* self, const char* name, int32_t profile, int32_t selector) {
  const Engine& e = body<Engine>(self);
  Dims dims = e.find(name)->dims;
  dims.d[0] = e.profiles[static_cast<size_t>(profile)][static_cast<size_t>(selector)];
  return dims;
}
int32_t tensor_count(void* self) { return static_cast<int32_t>(body<Engine>(self).ports.size()); }
const char* tensor_name(void* self, int32_t i) { return body<Engine>(self).ports[static_cast<size_t>(i)].name.c_str(); }
int64_t memory_size(void* self) { return body<Engine>(self).scratch; }

bool parse(const std::string& text, Engine* engine) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string kind, type;
    words >> kind;
    if (kind == "in" || kind == "out") {
      Port port;
      words >> port.name >> type;
      port.is_input = kind == "in";
      const std::map<std::string, int32_t> types{{"float32", 0}, {"float16", 1}, {"int32", 3}, {"bfloat16", 7}, {"int64", 8}};
      if (types.count(type) == 0) return false;
      port.type = types.at(type);
      for (int64_t size; words >> size;) port.dims.d[port.dims.n++] = size;
      engine->ports.push_back(port);
    } else if (kind == "profile") {
      std::vector<int64_t> rows(3);
      words >> rows[0] >> rows[1] >> rows[2];
      engine->profiles.push_back(rows);
    } else if (kind == "scratch") {
      words >> engine->scratch;
    } else {
      return false;
    }
  }
  return !engine->ports.empty();
}

// ---- IRuntime

int64_t header_size(void*) { return 64; }
int32_t validity(void*, const void* data, int64_t bytes, uint64_t* diagnostics) {
  const bool is_engine = bytes >= 64 && std::memcmp(data, "vtrt", 4) == 0;
  *diagnostics = is_engine ? static_cast<uint64_t>(control.diagnostics) : 32;
  return *diagnostics != 0 || control.has_device == 0 ? 2 : 0;
}
void* deserialize(void*, const void* data, size_t bytes) {
  if (control.has_device == 0) {
    return refuse("cudaError 35: CUDA driver version is insufficient for CUDA runtime version"), nullptr;
  }
  Engine engine;
  if (bytes < 64 || std::memcmp(data, "vtrt", 4) != 0 || !parse(std::string(static_cast<const char*>(data) + 64, bytes - 64), &engine)) {
    return refuse("Serialization assertion failed"), nullptr;
  }
  auto* handle = make<Engine>({{3, method(create_context)},
                               {6, method(profile_count)},
                               {13, method(tensor_shape)},
                               {14, method(tensor_type)},
                               {17, method(tensor_mode)},
                               {20, method(tensor_format)},
                               {23, method(profile_shape)},
                               {24, method(tensor_count)},
                               {25, method(tensor_name)},
                               {42, method(memory_size)},
                               {45, method(create_context_with_config)},
                               {46, method(create_config)}});
  handle->box.body = engine;
  return handle;
}

struct Runtime {};

std::atomic<int64_t>* find(const std::string& name) {
  const std::map<std::string, std::atomic<int64_t>*> numbers{
      {"major", &control.major},           {"minor", &control.minor},         {"patch", &control.patch},
      {"build", &control.build},           {"diagnostics", &control.diagnostics}, {"has_device", &control.has_device},
      {"fail enqueue", &control.fail_enqueue}, {"capturable", &control.capturable}, {"contexts", &control.contexts},
      {"enqueues", &control.enqueues},     {"runs", &control.runs}};
  const auto found = numbers.find(name);
  return found != numbers.end() ? found->second : nullptr;
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))
extern "C" {

EXPORT int32_t getInferLibMajorVersion() { return static_cast<int32_t>(control.major); }
EXPORT int32_t getInferLibMinorVersion() { return static_cast<int32_t>(control.minor); }
EXPORT int32_t getInferLibPatchVersion() { return static_cast<int32_t>(control.patch); }
EXPORT int32_t getInferLibBuildVersion() { return static_cast<int32_t>(control.build); }
EXPORT int32_t getInferLibVersion() { return static_cast<int32_t>(control.major * 10000 + control.minor * 100 + control.patch); }
EXPORT void* createInferRuntime_INTERNAL(void* given, int32_t version) {
  if (version != getInferLibVersion()) return nullptr;
  logger = static_cast<Logger*>(given);
  if (logger->language() != 0 || std::strcmp(logger->info().kind, "ILogger") != 0 || logger->info().major != 1) return nullptr;
  return make<Runtime>({{1, method(deserialize)}, {21, method(header_size)}, {22, method(validity)}});
}

// 0 where there is no number of that name.
EXPORT int tensorrt_emulated_set(const char* name, int64_t value) {
  std::atomic<int64_t>* number = find(name);
  if (number != nullptr) *number = value;
  return number != nullptr;
}
EXPORT int64_t tensorrt_emulated_get(const char* name) {
  std::atomic<int64_t>* number = find(name);
  return number != nullptr ? number->load() : -1;
}
EXPORT void tensorrt_emulated_connect(void (*enqueue)(void*, void (*)(void*), void*)) { control.enqueue = enqueue; }

}  // extern "C"
