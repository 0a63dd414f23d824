// The lane over a backend with fixed batch sizes, played by a network in closed form that also keeps a record: which
// variants were prepared, what lay in the padding, which call fails.
#include "runner.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "lane.h"
#include "plan.h"

using namespace ddpm_rt;

namespace {

constexpr size_t kN = 5;
constexpr int64_t kClasses = 4;

struct Behaviour {
  std::set<std::pair<int, int>> prepared;
  int embedded = 0;
  size_t rows_width = 0;
  bool depends_on_bucket = false, depends_on_slot = false;
  float off_by = 0;
  int64_t fails_on_label = -1;
  bool padding_was_zero = true;
  double seconds_per_prepare = 0, seconds_per_row = 0;
};

void spend(double seconds) {
  if (seconds > 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

// eps_j = x_j / 2 + (label + 1) * t / 8192
class Closed final : public Denoiser {
 public:
  explicit Closed(std::shared_ptr<Behaviour> b) : b_(std::move(b)) {
    limits_.in_elements = limits_.out_elements = kN;
    limits_.takes_label = true;
    limits_.rows_width = b_->rows_width;
    limits_.max_streams = 2;
  }
  const Limits& limits() const override { return limits_; }
  std::string describe() const override { return R"({"backend":"closed"})"; }
  void prepare(int bucket, int streams) override {
    spend(b_->seconds_per_prepare);
    b_->prepared.insert({bucket, streams});
  }
  void bind(const Evaluations& e) override { e_ = e; }
  void run(const Call* calls, size_t count) override {
    CHECK(count >= 1 && count <= static_cast<size_t>(calls[0].streams));
    for (size_t c = 0; c < count; ++c) {
      const Call& call = calls[c];
      CHECK(b_->prepared.count({call.bucket, call.streams}) == 1);
      CHECK(static_cast<size_t>(call.first) + static_cast<size_t>(call.bucket) <= e_.capacity);
      for (int i = 0; i < call.bucket; ++i) row(call, i);
    }
    spend(b_->seconds_per_row * calls[0].bucket);
  }
  void embed(const float* t, const int64_t* label, size_t n, float* rows) override {
    ++b_->embedded;
    for (size_t i = 0; i < n; ++i) {
      rows[2 * i] = t[i];
      rows[2 * i + 1] = static_cast<float>(label[i]);
    }
  }

 private:
  void row(const Call& call, int i) {
    const size_t at = static_cast<size_t>(call.first + i);
    const bool split = limits_.rows_width > 0;
    const float t = split ? e_.rows[2 * at] : e_.t[at];
    const float label = split ? e_.rows[2 * at + 1] : static_cast<float>(e_.label[at]);
    if (i >= call.count) {
      bool zero = split ? t == 0 && label == 0 : t == 0 && label == kClasses;
      for (size_t j = 0; j < kN; ++j) zero = zero && e_.x[at * kN + j] == 0;
      b_->padding_was_zero = b_->padding_was_zero && zero;
    }
    if (i < call.count && static_cast<int64_t>(label) == b_->fails_on_label) throw Error(Code::kBackend, "label refused");
    for (size_t j = 0; j < kN; ++j) {
      float v = 0.5f * e_.x[at * kN + j] + (label + 1) * t / 8192 + b_->off_by;
      if (b_->depends_on_bucket) v += 1e-6f * static_cast<float>(call.bucket);
      if (b_->depends_on_slot) v += 1e-6f * static_cast<float>(i);
      e_.out[at * kN + j] = v;
    }
  }
  std::shared_ptr<Behaviour> b_;
  Limits limits_;
  Evaluations e_;
};

ModelSpec model() {
  ModelSpec spec;
  spec.shape = {static_cast<int64_t>(kN)};
  spec.role = "vector";
  spec.schedule = make_schedule("linear", 1000);
  spec.num_classes = kClasses;
  return spec;
}

struct Bench {
  ModelSpec spec = model();
  std::shared_ptr<const Plan> plan;
  std::vector<std::shared_ptr<Behaviour>> behaviours{std::make_shared<Behaviour>()};
  RunnerOptions options;
  std::unique_ptr<Lane> lane;
  Behaviour& first() { return *behaviours[0]; }

  Bench() { options.threads = 2; }
  void start() {
    std::vector<Candidate> candidates;
    for (const auto& b : behaviours) candidates.push_back({"fp32", [b] { return std::make_unique<Closed>(b); }});
    lane = std::make_unique<Lane>(std::make_shared<NetworkSource>(NetworkSource{spec, plan, candidates, options}));
  }

  std::shared_ptr<Request> submit(std::vector<int64_t> labels, uint64_t seed, int steps, float scale, float* out) {
    RequestSpec r;
    r.n = static_cast<int64_t>(labels.size());
    r.elements = kN;
    SolverOptions o;
    o.steps = steps;
    o.clip = "none";
    r.table = std::make_shared<Table>(compile_table(spec.schedule, spec.prediction, o));
    r.scale = scale;
    r.null_label = kClasses;
    for (size_t i = 0; i < labels.size(); ++i) r.seeds.push_back(seed + i);
    r.labels = std::move(labels);
    r.out = out;
    auto request = std::make_shared<Request>(std::move(r));
    lane->submit(request);
    return request;
  }

  std::vector<float> sample(std::vector<int64_t> labels, uint64_t seed, int steps = 12, float scale = 2) {
    std::vector<float> out(labels.size() * kN);
    const auto request = submit(std::move(labels), seed, steps, scale, out.data());
    request->wait(-1);
    if (request->status() != 0) std::printf("status %d: %s\n", request->status(), request->message().c_str());
    CHECK(request->status() == 0);
    return out;
  }
};

bool same(const float* a, const float* b, size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

void test_first_request_prepares_one() {
  const std::vector<std::pair<size_t, int>> cases{{1, 2}, {3, 8}, {8, 16}, {9, 32}, {16, 32}, {20, 16}};  // images, bucket
  for (const auto& [images, bucket] : cases) {
    Bench bench;
    bench.start();
    bench.sample(std::vector<int64_t>(images, 1), 0);
    CHECK(bench.first().prepared.size() == 1);
    CHECK(bench.first().prepared.count({bucket, 1}) == 1);
    CHECK(bench.first().padding_was_zero);
  }
}

void test_bits_in_any_bucket() {
  Bench bench;
  bench.options.max_batch = 12;
  bench.start();
  const std::vector<float> alone = bench.sample({2}, 7);
  for (size_t n : {2, 5, 9, 13, 30}) {
    std::vector<int64_t> labels(n, 0);
    labels[n - 1] = 2;
    const std::vector<float> batch = bench.sample(labels, 7 - (n - 1));
    CHECK(same(batch.data() + (n - 1) * kN, alone.data(), kN));
  }
  // At scale 1 and 0, and without a label, one evaluation a row: other packings, other paddings.
  const std::vector<float> mixed = bench.sample({2, 4, 1}, 7, 12, 1);
  CHECK(same(mixed.data(), bench.sample({2}, 7, 12, 1).data(), kN));
  CHECK(same(mixed.data() + kN, bench.sample({4}, 8, 12, 5).data(), kN));  // scale is nothing to the unconditional
  CHECK(same(bench.sample({3}, 8, 12, 0).data(), mixed.data() + kN, kN));
  CHECK(bench.first().padding_was_zero);
}

void test_embeddings() {
  Bench plain, split;
  split.first().rows_width = 2;
  plain.start();
  split.start();
  for (int round = 0; round < 3; ++round) {
    const std::vector<float> a = plain.sample({0, 3, 4, 1, 2}, 5, 100), b = split.sample({0, 3, 4, 1, 2}, 5, 100);
    CHECK(same(a.data(), b.data(), a.size()));
  }
  CHECK(split.first().padding_was_zero);
  // 5 labels x 100 times in batches of 64; the probe of each variant (at most 6) embeds its own rows one by one.
  const int probes = split.first().embedded;
  split.sample({0, 3, 4, 1, 2}, 6, 100);
  CHECK(split.first().embedded == probes);
  CHECK(probes <= 5 * 2 + 6 * 32);
}

void test_probe() {
  Bench bucket_matters;  // the second variant is refused, the first goes on
  bucket_matters.first().depends_on_bucket = true;
  bucket_matters.first().seconds_per_row = 1e-4;
  bucket_matters.start();
  const std::vector<float> nine = bucket_matters.sample(std::vector<int64_t>(9, 1), 0, 800, 1);
  CHECK(bucket_matters.first().prepared.count({16, 1}) == 1 && bucket_matters.first().prepared.size() > 1);
  CHECK(bucket_matters.lane->report().find("\"invariance_probe\":\"failed\"") != std::string::npos);
  CHECK(same(bucket_matters.sample({1}, 0, 800, 1).data(), nine.data(), kN));

  Bench slot_matters;  // then rows run alone
  slot_matters.first().depends_on_slot = true;
  slot_matters.start();
  const std::vector<float> batch = slot_matters.sample(std::vector<int64_t>(6, 1), 0);
  CHECK(same(slot_matters.sample({1}, 5).data(), batch.data() + 5 * kN, kN));
  CHECK(slot_matters.lane->report().find("\"single_rows_only\":true") != std::string::npos);

  Bench free;  // without the promise nothing is refused
  free.options.batch_invariant = false;
  free.first().depends_on_slot = true;
  free.start();
  free.sample(std::vector<int64_t>(6, 1), 0);
  CHECK(free.first().prepared.size() == 1);
  CHECK(free.lane->report().find("\"single_rows_only\":false") != std::string::npos);
}

void test_variants_that_pay() {
  Bench bench;
  bench.first().seconds_per_row = 1e-4;  // 9 evaluations: 16 rows cost 1.6 ms, 8 + 1 cost 0.9 ms
  bench.first().seconds_per_prepare = 5e-3;
  bench.start();
  bench.sample(std::vector<int64_t>(9, 1), 0, 20, 1);
  CHECK(bench.first().prepared.size() == 1);  // twenty ticks do not repay two more
  const std::vector<float> longer = bench.sample(std::vector<int64_t>(9, 1), 0, 1000, 1);
  CHECK(bench.first().prepared.count({8, 1}) == 1 || bench.first().prepared.count({4, 2}) == 1);
  CHECK(same(bench.sample({1}, 0, 1000, 1).data(), longer.data(), kN));
  CHECK(bench.first().padding_was_zero);
}

void test_costs_are_kept() {
  const std::string key = "test_costs_are_kept\n{\"backend\":\"closed\"}\nfp32\n2";
  const std::string file = "./cost-" + hex(sha256(key.data(), key.size())).substr(0, 32) + ".json";
  std::remove(file.c_str());
  {
    Bench bench;
    bench.options.cache_dir = ".";
    bench.options.digest = "test_costs_are_kept";
    bench.first().seconds_per_row = 1e-4;
    bench.start();
    bench.sample(std::vector<int64_t>(9, 1), 0, 1000, 1);
    CHECK(bench.first().prepared.size() > 1);
  }
  {
    Bench again;  // knows the costs: for these eight the wide bucket is never prepared
    again.options.cache_dir = ".";
    again.options.digest = "test_costs_are_kept";
    again.first().seconds_per_row = 1e-4;
    again.start();
    again.sample(std::vector<int64_t>(8, 1), 0, 20, 1);
    CHECK(again.first().prepared.count({16, 1}) == 0);
  }
  CHECK(std::remove(file.c_str()) == 0);
}

void test_failing_call() {
  Bench bench;
  bench.options.max_batch = 16;
  bench.start();
  const std::vector<float> truth = bench.sample({0, 1}, 3, 40);
  bench.first().fails_on_label = 3;
  std::vector<float> bad(kN);
  const auto a = bench.submit({3}, 9, 40, 2, bad.data());
  a->wait(-1);
  CHECK(a->status() == static_cast<int>(Code::kBackend) && a->message() == "label refused");
  CHECK(same(bench.sample({0, 1}, 3, 40).data(), truth.data(), truth.size()));
}

void test_self_test_and_candidates() {
  std::vector<float> data;
  for (size_t j = 0; j < kN; ++j) data.push_back(0.25f * static_cast<float>(j));
  data.push_back(512);
  data.push_back(1);
  for (size_t j = 0; j < kN; ++j) data.push_back(0.125f * static_cast<float>(j) + 0.125f);
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(data.data());
  const std::string path = "test_runner.plan";
  write_plan(path, "{}", {{"self_test", std::vector<uint8_t>(bytes, bytes + data.size() * sizeof(float))}});
  const auto plan = Plan::open(path);
  std::remove(path.c_str());

  Bench bench;  // the first candidate is wrong, the second right
  bench.plan = plan;
  bench.spec.self_test.section = "self_test";
  bench.spec.self_test.count = 1;
  bench.behaviours.push_back(std::make_shared<Behaviour>());
  bench.behaviours[0]->off_by = 0.01f;
  bench.start();
  const std::vector<float> out = bench.sample({1, 2, 3}, 4);
  CHECK(bench.behaviours[1]->prepared.size() == 1);
  CHECK(bench.lane->report().find("\"status\":\"passed\"") != std::string::npos);
  Bench right;
  right.start();
  CHECK(same(right.sample({1, 2, 3}, 4).data(), out.data(), out.size()));

  Bench wrong;
  wrong.plan = plan;
  wrong.spec.self_test = bench.spec.self_test;
  wrong.first().off_by = 0.01f;
  wrong.start();
  std::vector<float> lost(kN);
  for (int round = 0; round < 2; ++round) {
    const auto request = wrong.submit({1}, 0, 5, 1, lost.data());
    request->wait(-1);
    CHECK(request->status() == static_cast<int>(Code::kBackend));
    CHECK(request->message().find("self-test: expected") == 0);
  }
}

}  // namespace

int main() {
  test_first_request_prepares_one();
  test_bits_in_any_bucket();
  test_embeddings();
  test_probe();
  test_variants_that_pay();
  test_costs_are_kept();
  test_failing_call();
  test_self_test_and_candidates();
  return finish();
}
