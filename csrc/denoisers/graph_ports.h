// What the backends that run ONNX graphs share: a graph's ports by role, and the fixed-size batches of `embed`.
#ifndef DDPM_RT_DENOISERS_GRAPH_PORTS_H_
#define DDPM_RT_DENOISERS_GRAPH_PORTS_H_

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "denoiser.h"
#include "error.h"

namespace ddpm_rt {

// One input or output of a graph: [batch, *row], contiguous, float32 except for labels (int64).
struct Port {
  std::string role, name;
  std::vector<int64_t> row;
  size_t element_bytes = sizeof(float);
  int condition = -1;              // which of Evaluations::conditions

  size_t row_elements() const {
    size_t n = 1;
    for (int64_t size : row) n *= static_cast<size_t>(size);
    return n;
  }
  std::vector<int64_t> dims(int batch) const {
    std::vector<int64_t> dims{batch};
    dims.insert(dims.end(), row.begin(), row.end());
    return dims;
  }
  // First byte of row `first` in the lane's memory.
  void* at(const Evaluations& e, int first) const {
    void* base = role == "x"       ? static_cast<void*>(e.x)
                 : role == "t"     ? static_cast<void*>(e.t)
                 : role == "label" ? static_cast<void*>(e.label)
                 : role == "rows"  ? static_cast<void*>(e.rows)
                 : condition >= 0  ? static_cast<void*>(e.conditions[static_cast<size_t>(condition)].data)
                                   : static_cast<void*>(e.out);
    if (base == nullptr) throw Error(Code::kInternal, "evaluations." + role + ": expected a buffer, got null");
    return static_cast<char*>(base) + static_cast<size_t>(first) * row_elements() * element_bytes;
  }
};

inline std::string dims_text(const std::vector<int64_t>& dims) {
  std::string out = "[";
  for (size_t i = 0; i < dims.size(); ++i) out += (i ? ", " : "") + std::to_string(dims[i]);
  return out + "]";
}

// The inputs of a network: roles x, t, label, rows, and those of the model's conditions. Any other role is refused, nobody would
// fill it.
inline std::vector<Port> input_ports(const NetworkSpec& network, const ModelSpec& spec) {
  const std::vector<ConditionInput> conditions = spec.condition_inputs();
  std::vector<Port> ports;
  for (const auto& [role, name] : network.inputs) {
    Port port{role, name, {}, sizeof(float)};
    for (size_t k = 0; k < conditions.size(); ++k) {
      if (conditions[k].role == role) port.condition = static_cast<int>(k);
    }
    if (port.condition >= 0) {
      port.row = conditions[static_cast<size_t>(port.condition)].row;
    } else if (role == "x") {
      port.row = spec.shape;
    } else if (role == "rows") {
      port.row = {static_cast<int64_t>(network.rows_width)};
    } else if (role == "label") {
      port.element_bytes = sizeof(int64_t);
    } else if (role != "t") {
      throw Error(Code::kBackend, network.section + ": expected inputs x, t, label, rows or conditions, got " + role);
    }
    ports.push_back(port);
  }
  return ports;
}

// The one output `role`; its row shape is the graph's to tell.
inline Port output_port(const NetworkSpec& network, const std::string& role) {
  const auto found = network.outputs.find(role);
  if (found == network.outputs.end()) {
    throw Error(Code::kBackend, network.section + ": expected an output for " + role + ", got none");
  }
  return Port{role, found->second, {}, sizeof(float)};
}

// Both networks of a model checked against each other; throws Error(kBackend).
inline Limits graph_limits(const ModelSpec& spec, const Port& eps, const Port* rows) {
  Limits limits;
  limits.in_elements = spec.elements();
  limits.out_elements = eps.row_elements();
  if (limits.out_elements != spec.output_elements()) {
    throw Error(Code::kBackend, spec.network.section + ": output " + eps.name + ": expected " +
                                    std::to_string(spec.output_elements()) + " values a sample, got shape " + dims_text(eps.row));
  }
  const bool reads_rows = spec.network.inputs.count("rows") != 0;
  if (reads_rows != (rows != nullptr)) {
    throw Error(Code::kBackend, spec.network.section + ": expected a temb network exactly where rows is an input");
  }
  if (reads_rows) {
    limits.rows_width = spec.network.rows_width;
    if (rows->row_elements() != limits.rows_width || limits.rows_width == 0) {
      throw Error(Code::kBackend, spec.temb.section + ": output " + rows->name + ": expected width " +
                                      std::to_string(limits.rows_width) + ", got " + dims_text(rows->row));
    }
  }
  limits.takes_label = spec.network.inputs.count("label") != 0 || (reads_rows && spec.temb.inputs.count("label") != 0);
  return limits;
}

inline void check_calls(const Call* calls, size_t count, const Evaluations& bound) {
  for (size_t i = 0; i < count; ++i) {
    const Call& c = calls[i];
    if (c.bucket != calls[0].bucket || c.streams != calls[0].streams || count > static_cast<size_t>(c.streams)) {
      throw Error(Code::kInternal, "calls: expected at most `streams` calls of one variant");
    }
    if (c.first < 0 || c.bucket < 1 || static_cast<size_t>(c.first) + static_cast<size_t>(c.bucket) > bound.capacity) {
      throw Error(Code::kInternal, "calls: expected rows within capacity " + std::to_string(bound.capacity) +
                                       ", got [" + std::to_string(c.first) + ", " + std::to_string(c.first + c.bucket) +
                                       ")");
    }
  }
}

// Runs a temb graph in batches of one fixed size, so that a row's bits cannot depend on how many are asked for.
class EmbedBatch {
 public:
  static constexpr int kRows = 16;

  explicit EmbedBatch(size_t width)
      : width_(width),
        bytes_(kRows * (width * sizeof(float) + sizeof(float) + sizeof(int64_t))),
        memory_(static_cast<char*>(::operator new(bytes_, std::align_val_t{64}))) {
    std::memset(memory_, 0, bytes_);
    evaluations_.capacity = kRows;
    evaluations_.label = reinterpret_cast<int64_t*>(memory_);
    evaluations_.t = reinterpret_cast<float*>(evaluations_.label + kRows);
    evaluations_.rows = evaluations_.t + kRows;
  }
  ~EmbedBatch() { ::operator delete(memory_, std::align_val_t{64}); }
  EmbedBatch(const EmbedBatch&) = delete;
  EmbedBatch& operator=(const EmbedBatch&) = delete;

  const Evaluations& evaluations() const { return evaluations_; }

  template <class Graph>
  void run(Graph& graph, const float* t, const int64_t* label, size_t n, float* rows) {
    for (size_t done = 0; done < n; done += kRows) {
      const size_t count = std::min<size_t>(kRows, n - done);
      std::fill_n(evaluations_.t, kRows, 0.0f);
      std::copy_n(t + done, count, evaluations_.t);
      std::fill_n(evaluations_.label, kRows, int64_t{0});
      if (label != nullptr) std::copy_n(label + done, count, evaluations_.label);
      const Call call{kRows, 1, 0, static_cast<int>(count)};
      graph.run(&call, 1);
      std::copy_n(evaluations_.rows, count * width_, rows + done * width_);
    }
  }

 private:
  size_t width_, bytes_;
  char* memory_;
  Evaluations evaluations_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISERS_GRAPH_PORTS_H_
