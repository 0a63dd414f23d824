// What every lane is: one thread, the requests that wait for it, and how the engine reaches it. Lane runs on the CPU,
// DeviceLane on a device.
#ifndef DDPM_RT_LANE_BASE_H_
#define DDPM_RT_LANE_BASE_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "request.h"

namespace ddpm_rt {

class LaneBase {
 public:
  struct Stats {
    int64_t ticks = 0, evaluations = 0, images = 0;
    double tick_seconds = 0, run_seconds = 0, embed_seconds = 0;
  };

  virtual ~LaneBase() = default;  // a derived class calls stop() first in its own
  LaneBase(const LaneBase&) = delete;
  LaneBase& operator=(const LaneBase&) = delete;

  void submit(std::shared_ptr<Request> request);  // any thread; never waits for the network
  bool is_lane_thread() const { return std::this_thread::get_id() == thread_.get_id(); }
  Stats stats() const;
  virtual std::string report() const = 0;  // JSON object text: what info() shows of the network. Any thread.

 protected:
  LaneBase() = default;
  void start();  // last in a derived class's constructor
  void stop();   // cancels what runs and joins

  // All on the lane's thread.
  virtual void on_start() = 0;
  virtual void tick() = 0;                      // what it throws fails all requests
  virtual bool has_work() const = 0;            // beside what waits
  virtual void on_idle() = 0;                   // before the thread sleeps, and at the end
  virtual void fail_all(Code code, const std::string& message) = 0;

  // One image from each waiting request in turn, so that a long request does not keep the others out. Null: none waits.
  // The caller admits the request's next_image.
  std::shared_ptr<Request> next_waiting();
  void drop_waiting_finished();
  // Table rows that remain to be executed for images not yet admitted.
  double waiting_rows() const;
  void add_stats(const Stats& more);

  std::vector<std::shared_ptr<Request>> waiting_;  // with images not yet admitted

 private:
  void main();
  bool take_arrivals();  // waits while there is nothing to do; false: stop

  size_t turn_ = 0;      // whose image is admitted next
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<std::shared_ptr<Request>> arrivals_;
  bool stopping_ = false;
  Stats stats_;
  std::thread thread_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_LANE_BASE_H_
