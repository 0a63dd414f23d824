// What the APIs hold: a model, its lane, and the checks on everything a host passes in.
#ifndef DDPM_RT_ENGINE_H_
#define DDPM_RT_ENGINE_H_

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "ddpm_rt/ddpm_rt.h"
#include "cpu.h"
#include "denoiser.h"
#include "device.h"
#include "lane.h"
#include "native_engine.h"
#include "request.h"
#include "spec.h"

namespace ddpm_rt {

class Device;
struct DeviceCandidate;
struct NetworkSource;
class Engine;

// The numbers of a call's guidance, over the plan's.
void read_guidance(const ddpm_rt_sample_options& options, GuidanceOptions* to);
bool has_guidance(const ddpm_rt_sample_options& options);
std::string guidance_key(const GuidanceOptions& guidance);  // equal where the numbers are
// What a call's edit asks of its table; engine_editing.cpp.
EditOptions read_editing(const ddpm_rt_sample_options& options);
std::string editing_key(const EditOptions& edit);
std::shared_ptr<Request> make_request(RequestSpec spec);  // an Error where what it keeps does not fit in memory
const Engine& engine_of(const ddpm_rt_engine* handle);      // capi_engine.cpp

std::string section_digest(const Plan& plan, const std::string& section);  // hex
// "cuda" or "cuda:N", and what it is as JSON object text; `library` empty: as installed. Throws Error(kDevice).
std::shared_ptr<const Device> open_named(const std::string& device, const std::string& library);
std::string device_info(const std::string& device, const std::string& library);

class Engine {
 public:
  static std::unique_ptr<Engine> open(const std::string& plan_path, const ddpm_rt_engine_options& options);
  static std::unique_ptr<Engine> from_callable(const std::string& manifest, const std::vector<double>& alpha_bar,
                                               DenoiseFn fn, const ddpm_rt_engine_options& options);
  ~Engine();  // cancels what runs, joins

  // Checks and copies all of `options`; throws Error. Any thread of the process that opened the engine, but its own.
  std::shared_ptr<Request> submit(const ddpm_rt_sample_options& options, void* out, size_t out_bytes);
  std::string info() const;
  std::string model() const;  // engine_model.cpp: JSON that read_model takes, and alpha_bar, clip_range
  bool in_child() const { return pid_ != process_id(); }
  bool is_lane_thread() const { return lane_->is_lane_thread(); }

 private:
  Engine(ModelSpec spec, std::shared_ptr<const Plan> plan, const ddpm_rt_engine_options& options);
  void start(std::vector<Candidate> candidates, const std::string& digest);  // which see the engine by its source_ alone
  void start_onnx(const ddpm_rt_engine_options& options);
  // engine_device.cpp
  void open_device(const ddpm_rt_engine_options& options);  // leaves device_ null on the CPU
  bool start_functions(const ddpm_rt_engine_options& options, const std::string& digest);  // false: there are none
  void start_mixture_on_device(const std::string& digest);
  void start_on_device(std::vector<DeviceCandidate> candidates, const std::string& digest);
  void set_defaults(const ddpm_rt_engine_options& options);  // those that depend on the device
  // engine_native.cpp
  void find_native(const ddpm_rt_engine_options& options);
  bool wants_native(const ddpm_rt_engine_options& options) const;  // nothing but a compiled engine will do
  bool start_native(const ddpm_rt_engine_options& options);
  std::string build_command(const std::string& options) const;  // "; COMMAND", for messages
  std::string device_class() const;
  std::string device_name() const;
  std::string device_facts() const;
  void expect_parent() const;
  SolverOptions solver_options_for(const ddpm_rt_sample_options& options) const;
  std::shared_ptr<const Table> table_for(const ddpm_rt_sample_options& options);
  void set_images(const ddpm_rt_sample_options& options, RequestSpec* request) const;
  std::vector<int64_t> labels_of(const int64_t* given, size_t count, const char* field, const RequestSpec& request) const;
  void set_start(const ddpm_rt_sample_options& options, RequestSpec* request) const;
  void set_scale(const ddpm_rt_sample_options& options, RequestSpec* request) const;
  void set_conditions(const ddpm_rt_sample_options& options, RequestSpec* request) const;  // needs n, guide, scale, table
  void set_guide(const ddpm_rt_sample_options& options, RequestSpec* request) const;  // engine_guidance.cpp
  void set_editing(const ddpm_rt_sample_options& options, RequestSpec* request) const;  // engine_editing.cpp; after set_start
  void set_output(const ddpm_rt_sample_options& options, void* out, size_t out_bytes, RequestSpec* request) const;
  std::string fingerprint(const std::string& report) const;

  const std::shared_ptr<NetworkSource> source_;  // another engine's lane may hold it too
  const ModelSpec& spec_;
  const std::shared_ptr<const Plan>& plan_;
  const int pid_;
  int threads_, max_batch_;  // max_batch_ 0: the device's lane chooses
  bool batch_invariant_;
  std::string cache_dir_, digest_;
  LogFn log_;
  std::string skipped_;  // why "auto" passed over a device or a backend
  std::vector<NativeEngine> native_;  // compiled engines of this plan
  DevicePtr device_;
  std::unique_ptr<LaneBase> lane_;

  std::mutex tables_mutex_;
  std::map<std::string, std::shared_ptr<const Table>> tables_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_ENGINE_H_
