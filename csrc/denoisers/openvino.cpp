// The denoiser on OpenVINO's CPU plug-in. One compiled model per (bucket, streams), all shapes static: about 40 %
// faster than dynamic ones. Tensors wrap the lane's memory, nothing is copied.
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "denoiser.h"
#include "denoisers/graph_ports.h"
#include "denoisers/onnx_check.h"
#include "denoisers/openvino_api.h"
#include "denoisers/openvino_runtime.h"
#include "error.h"

namespace ddpm_rt {
namespace {

namespace ov = openvino;
using ov::Owned;

class Graph {
 public:
  Graph(const ov::Runtime& runtime, const std::string& section, const std::vector<uint8_t>& onnx,
        std::vector<Port> inputs, Port output, std::string hint, int threads)
      : runtime_(runtime),
        api_(runtime.api()),
        section_(section),
        ports_(std::move(inputs)),
        hint_(std::move(hint)),
        threads_(threads),
        model_(nullptr, api_.model_free) {
    OnnxCheck::run(section_, onnx);
    const char* bytes = reinterpret_cast<const char*>(onnx.data());
    model_ = runtime_.make<ov::Model>("ov_core_read_model_from_memory_buffer", api_.model_free,
                                      api_.core_read_model_from_memory_buffer, runtime_.core(), bytes, onnx.size(),
                                      static_cast<const ov::Tensor*>(nullptr));
    size_t inputs_size = 0;
    runtime_.check(api_.model_inputs_size(model_.get(), &inputs_size), "ov_model_inputs_size");
    if (inputs_size != ports_.size()) {
      throw Error(Code::kBackend, section_ + ": expected " + std::to_string(ports_.size()) + " inputs, got " +
                                      std::to_string(inputs_size));
    }
    ports_.push_back(std::move(output));
    for (size_t i = 0; i < ports_.size(); ++i) types_.push_back(element_type(i));
    for (size_t i = 0; i + 1 < ports_.size(); ++i) check_shape(i);
    reshape(1);
    const std::vector<int64_t> dims = shape(ports_.size() - 1);
    if (dims.empty()) throw Error(Code::kBackend, section_ + ": output: expected a batch dimension, got a scalar");
    ports_.back().row.assign(dims.begin() + 1, dims.end());
  }

  const Port& output() const { return ports_.back(); }

  void prepare(int bucket, int streams) {
    if (bucket < 1 || streams < 1) throw Error(Code::kInternal, "prepare: expected a bucket and streams of 1 or more");
    if (variants_.count({bucket, streams}) != 0) return;
    reshape(bucket);
    // Pinned threads were no faster, and every process of a machine would pin to the same first cores.
    Variant variant{Owned<ov::Compiled>(nullptr, api_.compiled_model_free), {}};
    const std::string streams_text = std::to_string(streams), threads_text = std::to_string(threads_);
    ov::Compiled* compiled = nullptr;
    runtime_.check(api_.core_compile_model(runtime_.core(), model_.get(), ov::kDevice, 10, &compiled,  //
                                           "INFERENCE_PRECISION_HINT", hint_.c_str(),                  //
                                           "NUM_STREAMS", streams_text.c_str(),                        //
                                           "INFERENCE_NUM_THREADS", threads_text.c_str(),              //
                                           "PERFORMANCE_HINT", "LATENCY",                              //
                                           "ENABLE_CPU_PINNING", "NO"),
                   "ov_core_compile_model");
    variant.compiled.reset(compiled);
    char* value = nullptr;
    runtime_.check(api_.compiled_model_get_property(compiled, "INFERENCE_PRECISION_HINT", &value),
                   "ov_compiled_model_get_property");
    const std::string got = runtime_.take(value);
    if (got != hint_)
      throw Error(Code::kBackend, section_ + ": expected precision " + hint_ + ", openvino took " + got);
    for (int i = 0; i < streams; ++i) {
      Lane lane{runtime_.make<ov::Request>("ov_compiled_model_create_infer_request", api_.infer_request_free,
                                           api_.compiled_model_create_infer_request,
                                           static_cast<const ov::Compiled*>(compiled)),
                -1,
                {}};
      variant.lanes.push_back(std::move(lane));
    }
    variants_.emplace(std::make_pair(bucket, streams), std::move(variant));
  }

  void bind(const Evaluations& evaluations) {
    bound_ = evaluations;
    for (auto& [key, variant] : variants_) {
      for (Lane& lane : variant.lanes) {
        lane.first = -1;
        lane.tensors.clear();
      }
    }
  }

