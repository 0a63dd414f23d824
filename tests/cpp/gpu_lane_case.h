// One exact network, once over host memory and once on the emulated device in every form that a lane knows, and requests
// for lanes over it: the loop on the device is compared with the CPU's bit for bit.
#ifndef DDPM_RT_TESTS_GPU_LANE_CASE_H_
#define DDPM_RT_TESTS_GPU_LANE_CASE_H_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "emulated.h"
#include "gpu_lane.h"
#include "lane.h"

namespace lane_case {

using namespace ddpm_rt;

constexpr size_t kN = 10;  // not a multiple of 4: the last noise block is cut
constexpr int64_t kClasses = 3;
using Samples = std::vector<float>;

// Fibers cost a thousand times more under this sanitizer: fewer repetitions there.
#if defined(__SANITIZE_THREAD__)
constexpr bool kIsSlow = true;
#else
constexpr bool kIsSlow = false;
#endif

// eps of one row: exact in float32 whatever its neighbours.
inline void evaluate(const float* x, float t, int64_t label, float* out) {
  for (size_t j = 0; j < kN; ++j) out[j] = 0.25f * x[j] + 0.03125f * static_cast<float>(label) + 0.0001220703125f * t;
}

inline ModelSpec spec() {
  const std::string manifest = R"({"name": "exact", "sample": {"shape": [10], "role": "vector"}, "prediction": "eps",
      "num_classes": 3, "defaults": {"sampler": "ddim", "steps": 8, "scale": 2.0, "clip": "none"}})";
  const std::vector<double> alpha_bar = make_schedule("linear", 1000).alpha_bar;
  return parse_manifest(manifest, nullptr, &alpha_bar);
}

enum class Form { kPlain, kCaptured, kRaw };

struct NetworkOptions {
  Form form = Form::kCaptured;
  bool any_batch = true;
  int max_bucket = 8;
  size_t rows_bytes = 0;                         // > 0: reads an embedding of (t, label) instead of them
  std::function<void(const DeviceCall&)> before;  // on the lane's thread, before a call is put anywhere; may throw
  float bad_label = -1;                          // rows of this label get a NaN
};

class ExactNetwork final : public DeviceDenoiser {
 public:
  ExactNetwork(DevicePtr device, NetworkOptions options) : device_(std::move(device)), options_(std::move(options)), own_(device_) {
    limits_.in_elements = limits_.out_elements = kN;
    limits_.takes_label = true;
    limits_.any_batch = options_.any_batch;
    limits_.max_bucket = options_.max_bucket;
    limits_.rows_bytes = options_.rows_bytes;
    limits_.is_capturable = options_.form == Form::kCaptured;
    limits_.has_graphs = options_.form == Form::kRaw;
  }
  ~ExactNetwork() override {
    for (const auto& graph : graphs_) device_->api().destroy_graph(graph.second);
  }
  const DeviceLimits& limits() const override { return limits_; }
  std::string describe() const override { return R"({"backend":"exact","version":"1","precision":"fp32","device":"emulated"})"; }
  void bind(const GpuNetwork& network) override { network_ = network; }
  void prepare(int, const DeviceStream&) override {}
  void enqueue(const DeviceCall& call, const DeviceStream& stream) override { put(call, stream.get()); }
  void* raw_graph(const DeviceCall& call) override {
    void*& graph = graphs_[{call.bucket, call.first}];
    if (graph != nullptr) return graph;
    // As frameworks do, which run a network before they record it: nobody may still be reading these outputs.
    char* const outputs = static_cast<char*>(network_.out.data) + static_cast<size_t>(call.first) * kN * sizeof(float);
    device_->check(device_->api().fill(outputs, 0xFF, static_cast<size_t>(call.bucket) * kN * sizeof(float), own_.get()), "fill");
    own_.synchronize();
    device_->check(device_->api().begin_capture(own_.get()), "capture");
    put(call, own_.get());
    device_->check(device_->api().end_capture(own_.get(), &graph), "capture");
    return graph;
  }
  void embed(const float* t, const int64_t* label, size_t n, void* rows, const DeviceStream& stream) override {
    PinnedBuffer host(device_, n * limits_.rows_bytes, "rows");
    std::fill_n(host.as<char>(), host.bytes(), '\0');
    for (size_t i = 0; i < n; ++i) {
      float* row = host.as<float>() + i * limits_.rows_bytes / sizeof(float);
      row[0] = t[i];
      row[1] = static_cast<float>(label[i]);
    }
    stream.copy(rows, host.as<void>(), host.bytes(), DeviceCopy::kToDevice);
    stream.synchronize();
    ++embeds;
  }
  static std::atomic<int> embeds;

