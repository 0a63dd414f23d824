// The one interface behind which every network runs: limits / prepare / bind / run.
//
// A lane packs the evaluations of one tick into one list (`Evaluations`), and asks for calls over stretches of it. A
// call uses a compiled variant (bucket rows, on one of `streams` streams) over rows [first, first + bucket); rows past
// `count` are padding and hold zeros. Nothing is copied: the backend reads and writes the lane's memory.
#ifndef DDPM_RT_DENOISER_H_
#define DDPM_RT_DENOISER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "spec.h"

namespace ddpm_rt {

// How a backend was asked to run; empty strings mean "choose".
struct BackendOptions {
  std::string precision = "auto";  // auto | fp32 | bf16 | fp16
  int threads = 0;                 // 0: min(affinity, cgroup quota, physical cores)
  std::string library;             // path of the backend's shared library, found by the front end; empty: default names
};

struct Limits {
  size_t in_elements = 0;          // per row of x
  size_t out_elements = 0;         // per row of out (2x with learned variance)
  size_t rows_width = 0;           // > 0: the network reads `rows` instead of t and label; embed() fills them
  bool takes_label = false;
  bool any_batch = false;          // true: bucket sizes are free (analytic, callable); false: static buckets
  int max_streams = 1;             // calls of one phase that can run side by side
  int max_bucket = 64;
};

// One input of ModelSpec::condition_inputs(): [capacity, elements].
struct ConditionBuffer {
  float* data;
  size_t elements;
  bool is_mask;
};

// Packed evaluations of one tick. capacity rows each; row-major; owned by the lane, 64-byte aligned, address-stable.
struct Evaluations {
  size_t capacity = 0;
  float* x = nullptr;              // [capacity, in_elements]
  float* t = nullptr;              // [capacity]
  int64_t* label = nullptr;        // [capacity], null label = num_classes
  float* rows = nullptr;           // [capacity, rows_width]
  float* out = nullptr;            // [capacity, out_elements]
  std::vector<ConditionBuffer> conditions;
};

// bucket: rows of the compiled variant. streams: how many such calls run side by side, each on threads/streams threads.
struct Call {
  int bucket, streams;
  int first, count;
};

class Denoiser {
 public:
  virtual ~Denoiser() = default;
  virtual const Limits& limits() const = 0;
  virtual std::string describe() const = 0;   // one line of JSON for info(): backend, version, precision, device
  // Compiles a variant; slow; idempotent. Throws Error(kBackend).
  virtual void prepare(int bucket, int streams) = 0;
  // The buffers all later calls use. Called once per lane before the first run.
  virtual void bind(const Evaluations& evaluations) = 0;
  // Runs 1..streams calls of the same variant side by side and returns when all are done. Throws Error(kBackend).
  virtual void run(const Call* calls, size_t count) = 0;
  // run(), and the seconds the network took: by the clock here, by its own on a device.
  virtual double timed_run(const Call* calls, size_t count);
  // With rows_width > 0: rows[i] for (t[i], label[i]); bits do not depend on n or i.
  virtual void embed(const float* t, const int64_t* label, size_t n, float* rows);
};

// Python and C hosts: eps = fn(x, t, label). Batch `count` varies. Returns false after storing its own error text.
using DenoiseFn = std::function<void(const float* x, const float* t, const int64_t* label, size_t count, float* out)>;

std::unique_ptr<Denoiser> make_openvino(const ModelSpec&, const Plan&, const BackendOptions&);
std::unique_ptr<Denoiser> make_onnxruntime(const ModelSpec&, const Plan&, const BackendOptions&);
std::unique_ptr<Denoiser> make_gaussian_mixture(const ModelSpec&, const Plan&);
std::unique_ptr<Denoiser> make_callable(const ModelSpec&, DenoiseFn);

int default_threads();  // min(affinity, cgroup quota, physical cores), at least 1

}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISER_H_
