// Streams as threads: each executes what is queued on it in order, beside the caller, so that a missing wait is a real
// race. A capturing stream records instead, and nothing of it runs before the graph is launched.
#ifndef DDPM_RT_TESTS_EMULATED_STREAM_H_
#define DDPM_RT_TESTS_EMULATED_STREAM_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace ddpm_rt {

using EmulatedWork = std::function<void()>;
using EmulatedNodes = std::vector<EmulatedWork>;

struct EmulatedGraph {
  std::shared_ptr<const EmulatedNodes> nodes;
};

// How often it was recorded and how often that point was reached.
struct EmulatedEvent {
  std::mutex mutex;
  std::condition_variable reached;
  uint64_t recorded = 0, done = 0;
  std::chrono::steady_clock::time_point when;

  void wait_for(uint64_t record) {
    std::unique_lock<std::mutex> lock(mutex);
    reached.wait(lock, [&] { return done >= record; });
  }
};

class EmulatedStream {
 public:
  EmulatedStream() : thread_([this] { run(); }) {}
  ~EmulatedStream() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    arrived_.notify_all();
    thread_.join();  // after all that was queued
  }

  bool is_capturing() const { return capture_ != nullptr; }
  void begin_capture() { capture_ = std::make_unique<EmulatedNodes>(); }
  std::unique_ptr<EmulatedNodes> end_capture() { return std::move(capture_); }

  void put(EmulatedWork work) {
    if (capture_ != nullptr) {
      capture_->push_back(std::move(work));
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(work));
    }
    arrived_.notify_one();
  }

  void synchronize() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return queue_.empty() && !is_busy_; });
  }

 private:
  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      arrived_.wait(lock, [this] { return !queue_.empty() || stopping_; });
      if (queue_.empty()) return;
      EmulatedWork work = std::move(queue_.front());
      queue_.pop_front();
      is_busy_ = true;
      lock.unlock();
      work();
      work = nullptr;
      lock.lock();
      is_busy_ = false;
      idle_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable arrived_, idle_;
  std::deque<EmulatedWork> queue_;
  bool is_busy_ = false, stopping_ = false;
  std::unique_ptr<EmulatedNodes> capture_;  // of the capturing thread alone
  std::thread thread_;
};

// Runs `work` in the stream's order, or records it; at once without a stream. For the kernels' `launch`.
inline void emulated_enqueue(void* stream, EmulatedWork work) {
  if (stream == nullptr) return work();
  static_cast<EmulatedStream*>(stream)->put(std::move(work));
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_TESTS_EMULATED_STREAM_H_