 private:
  struct Work {
    ExactNetwork* self;
    DeviceCall call;
  };
  void put(const DeviceCall& call, void* stream) {
    if (options_.before) options_.before(call);
    Work* work = &works_.emplace(std::make_pair(call.bucket, call.first), Work{this, call}).first->second;
    emulated::library().symbol<void(void*, void (*)(void*), void*)>("ddpm_rt_emulated_enqueue")(
        stream, [](void* user) { static_cast<Work*>(user)->self->run(static_cast<Work*>(user)->call); }, work);
  }
  void run(const DeviceCall& call) const {
    for (int place = call.first; place < call.first + call.bucket; ++place) {
      const size_t at = static_cast<size_t>(place);
      const float* rows = reinterpret_cast<const float*>(static_cast<const char*>(network_.rows) + at * limits_.rows_bytes);
      const float t = limits_.rows_bytes > 0 ? rows[0] : network_.t[at];
      const int64_t label = limits_.rows_bytes > 0 ? static_cast<int64_t>(rows[1]) : network_.label[at];
      float* out = static_cast<float*>(network_.out.data) + at * kN;
      evaluate(static_cast<const float*>(network_.in.data) + at * kN, t, label, out);
      if (static_cast<float>(label) == options_.bad_label) out[4] = std::nanf("");
    }
  }

  DevicePtr device_;
  NetworkOptions options_;
  DeviceStream own_;
  DeviceLimits limits_;
  GpuNetwork network_{};
  std::map<std::pair<int, int>, void*> graphs_;
  std::map<std::pair<int, int>, Work> works_;
};
inline std::atomic<int> ExactNetwork::embeds{0};

struct RequestOptions {
  int64_t n = 1;
  uint64_t seed = 0;
  std::string sampler = "ddim";
  int steps = 8;
  double eta = 0;
  float scale = 2;
  std::vector<int64_t> labels = {0};   // 1 or n; kClasses: unconditional
  std::vector<StepRow> rows;           // instead of the sampler
  std::vector<float> start;
  bool start_is_state = false;
  bool keep_nonfinite = true;
  void* out = nullptr;                 // device memory
  std::function<bool(int64_t row, int64_t rows, const float* x0, size_t images)> callback;
};

inline RequestOptions asks(int64_t n, uint64_t seed, const char* sampler, int steps, double eta = 0, float scale = 2,
                           std::vector<int64_t> labels = {0}) {
  RequestOptions o;
  o.n = n;
  o.seed = seed;
  o.sampler = sampler;
  o.steps = steps;
  o.eta = eta;
  o.scale = scale;
  o.labels = std::move(labels);
  return o;
}

// A request and the memory it writes.
struct Job {
  std::shared_ptr<Request> request;
  Samples out;
  std::function<bool(int64_t, int64_t, const float*, size_t)> callback;
};

