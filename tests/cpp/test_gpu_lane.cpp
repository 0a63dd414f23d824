// The loop on the emulated device: every sample has the bits that the CPU's lane gives it, whatever its company, the form
// its ticks are launched in, and the moment at which others come and go.
#include <atomic>
#include <thread>

#include "check.h"
#include "gpu_lane_case.h"

using namespace lane_case;

namespace {

// Rows that no sampler of today makes: history, anchor, guidance intervals, rows without an evaluation, reductions.
std::vector<StepRow> odd_rows() {
  RequestOptions o;
  o.sampler = "ddpm";
  o.steps = 9;
  std::vector<StepRow> rows = table_of(o)->rows;
  for (size_t i = 0; i < rows.size(); ++i) {
    StepRow& row = rows[i];
    row.gs = i % 4 == 1 ? 0.0f : 1.0f;  // single evaluations inside a guided run
    row.flags |= kPush;
    row.wh[1] = 1.0f;
    if (i > 0) row.wx[kH1] = 0.125f;
    if (i > 2) row.wx[kH3] = -0.0625f;
    if (i == 2) row.flags |= kKeep, row.wy[0] = 1.0f;
    if (i > 4) row.wx[kY] = 0.03125f;
    if (i == 5) row.flags |= kNoEval, row.wx[kE] = row.q = 0;
    if (i == 6) row.flags |= kThreshold, row.threshold_p = 0.9f, row.threshold_cap = 3.0f;
    if (i == 7) row.flags |= kRescale, row.phi = 0.7f;
    if (i == 5) row.wh[1] = 0, row.wh[0] = 0.5f;
  }
  return rows;
}

std::vector<RequestOptions> mixed() {
  std::vector<RequestOptions> all(7);
  all[0] = asks(3, 10, "ddpm", 20, 0, 2.0f, {0, 1, 2});
  all[1] = asks(9, 20, "ddim", 7, 0, 1.0f, {1});          // more than the slots; one evaluation each
  all[2] = asks(2, 30, "ddim", 5, 1, 0.0f, {2});          // unconditional by scale
  all[3] = asks(4, 40, "ddim", 6, 0.5, 3.5f, {kClasses, 0, kClasses, 1});
  all[4].n = 2, all[4].seed = 50, all[4].rows = odd_rows(), all[4].scale = 2.5f;
  all[5] = asks(2, 60, "ddim", 4, 0, 2.0f, {0});
  for (size_t i = 0; i < 2 * kN; ++i) all[5].start.push_back(0.01f * static_cast<float>(i));
  all[6] = all[5];
  all[6].start_is_state = true;
  all[6].sampler = "ddpm";
  return all;
}

std::vector<Samples> alone(LaneBase& lane) {
  std::vector<Samples> all;
  for (const RequestOptions& o : mixed()) all.push_back(sample(lane, o));
  return all;
}

const std::vector<Samples>& truth() {
  static const std::vector<Samples> known = alone(*on_cpu()->lane);
  return known;
}

void expect_truth(const std::vector<Samples>& got, const char* what) {
  for (size_t i = 0; i < truth().size(); ++i) {
    const bool equal = same(got[i], truth()[i]);
    if (!equal) std::printf("%s: request %zu differs\n", what, i);
    CHECK(equal);
  }
}

void test_alone() {
  for (Form form : {Form::kPlain, Form::kCaptured, Form::kRaw}) {
    for (bool any_batch : {true, false}) {
      if (kIsSlow && any_batch == (form == Form::kRaw)) continue;
      NetworkOptions network;
      network.form = form;
      network.any_batch = any_batch;
      const HostPtr host = on_device(network);
      const std::string what = std::to_string(static_cast<int>(form)) + (any_batch ? " free" : " buckets");
      expect_truth(alone(*host->lane), what.c_str());
      if (!kIsSlow) expect_truth(alone(*host->lane), (what + " again").c_str());
    }
  }
  if (kIsSlow) return;
  expect_truth(alone(*on_device({}, 6, false)->lane), "without graphs");
  expect_truth(alone(*on_device({}, 1)->lane), "one slot");
  expect_truth(alone(*on_device({}, 17)->lane), "seventeen slots");
  NetworkOptions embedded;
  embedded.rows_bytes = 16;
  const HostPtr host = on_device(embedded);
  const int before = ExactNetwork::embeds;
  expect_truth(alone(*host->lane), "embeddings");
  const int between = ExactNetwork::embeds;
  expect_truth(alone(*host->lane), "embeddings kept");
  CHECK(between > before);
  CHECK(ExactNetwork::embeds - between <= 2);  // a table of one's own is another pointer with the same rows
}

// All at once, some cancelled by others, three times over: arrivals between ticks, moving places, graphs of many lists.
void test_company() {
  for (bool any_batch : {true, false}) {
    NetworkOptions network;
    network.any_batch = any_batch;
    const HostPtr host = on_device(network);
    for (int round = 0; round < (kIsSlow ? 1 : 3); ++round) {
      std::vector<std::unique_ptr<Job>> jobs, victims;
      std::thread canceller;
      for (const RequestOptions& o : mixed()) {
        RequestOptions stranger = o;
        stranger.seed += 1000;
        victims.push_back(submit(*host->lane, stranger));
        jobs.push_back(submit(*host->lane, o));
      }
      canceller = std::thread([&] {
        for (auto& victim : victims) {
          std::this_thread::sleep_for(std::chrono::milliseconds(round));
          victim->request->cancel();
        }
      });
      std::vector<Samples> got;
      for (auto& job : jobs) {
        job->request->wait(-1);
        CHECK(job->request->status() == 0);
        got.push_back(job->out);
      }
      canceller.join();
      expect_truth(got, "in company");
    }
  }
}

void test_two_lanes() {
  const HostPtr a = on_device({}, 4), b = on_device({}, 5, true, 1);
  std::vector<Samples> of_a, of_b;
  std::thread other([&] { of_b = alone(*b->lane); });
  of_a = alone(*a->lane);
  other.join();
  expect_truth(of_a, "lane a");
  expect_truth(of_b, "lane b");
}

void test_previews() {
  RequestOptions o = asks(3, 77, "ddim", 6);
  std::vector<Samples> expected, got;
  for (int k = 0; k < 2; ++k) {
    const HostPtr host = k == 0 ? on_cpu() : on_device();
    std::vector<Samples>& seen = k == 0 ? expected : got;
    int64_t last_row = 0;
    o.callback = [&](int64_t row, int64_t rows, const float* x0, size_t images) {
      CHECK(rows == 18 && images == 3 && row == last_row + 3);
      last_row = row;
      seen.emplace_back(x0, x0 + images * kN);
      return true;
    };
    std::unique_ptr<Job> company = submit(*host->lane, asks(2, 5, "ddpm", 11));
    const Samples out = sample(*host->lane, o);
    company->request->wait(-1);
    CHECK(seen.size() == 6 && same(seen.back(), out));
  }
  CHECK(expected.size() == got.size());
  for (size_t i = 0; i < got.size() && i < expected.size(); ++i) CHECK(same(got[i], expected[i]));
}

void test_cancel() {
  const HostPtr host = on_device();
  RequestOptions o = asks(4, 100, "ddpm", 400);
  o.callback = [](int64_t row, int64_t, const float*, size_t) { return row < 40; };
  const auto victim = submit(*host->lane, o);
  const auto survivor = submit(*host->lane, mixed()[0]);
  victim->request->wait(-1);
  CHECK(victim->request->status() == static_cast<int>(Code::kCancelled));
  CHECK(victim->request->rows_done() < 60);  // at most the two ticks that were in flight
  survivor->request->wait(-1);
  CHECK(same(survivor->out, truth()[0]));
  CHECK(std::all_of(victim->out.begin(), victim->out.end(), [](float v) { return v == 7.0f; }));

  o.callback = nullptr;
  const auto second = submit(*host->lane, o);
  second->request->cancel();
  second->request->wait(-1);
  CHECK(second->request->status() == static_cast<int>(Code::kCancelled));
  CHECK(same(sample(*host->lane, mixed()[0]), truth()[0]));
}

// Results straight into device memory, of a request that ends and of one that is cancelled on the way.
void test_output_on_the_device() {
  const HostPtr host = on_device();
  const DevicePtr device = emulated::open();
  const DeviceBuffer out(device, 9 * kN * sizeof(float), "out");
  RequestOptions o = mixed()[1];
  o.out = out.as<void>();
  const int64_t copies = emulated::get("to_host");
  const auto job = submit(*host->lane, o);
  job->request->wait(-1);
  CHECK(emulated::get("to_host") == copies);
  CHECK(same(Samples(out.as<float>(), out.as<float>() + 9 * kN), truth()[1]));
  for (int round = 0; round < (kIsSlow ? 3 : 20); ++round) {
    const auto brief = std::make_unique<DeviceBuffer>(device, 9 * kN * sizeof(float), "brief");
    o.out = brief->as<void>();
    const auto lost = submit(*host->lane, o);
    std::this_thread::sleep_for(std::chrono::microseconds(500 * round));
    lost->request->cancel();
    lost->request->wait(-1);  // from here on nobody writes: the memory goes
  }
}

void test_close_while_running() {
  auto host = on_device();
  const auto job = submit(*host->lane, asks(50, 0, "ddpm", 300));
  host->lane.reset();
  job->request->wait(-1);
  CHECK(job->request->status() == static_cast<int>(Code::kCancelled));
}

void test_report() {
  NetworkOptions network;
  network.any_batch = false;
  const HostPtr host = on_device(network);
  sample(*host->lane, mixed()[0]);
  const std::string report = host->lane->report();
  CHECK(report.find(R"("backend":"exact")") != std::string::npos);
  CHECK(report.find(R"("invariance_probe":"passed")") != std::string::npos);
  const LaneBase::Stats stats = host->lane->stats();
  CHECK(stats.ticks == 20 && stats.images == 3 && stats.evaluations == 20 * 6);
  CHECK(stats.tick_seconds > 0 && stats.run_seconds > 0);
}

}  // namespace

int main() {
  test_alone();
  test_company();
  test_two_lanes();
  test_previews();
  test_cancel();
  test_output_on_the_device();
  test_close_while_running();
  test_report();
  return finish();
}
