// One call of sample(): a validated copy of its options, and what has come of it.
#ifndef DDPM_RT_REQUEST_H_
#define DDPM_RT_REQUEST_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "conditions.h"
#include "ddpm_rt/ddpm_rt.h"
#include "error.h"
#include "solver.h"

namespace ddpm_rt {

// Which network rows a row needs. s_row is computed as the step does, in float32: exactly 1 or 0 needs one only.
struct Evaluated {
  bool cond, uncond;
};
inline Evaluated evaluated(const StepRow& row, float scale, bool is_conditional) {
  if (row.flags & kNoEval) return {false, false};
  if (!is_conditional) return {false, true};
  const float s = 1.0f + (scale - 1.0f) * row.gs;
  return {s != 0.0f, s != 1.0f};
}

struct NetworkSource;

// Written by the engine before it reaches the lane, constant afterwards.
struct RequestSpec {
  int64_t n = 0;
  size_t elements = 0;
  std::shared_ptr<const Table> table;
  float scale = 1;
  int64_t null_label = 0;
  std::vector<int64_t> labels;   // [n], null_label is unconditional
  std::vector<int64_t> negative; // [n] or empty: labels in the null label's place
  ConditionRows conditions, null_conditions;  // of a plan with conditions; null_conditions where an evaluation needs them
  std::shared_ptr<const NetworkSource> guide;  // null: the own network guides
  std::vector<uint64_t> seeds;   // [n]
  std::vector<float> start;      // [n, elements] or empty: latents, or the first state
  bool start_is_state = false;
  std::vector<float> known, mask;  // [n or 1, elements] or empty: BLEND's operands
  int x0_every = 0;              // above 0: the prediction of every k-th evaluation is kept, counted back from the last
  bool as_uint8 = false, truncate = false;
  size_t channels = 0, pixels = 0;
  double data_lo = -1, data_hi = 1;
  bool keep_nonfinite = false;
  ddpm_rt_step_fn callback = nullptr;
  void* callback_user = nullptr;
  void* out = nullptr;
  bool out_is_device = false;    // memory of the lane's device
  int nfe = 0;

  size_t image_bytes() const { return elements * (as_uint8 ? 1 : sizeof(float)); }
  const float* known_of(int64_t image) const { return of(known, image); }  // null: there is none
  const float* mask_of(int64_t image) const { return of(mask, image); }
  size_t x0_count() const { return x0_every > 0 ? static_cast<size_t>((table->nfe - 1) / x0_every + 1) : 0; }

 private:
  const float* of(const std::vector<float>& all, int64_t image) const {
    return all.empty() ? nullptr : all.data() + (all.size() == elements ? 0 : static_cast<size_t>(image) * elements);
  }
};

// Shared by the host's threads and the lane's. A cancelled request is finished at once: from then on the lane neither
// writes `out` nor calls back, whatever it is in the middle of; who waits also waits for a lane that is inside.
class Request {
 public:
  explicit Request(RequestSpec spec);
  const RequestSpec& spec() const { return spec_; }

  // Host side. wait: Code or 0; false in `finished` when the time ran out. Both throw Error(kDevice) in a forked child.
  bool wait(double seconds);  // negative: for ever
  void cancel();
  // Waits until the lane is outside of this request's callback and device output.
  void let_go();
  int status() const;         // 0 or a Code, once finished
  std::string message() const;
  int64_t rows_done() const { return rows_done_.load(std::memory_order_relaxed); }
  int64_t rows_total() const { return rows_total_; }
  const std::vector<int64_t>& result_labels() const { return result_labels_; }  // -1 is unconditional
  std::vector<int64_t> bad() const;
  const std::vector<float>& x0() const { return x0_; }  // [n, x0_count, elements]; of a request that has succeeded
  double seconds() const;
  bool in_child() const;

  // Lane side.
  void set_lane_thread(std::thread::id id) { lane_thread_ = id; }
  bool is_finished() const { return finished_.load(std::memory_order_acquire); }
  void add_rows_done(int64_t rows) { rows_done_.fetch_add(rows, std::memory_order_relaxed); }
  // Where the prediction of an image's k-th evaluation is kept; null: it is not. Written whether the request is finished or not.
  float* x0_of(int64_t image, int evaluation);
  // Converts and stores one image; finishes the request with its last one.
  void deliver(int64_t image, const float* x, bool bad);
  // The same for an image that is already as the caller wants it; null: where the caller wants it, too.
  void deliver_finished(int64_t image, const void* result, bool bad);
  // Between them the lane may call back, and the device may write `out`: false where the request is finished.
  bool enter();
  void leave();
  void finish(int status, const std::string& message);
  // Runs the callback on [images, elements]; a cancelling answer finishes the request.
  void call_back(const float* x0, size_t images);

  int64_t next_image = 0;        // lane thread only: the first image not yet admitted

 private:
  void finish_locked(int status, const std::string& message);
  void count_locked(int64_t image, bool is_finite);
  void expect_other_thread(const char* what) const;

  const RequestSpec spec_;
  const int64_t rows_total_;
  const int pid_;
  const std::chrono::steady_clock::time_point submitted_;
  std::vector<int64_t> result_labels_;
  std::vector<float> x0_;
  std::thread::id lane_thread_;
  std::atomic<int64_t> rows_done_{0};
  std::atomic<bool> finished_{false};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int inside_ = 0;
  int64_t delivered_ = 0;
  std::vector<int64_t> bad_;
  int status_ = 0;
  std::string message_;
  double seconds_ = 0;
};

int process_id();

}  // namespace ddpm_rt

#endif  // DDPM_RT_REQUEST_H_
