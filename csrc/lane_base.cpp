#include "lane_base.h"

#include <algorithm>
#include <utility>

namespace ddpm_rt {

void LaneBase::start() {
  thread_ = std::thread([this] { main(); });
}

void LaneBase::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  arrived_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void LaneBase::submit(std::shared_ptr<Request> request) {
  request->set_lane_thread(thread_.get_id());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    arrivals_.push_back(std::move(request));
  }
  arrived_.notify_one();
}

LaneBase::Stats LaneBase::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void LaneBase::add_stats(const Stats& more) {
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.ticks += more.ticks;
  stats_.evaluations += more.evaluations;
  stats_.images += more.images;
  stats_.tick_seconds += more.tick_seconds;
  stats_.run_seconds += more.run_seconds;
  stats_.embed_seconds += more.embed_seconds;
}

void LaneBase::main() {
  on_start();
  while (take_arrivals()) {
    try {
      tick();
    } catch (const Error& e) {
      fail_all(e.code(), e.what());
    } catch (const std::exception& e) {
      fail_all(Code::kInternal, e.what());
    }
  }
  for (const auto& request : waiting_) request->cancel();
  fail_all(Code::kCancelled, "engine: closed while the request was running");
  on_idle();
}

bool LaneBase::take_arrivals() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!has_work() && waiting_.empty() && arrivals_.empty() && !stopping_) {
    lock.unlock();
    on_idle();
    lock.lock();
    arrived_.wait(lock, [this] { return !arrivals_.empty() || stopping_; });
  }
  for (auto& request : arrivals_) waiting_.push_back(std::move(request));
  arrivals_.clear();
  return !stopping_;
}

void LaneBase::drop_waiting_finished() {
  const auto is_done = [](const std::shared_ptr<Request>& r) { return r->is_finished(); };
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), is_done), waiting_.end());
}

std::shared_ptr<Request> LaneBase::next_waiting() {
  if (waiting_.empty()) return nullptr;
  if (turn_ >= waiting_.size()) turn_ = 0;
  std::shared_ptr<Request> request = waiting_[turn_];
  if (request->next_image + 1 == request->spec().n) {
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(turn_));
  } else {
    ++turn_;
  }
  return request;
}

double LaneBase::waiting_rows() const {
  double rows = 0;
  for (const auto& r : waiting_) {
    rows += static_cast<double>(r->spec().n - r->next_image) * static_cast<double>(r->spec().table->rows.size());
  }
  return rows;
}

}  // namespace ddpm_rt