  void run(const Call* calls, size_t count) {
    if (count == 0) return;
    check_calls(calls, count, bound_);
    const auto found = variants_.find({calls[0].bucket, calls[0].streams});
    if (found == variants_.end()) {
      throw Error(Code::kInternal, section_ + ": bucket " + std::to_string(calls[0].bucket) + " was not prepared");
    }
    std::vector<Lane>& lanes = found->second.lanes;
    for (size_t i = 0; i < count; ++i) point(lanes[i], calls[i]);
    if (count == 1) {
      runtime_.check(api_.infer_request_infer(lanes[0].request.get()), "ov_infer_request_infer");
      return;
    }
    // Whatever happens, no request may still write the lane's memory when this returns.
    ov::Status failed = 0;
    size_t started = 0;
    while (started < count && failed == 0) failed = api_.infer_request_start_async(lanes[started++].request.get());
    const char* function = failed != 0 ? "ov_infer_request_start_async" : "ov_infer_request_wait";
    for (size_t i = 0; i < started; ++i) {
      const ov::Status status = api_.infer_request_wait(lanes[i].request.get());
      if (failed == 0) failed = status;
    }
    runtime_.check(failed, function);
  }

 private:
  // One infer request; the tensors of every stretch it has run, so that steady state allocates nothing.
  struct Lane {
    Owned<ov::Request> request;
    int first;
    std::unordered_map<int, std::vector<Owned<ov::Tensor>>> tensors;
  };
  struct Variant {
    Owned<ov::Compiled> compiled;
    std::vector<Lane> lanes;  // destroyed before `compiled`
  };

  Owned<ov::Port> port(size_t i) const {
    const bool is_output = i + 1 == ports_.size();
    try {
      return is_output ? runtime_.make<ov::Port>("ov_model_const_output_by_name", api_.output_const_port_free,
                                                 api_.model_const_output_by_name,
                                                 static_cast<const ov::Model*>(model_.get()), ports_[i].name.c_str())
                       : runtime_.make<ov::Port>("ov_model_const_input_by_name", api_.output_const_port_free,
                                                 api_.model_const_input_by_name,
                                                 static_cast<const ov::Model*>(model_.get()), ports_[i].name.c_str());
    } catch (const Error& e) {
      throw Error(Code::kBackend, section_ + ": expected an " + (is_output ? "output" : "input") + " named " +
                                      ports_[i].name + " (" + ports_[i].role + "), got none; " + e.what());
    }
  }

  // Reshaping would force a fully convolutional network to any size it was not trained for.
  void check_shape(size_t i) const {
    const std::vector<int64_t> want = ports_[i].dims(1);
    ov::PartialShape raw{};
    runtime_.check(api_.port_get_partial_shape(port(i).get(), &raw), "ov_port_get_partial_shape");
    bool fits = raw.rank.min == raw.rank.max && raw.rank.max == static_cast<int64_t>(want.size());
    std::vector<int64_t> got;
    for (int64_t k = 0; raw.dims != nullptr && k < raw.rank.max; ++k) {
      const ov::Dimension dim = raw.dims[k];
      got.push_back(dim.min == dim.max ? dim.max : -1);
      fits = fits && (k == 0 || got.back() == -1 || got.back() == want[static_cast<size_t>(k)]);
    }
    api_.partial_shape_free(&raw);
    if (!fits) {
      throw Error(Code::kBackend, section_ + ": " + ports_[i].name + ": expected shape " +
                                      dims_text(ports_[i].dims(-1)) + " (-1: any), got " + dims_text(got));
    }
  }

  std::vector<int64_t> shape(size_t i) const {
    ov::Shape raw{};
    runtime_.check(api_.const_port_get_shape(port(i).get(), &raw), "ov_const_port_get_shape");
    std::vector<int64_t> dims(raw.dims, raw.dims + raw.rank);
    api_.shape_free(&raw);
    return dims;
  }

  ov::ElementType element_type(size_t i) const {
    ov::ElementType type{};
    runtime_.check(api_.port_get_element_type(port(i).get(), &type), "ov_port_get_element_type");
    int64_t one = 1;
    size_t bytes = 0;
    const auto tensor =
        runtime_.make<ov::Tensor>("ov_tensor_create", api_.tensor_free, api_.tensor_create, type, ov::Shape{1, &one});
    runtime_.check(api_.tensor_get_byte_size(tensor.get(), &bytes), "ov_tensor_get_byte_size");
    if (bytes != ports_[i].element_bytes) {
      throw Error(Code::kBackend, section_ + ": " + ports_[i].name + ": expected elements of " +
                                      std::to_string(ports_[i].element_bytes) + " bytes, got " + std::to_string(bytes));
    }
    return type;
  }

