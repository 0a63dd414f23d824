#include "request.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "step.h"

#ifdef _WIN32
#include <process.h>
#else
#include <unistd.h>
#endif

namespace ddpm_rt {
namespace {

constexpr double kLongestWait = 1e9;  // seconds; beyond, a deadline overflows the clock

std::vector<int64_t> public_labels(const RequestSpec& spec) {
  std::vector<int64_t> labels = spec.labels;
  std::replace(labels.begin(), labels.end(), spec.null_label, int64_t{-1});
  return labels;
}

}  // namespace

int process_id() {
#ifdef _WIN32
  return _getpid();
#else
  return static_cast<int>(getpid());
#endif
}

Request::Request(RequestSpec spec)
    : spec_(std::move(spec)),
      rows_total_(spec_.n * static_cast<int64_t>(spec_.table->rows.size())),
      pid_(process_id()),
      submitted_(std::chrono::steady_clock::now()),
      result_labels_(public_labels(spec_)),
      x0_(static_cast<size_t>(spec_.n) * spec_.x0_count() * spec_.elements) {}

float* Request::x0_of(int64_t image, int evaluation) {
  if (x0_.empty()) return nullptr;
  const int left = spec_.table->nfe - 1 - evaluation;
  if (left < 0 || left % spec_.x0_every != 0) return nullptr;
  const size_t count = spec_.x0_count(), at = count - 1 - static_cast<size_t>(left / spec_.x0_every);
  return x0_.data() + (static_cast<size_t>(image) * count + at) * spec_.elements;
}

bool Request::in_child() const { return pid_ != process_id(); }

void Request::expect_other_thread(const char* what) const {
  if (in_child()) {
    throw Error(Code::kDevice, std::string(what) + ": expected the process that opened the engine, got a forked child");
  }
  if (std::this_thread::get_id() == lane_thread_) {
    throw Error(Code::kOption, std::string(what) + ": expected another thread, got the engine's own: it would wait for itself");
  }
}

bool Request::wait(double seconds) {
  if (in_child() || !is_finished()) expect_other_thread("request");
  std::unique_lock<std::mutex> lock(mutex_);
  const auto done = [this] { return is_finished() && inside_ == 0; };
  if (std::this_thread::get_id() == lane_thread_) return is_finished();
  if (seconds < 0 || !(seconds < kLongestWait)) {
    changed_.wait(lock, done);
    return true;
  }
  const auto limit = std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
  return changed_.wait_until(lock, std::chrono::steady_clock::now() + limit, done);
}

void Request::cancel() {
  if (in_child()) return;
  finish(static_cast<int>(Code::kCancelled), "request: cancelled");
}

void Request::let_go() {
  if (in_child() || std::this_thread::get_id() == lane_thread_) return;
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return inside_ == 0; });
}

int Request::status() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

std::string Request::message() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return message_;
}

std::vector<int64_t> Request::bad() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<int64_t> sorted = bad_;
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

double Request::seconds() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return seconds_;
}

void Request::finish(int status, const std::string& message) {
  std::lock_guard<std::mutex> lock(mutex_);
  finish_locked(status, message);
}

void Request::finish_locked(int status, const std::string& message) {
  if (is_finished()) return;
  status_ = status;
  message_ = message;
  seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - submitted_).count();
  finished_.store(true, std::memory_order_release);
  changed_.notify_all();
}

void Request::deliver(int64_t image, const float* x, bool bad) {
  const size_t N = spec_.elements;
  bool finite = !bad;
  for (size_t i = 0; finite && i < N; ++i) finite = std::isfinite(x[i]);
  std::lock_guard<std::mutex> lock(mutex_);
  if (is_finished()) return;
  const size_t at = static_cast<size_t>(image) * N;
  if (spec_.as_uint8) {
    to_uint8_nhwc(x, spec_.channels, spec_.pixels, static_cast<float>(spec_.data_lo), static_cast<float>(spec_.data_hi),
                  spec_.truncate, static_cast<uint8_t*>(spec_.out) + at);
  } else {
    std::memcpy(static_cast<float*>(spec_.out) + at, x, N * sizeof(float));
  }
  count_locked(image, finite);
}

void Request::deliver_finished(int64_t image, const void* result, bool bad) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (is_finished()) return;
  const size_t each = spec_.image_bytes();
  if (result != nullptr) std::memcpy(static_cast<char*>(spec_.out) + static_cast<size_t>(image) * each, result, each);
  count_locked(image, !bad);
}

void Request::count_locked(int64_t image, bool is_finite) {
  if (!is_finite) bad_.push_back(image);
  if (++delivered_ < spec_.n) return;
  if (bad_.empty() || spec_.keep_nonfinite) return finish_locked(0, "");
  finish_locked(static_cast<int>(Code::kNumeric),
                "images: expected finite values, got " + std::to_string(bad_.size()) + " of " + std::to_string(spec_.n) +
                    " that are not; the first is image " + std::to_string(*std::min_element(bad_.begin(), bad_.end())));
}

bool Request::enter() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (is_finished()) return false;
  ++inside_;
  return true;
}

void Request::leave() {
  std::lock_guard<std::mutex> lock(mutex_);
  --inside_;
  changed_.notify_all();
}

void Request::call_back(const float* x0, size_t images) {
  if (!enter()) return;
  const int answer = spec_.callback(spec_.callback_user, rows_done(), rows_total_, x0, images);
  if (answer != 0) finish(static_cast<int>(Code::kCancelled), "callback: asked to stop");
  leave();
}

}  // namespace ddpm_rt
