// The device lane when something fails: whose fault it is fails alone, the lane and its neighbours go on; and what the host
// asks of the device between the first and the last tick of a request, which is nothing but launches and looks.
#include <atomic>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "gpu_lane_case.h"

using namespace lane_case;

namespace {

bool failed_with(const Job& job, Code code, const std::string& part) {
  job.request->wait(-1);
  const bool is_right = job.request->status() == static_cast<int>(code) && job.request->message().find(part) != std::string::npos;
  if (!is_right) std::printf("status %d: %s\n", job.request->status(), job.request->message().c_str());
  return is_right;
}

const RequestOptions kGood = asks(3, 7, "ddpm", kIsSlow ? 20 : 60, 0, 2, {0, 1, kClasses});

const Samples& truth() {
  static const Samples known = sample(*on_cpu()->lane, kGood);
  return known;
}

void expect_well(Host& host, const char* what) {
  const bool is_well = same(sample(*host.lane, kGood), truth());
  if (!is_well) std::printf("%s: the lane is not well\n", what);
  CHECK(is_well);
}

// A table that nobody has used needs device and pinned memory when its request is admitted: only that request pays.
void test_no_memory_at_admission() {
  const HostPtr host = on_device();
  expect_well(*host, "fresh");
  for (const char* kind : {"fail allocate", "fail allocate_pinned"}) {
    static int steps = 30;
    std::unique_ptr<Job> neighbour = submit(*host->lane, kGood);
    while (neighbour->request->rows_done() < 3) std::this_thread::yield();
    emulated::set(kind, 1);
    const auto victim = submit(*host->lane, asks(2, 1, "ddim", ++steps));
    CHECK(failed_with(*victim, Code::kDevice, "table"));
    neighbour->request->wait(-1);
    CHECK(same(neighbour->out, truth()));
    emulated::set(kind, 0);
    expect_well(*host, kind);
    CHECK(sample(*host->lane, asks(2, 1, "ddim", steps)).size() == 2 * kN);
  }
  // Registers that only some tables need come late, while others run.
  std::unique_ptr<Job> neighbour = submit(*host->lane, kGood);
  while (neighbour->request->rows_done() < 3) std::this_thread::yield();
  RequestOptions late = asks(1, 2, "ddpm", 5);
  late.rows = table_of(late)->rows;
  for (size_t i = 0; i < late.rows.size(); ++i) {
    late.rows[i].flags |= kPush;
    late.rows[i].wh[1] = 1;
    if (i > 0) late.rows[i].wx[kH1] = 0.25f;
  }
  const Samples expected = sample(*on_cpu()->lane, late);
  CHECK(same(sample(*host->lane, late), expected));
  neighbour->request->wait(-1);
  CHECK(same(neighbour->out, truth()));
}

// A call of the device that fails in a tick fails what is resident, with a DeviceError; the lane is as new after it.
void test_device_calls() {
  const HostPtr host = on_device();
  for (const char* kind : {"to_device", "apply", "step", "advance", "finish", "record", "query"}) {
    for (int after : {1, 2, 7}) {
      if (kIsSlow && after == 7) continue;
      const std::unique_ptr<Job> job = submit(*host->lane, kGood);
      while (job->request->rows_done() < 3 && !job->request->is_finished()) std::this_thread::yield();
      emulated::set((std::string("fail ") + kind).c_str(), after);
      const std::unique_ptr<Job> other = submit(*host->lane, asks(5, 99, "ddim", 6));
      job->request->wait(-1);
      other->request->wait(-1);
      const bool is_consumed = emulated::get((std::string("fail ") + kind).c_str()) == 0;
      const int status = job->request->status();
      CHECK(status == static_cast<int>(Code::kDevice) || (status == 0 && same(job->out, truth())));
      emulated::set((std::string("fail ") + kind).c_str(), 0);
      if (!is_consumed) continue;
      expect_well(*host, kind);
    }
  }
}

// A graph that cannot be made or launched is replaced by its pieces: nobody fails.
void test_graphs_fall_back() {
  for (Form form : {Form::kCaptured, Form::kRaw}) {
    for (const char* kind : {"fail capture", "fail instantiate", "fail launch_graph", "fail add_child"}) {
      if (form == Form::kCaptured && std::string(kind) == "fail add_child") continue;
      NetworkOptions network;
      network.form = form;
      const HostPtr host = on_device(network);
      emulated::set(kind, form == Form::kRaw && std::string(kind) == "fail capture" ? 2 : 1);
      expect_well(*host, kind);
      CHECK(emulated::get(kind) == 0);
      expect_well(*host, kind);
    }
  }
}

// Nor where the probe of a batch size is the first to want one.
void test_probes_fall_back() {
  for (Form form : {Form::kCaptured, Form::kRaw}) {
    for (const char* kind : {"fail capture", "fail instantiate"}) {
      NetworkOptions network;
      network.form = form;
      network.any_batch = false;
      const HostPtr host = on_device(network);
      emulated::set(kind, 1);
      expect_well(*host, kind);
      CHECK(emulated::get(kind) == 0);
      expect_well(*host, kind);
    }
  }
}

void test_the_network_fails() {
  for (bool any_batch : {true, false}) {
    std::atomic<int> countdown{0};
    NetworkOptions network;
    network.form = Form::kPlain;
    network.any_batch = any_batch;
    network.before = [&](const DeviceCall&) {
      if (countdown > 0 && --countdown == 0) throw Error(Code::kBackend, "no such digit");
    };
    const HostPtr host = on_device(network);
    expect_well(*host, "fresh");
    countdown = 9;
    const auto alone = submit(*host->lane, kGood);
    CHECK(failed_with(*alone, Code::kBackend, "no such digit"));
    expect_well(*host, "after a network's failure");
  }
  // Batch sizes are free: a fault that follows one request's rows leaves the others alone.
  NetworkOptions network;
  network.form = Form::kPlain;
  std::atomic<int> width{0};
  network.before = [&](const DeviceCall& call) {
    if (width > 0 && (call.bucket == 9 || call.bucket == width)) throw std::runtime_error("this one");
  };
  const HostPtr host = on_device(network);
  expect_well(*host, "fresh");
  const auto good = submit(*host->lane, kGood);  // 5 evaluations
  while (good->request->rows_done() < 3) std::this_thread::yield();
  width = 4;
  const auto bad = submit(*host->lane, asks(2, 3, "ddim", 9, 0, 2, {1}));  // 4 evaluations
  CHECK(failed_with(*bad, Code::kBackend, "this one"));
  good->request->wait(-1);
  CHECK(same(good->out, truth()));
  // While it captures: pieces instead, and then as above.
  NetworkOptions captured;
  std::atomic<int> calls{0};
  captured.before = [&](const DeviceCall&) {
    if (++calls == 2) throw Error(Code::kBackend, "not now");
  };
  expect_well(*on_device(captured), "a capture that fails");
}

void test_nan_stays_with_its_image() {
  for (Form form : {Form::kPlain, Form::kCaptured}) {
    NetworkOptions network;
    network.form = form;
    network.bad_label = 2;
    const HostPtr sick = on_device(network), healthy = on_device();
    RequestOptions o = asks(5, 6, "ddpm", 8, 0, 1, {0, 1, 2, 1, 0});
    const Samples good = sample(*healthy->lane, o);
    const auto job = submit(*sick->lane, o);
    job->request->wait(-1);
    CHECK(job->request->bad() == std::vector<int64_t>{2});
    for (size_t i : {0, 1, 3, 4}) CHECK(std::memcmp(job->out.data() + i * kN, good.data() + i * kN, kN * sizeof(float)) == 0);
    o.keep_nonfinite = false;
    CHECK(failed_with(*submit(*sick->lane, o), Code::kNumeric, "image 2"));
    o.labels = {0, 1, 0, 1, 0};  // the slot of the sick image gives its successor nothing of it
    CHECK(same(sample(*sick->lane, o), sample(*healthy->lane, o)));
  }
}

struct Counts {
  int64_t synchronize, to_device, to_host, on_device, allocate, allocate_pinned, release, release_pinned, capture, launch, query;
  static Counts now() {
    using emulated::get;
    return {get("synchronize"), get("to_device"), get("to_host"), get("on_device"), get("allocate"), get("allocate_pinned"),
            get("release"), get("release_pinned"), get("capture"), get("launch_graph"), get("query")};
  }
};

// From the first tick that ran to the last but one, as the network sees them.
void test_nothing_between_the_first_and_the_last_tick() {
  constexpr int kTicks = kIsSlow ? 40 : 200;
  for (Form form : {Form::kPlain, Form::kCaptured, Form::kRaw}) {
    for (bool any_batch : {true, false}) {
      NetworkOptions network;
      network.form = form;
      network.any_batch = any_batch;
      const HostPtr host = on_device(network);
      RequestOptions o = asks(4, 5, "ddpm", kTicks, 0, 2, {0, 1, 2, kClasses});
      const Samples first = sample(*host->lane, o);  // tables, graphs and buckets are made
      const auto job = submit(*host->lane, o);
      while (job->request->rows_done() < 12) std::this_thread::yield();
      const Counts before = Counts::now();
      while (job->request->rows_done() < 4 * (kTicks - 10)) std::this_thread::yield();
      const Counts after = Counts::now();
      job->request->wait(-1);
      CHECK(same(job->out, first));
      CHECK(after.synchronize == before.synchronize);
      CHECK(after.to_host == before.to_host && after.to_device == before.to_device && after.on_device == before.on_device);
      CHECK(after.allocate == before.allocate && after.allocate_pinned == before.allocate_pinned);
      CHECK(after.release == before.release && after.release_pinned == before.release_pinned);
      CHECK(after.capture == before.capture);
      CHECK(after.query > before.query);
      const int64_t launched = after.launch - before.launch;
      CHECK(form == Form::kPlain ? launched == 0 : launched >= kTicks - 20 && launched <= kTicks);
    }
  }
}

// One packet when a request comes, one when it ends: its results. Nothing else goes up.
void test_packets() {
  const HostPtr host = on_device();
  RequestOptions o = asks(4, 5, "ddpm", 50);
  sample(*host->lane, o);
  const Counts before = Counts::now();
  sample(*host->lane, o);
  const Counts after = Counts::now();
  CHECK(after.to_device - before.to_device == 2);
  CHECK(after.to_host == before.to_host && after.synchronize == before.synchronize);
}

}  // namespace

int main() {
  test_no_memory_at_admission();
  test_device_calls();
  test_graphs_fall_back();
  test_probes_fall_back();
  test_the_network_fails();
  test_nan_stays_with_its_image();
  test_nothing_between_the_first_and_the_last_tick();
  test_packets();
  return finish();
}