inline std::shared_ptr<const Table> table_of(const RequestOptions& o) {
  static std::map<std::string, std::shared_ptr<const Table>> known;  // as the engine caches them
  if (!o.rows.empty()) {
    Table table;
    table.rows = o.rows;
    for (const StepRow& row : o.rows) {
      table.uses_history = table.uses_history || (row.flags & kPush);
      table.uses_anchor = table.uses_anchor || (row.flags & kKeep);
    }
    return std::make_shared<const Table>(table);
  }
  SolverOptions s;
  s.sampler = o.sampler;
  s.steps = o.steps;
  s.eta = o.eta;
  s.clip = "none";
  auto& table = known[o.sampler + std::to_string(o.steps) + "|" + std::to_string(o.eta)];
  if (table == nullptr) table = std::make_shared<const Table>(compile_table(make_schedule("linear", 1000), {}, s));
  return table;
}

inline std::unique_ptr<Job> submit(LaneBase& lane, const RequestOptions& o) {
  auto job = std::make_unique<Job>();
  const size_t n = static_cast<size_t>(o.n);
  job->out.assign(n * kN, 7.0f);
  job->callback = o.callback;
  RequestSpec spec;
  spec.n = o.n;
  spec.elements = kN;
  spec.table = table_of(o);
  spec.scale = o.scale;
  spec.null_label = kClasses;
  for (size_t i = 0; i < n; ++i) {
    spec.labels.push_back(o.labels[o.labels.size() == 1 ? 0 : i]);
    spec.seeds.push_back(o.seed + i);
  }
  spec.start = o.start;
  spec.start_is_state = o.start_is_state;
  spec.keep_nonfinite = o.keep_nonfinite;
  spec.out = o.out != nullptr ? o.out : job->out.data();
  spec.out_is_device = o.out != nullptr;
  if (o.callback) {
    spec.callback_user = job.get();
    spec.callback = [](void* user, int64_t row, int64_t rows, const float* x0, size_t images) {
      return static_cast<Job*>(user)->callback(row, rows, x0, images) ? 0 : 1;
    };
  }
  job->request = std::make_shared<Request>(std::move(spec));
  lane.submit(job->request);
  return job;
}

inline Samples sample(LaneBase& lane, const RequestOptions& o) {
  const std::unique_ptr<Job> job = submit(lane, o);
  job->request->wait(-1);
  if (job->request->status() != 0) std::printf("status %d: %s\n", job->request->status(), job->request->message().c_str());
  return job->out;
}

inline bool same(const Samples& a, const Samples& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A lane with what it needs around it, at one address.
struct Host {
  ModelSpec model = spec();
  std::unique_ptr<LaneBase> lane;
};
using HostPtr = std::unique_ptr<Host>;

inline HostPtr on_cpu(int max_batch = 32) {
  auto host = std::make_unique<Host>();
  const DenoiseFn fn = [](const float* x, const float* t, const int64_t* label, size_t count, float* out) {
    for (size_t i = 0; i < count; ++i) evaluate(x + i * kN, t[i], label[i], out + i * kN);
  };
  RunnerOptions options;
  options.max_batch = max_batch;
  const std::vector<Candidate> candidates{{"fp32", [&model = host->model, fn] { return make_callable(model, fn); }}};
  host->lane = std::make_unique<Lane>(std::make_shared<NetworkSource>(NetworkSource{host->model, nullptr, candidates, options}));
  return host;
}

inline HostPtr on_device(const NetworkOptions& network = {}, int max_batch = 6, bool captures = true, int ordinal = 0) {
  auto host = std::make_unique<Host>();
  DeviceLaneOptions options;
  options.max_batch = max_batch;
  options.captures = captures;
  const std::vector<DeviceCandidate> candidates{{"fp32", [network](const DevicePtr& device, const DeviceStream&) {
                                                   return std::make_unique<ExactNetwork>(device, network);
                                                 }}};
  host->lane = std::make_unique<DeviceLane>(host->model, nullptr, emulated::open(ordinal), candidates, options);
  return host;
}

}  // namespace lane_case

#endif  // DDPM_RT_TESTS_GPU_LANE_CASE_H_