  // The batch dimension of every port becomes `batch`; what is left dynamic or couples the batch is refused.
  void reshape(int batch) {
    std::vector<const char*> names;
    std::vector<std::vector<ov::Dimension>> dims;
    std::vector<ov::PartialShape> shapes;
    for (size_t i = 0; i + 1 < ports_.size(); ++i) {
      names.push_back(ports_[i].name.c_str());
      std::vector<ov::Dimension> list;
      for (int64_t size : ports_[i].dims(batch)) list.push_back({size, size});
      dims.push_back(std::move(list));
      const int64_t rank = static_cast<int64_t>(dims.back().size());
      shapes.push_back({{rank, rank}, dims.back().data()});  // the heap block stays where it is when `dims` grows
    }
    runtime_.check(api_.model_reshape(model_.get(), names.data(), shapes.data(), names.size()), "ov_model_reshape");
    const std::vector<int64_t> got = shape(ports_.size() - 1);
    if (got.empty() || got[0] != batch || (!ports_.back().row.empty() && got != ports_.back().dims(batch))) {
      throw Error(Code::kBackend, section_ + ": " + ports_.back().name + ": expected " + std::to_string(batch) +
                                      " rows, got shape " + dims_text(got));
    }
  }

  void point(Lane& lane, const Call& call) {
    if (lane.first == call.first) return;
    auto found = lane.tensors.find(call.first);
    if (found == lane.tensors.end()) {
      std::vector<Owned<ov::Tensor>> tensors;
      for (size_t i = 0; i < ports_.size(); ++i) {
        std::vector<int64_t> dims = ports_[i].dims(call.bucket);
        tensors.push_back(runtime_.make<ov::Tensor>(
            "ov_tensor_create_from_host_ptr", api_.tensor_free, api_.tensor_create_from_host_ptr, types_[i],
            ov::Shape{static_cast<int64_t>(dims.size()), dims.data()}, ports_[i].at(bound_, call.first)));
      }
      found = lane.tensors.emplace(call.first, std::move(tensors)).first;
    }
    lane.first = -1;
    for (size_t i = 0; i < ports_.size(); ++i) {
      runtime_.check(api_.infer_request_set_tensor(lane.request.get(), ports_[i].name.c_str(), found->second[i].get()),
                     "ov_infer_request_set_tensor");
    }
    lane.first = call.first;
  }

  const ov::Runtime& runtime_;
  const ov::Api& api_;
  std::string section_;
  std::vector<Port> ports_;  // the inputs, then the output
  std::vector<ov::ElementType> types_;
  std::string hint_;
  int threads_;
  Owned<ov::Model> model_;
  std::map<std::pair<int, int>, Variant> variants_;
  Evaluations bound_;
};

class OpenVino : public Denoiser {
 public:
  OpenVino(const ModelSpec& spec, const Plan& plan, const BackendOptions& options)
      : runtime_(options.library),
        precision_(options.precision == "auto" ? "fp32" : options.precision),
        threads_(options.threads > 0 ? options.threads : default_threads()),
        unet_(runtime_, spec.network.section, plan.read(spec.network.section), input_ports(spec.network, spec),
              output_port(spec.network, "eps"), ov::precision_hint(runtime_, precision_), threads_) {
    if (spec.has_temb) {
      // Always float32: it runs once per table, and t times a frequency has no digits to spare.
      temb_ =
          std::make_unique<Graph>(runtime_, spec.temb.section, plan.read(spec.temb.section),
                                  input_ports(spec.temb, spec), output_port(spec.temb, "rows"), "f32", threads_);
    }
    limits_ = graph_limits(spec, unet_.output(), temb_ ? &temb_->output() : nullptr);
    limits_.max_streams = threads_ >= 2 ? 2 : 1;
    if (temb_) {
      embed_ = std::make_unique<EmbedBatch>(limits_.rows_width);
      temb_->prepare(EmbedBatch::kRows, 1);
      temb_->bind(embed_->evaluations());
    }
  }

  const Limits& limits() const override { return limits_; }
  std::string describe() const override {
    return "{\"backend\":\"openvino\",\"version\":\"" + runtime_.version() + "\",\"device\":\"" + ov::kDevice +
           "\",\"precision\":\"" + precision_ + "\",\"threads\":" + std::to_string(threads_) + "}";
  }
  void prepare(int bucket, int streams) override { unet_.prepare(bucket, streams); }
  void bind(const Evaluations& evaluations) override { unet_.bind(evaluations); }
  void run(const Call* calls, size_t count) override { unet_.run(calls, count); }
  void embed(const float* t, const int64_t* label, size_t n, float* rows) override {
    if (!temb_) throw Error(Code::kInternal, "embed: expected a model with a temb network");
    embed_->run(*temb_, t, label, n, rows);
  }

 private:
  ov::Runtime runtime_;
  std::string precision_;
  int threads_;
  Limits limits_;
  std::unique_ptr<EmbedBatch> embed_;  // outlives the tensors that wrap it
  Graph unet_;
  std::unique_ptr<Graph> temb_;
};

}  // namespace

std::unique_ptr<Denoiser> make_openvino(const ModelSpec& spec, const Plan& plan, const BackendOptions& options) {
  return std::make_unique<OpenVino>(spec, plan, options);
}

}  // namespace ddpm_rt
