// The loop on exact denoisers: numbers against a plain float64 loop, and a sample's bits against every kind of neighbour.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "check.h"
#include "ddpm_rt/ddpm_rt.hpp"
#include "mixture.h"

using ddpm_rt::Engine;
using ddpm_rt::EngineOptions;
using ddpm_rt::Request;
using ddpm_rt::SampleOptions;
using ddpm_rt::alpha_bar;

namespace {

constexpr size_t kN = 10;  // not a multiple of 4: the last noise block is cut

using Samples = std::vector<float>;

EngineOptions no_cache(int max_batch = 0) {
  EngineOptions o;
  o.cache_dir = "";
  o.max_batch = max_batch;
  return o;
}

Mixture single() {
  Mixture m;
  m.shape = {static_cast<int64_t>(kN)};
  for (size_t j = 0; j < kN; ++j) m.means.push_back(0.1 * static_cast<double>(j) - 0.4);
  m.stds = {0.3};
  m.weights = {1};
  return m;
}

Mixture classes() {
  Mixture m = single();
  m.conditional = true;
  m.means.clear();
  for (int k = 0; k < 3; ++k) {
    for (size_t j = 0; j < kN; ++j) m.means.push_back(std::sin(1.0 + k * 5 + static_cast<double>(j)));
  }
  m.stds = {0.2, 0.3, 0.5};
  m.weights = {0.5, 0.3, 0.2};
  m.defaults = R"({"sampler": "ddim", "steps": 10, "scale": 3.0, "clip": "none"})";
  return m;
}

Engine open(const Mixture& m, const EngineOptions& options) {
  static std::atomic<int> serial{0};
  const std::string path = "test_lane_" + std::to_string(serial++) + ".plan";
  ddpm_rt::check(write_mixture(m, path));
  Engine engine(path, options);
  std::remove(path.c_str());
  return engine;
}

SampleOptions floats(int64_t n, uint64_t seed) {
  SampleOptions o;
  o.n = n;
  o.seed = seed;
  o.output = DDPM_RT_FLOAT_NCHW;
  return o;
}

Samples sample(Engine& engine, const SampleOptions& o) {
  Samples out(static_cast<size_t>(o.n) * kN);
  engine.sample(o, out.data(), out.size() * sizeof(float));
  return out;
}

bool same(const float* a, const float* b, size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

ddpm_rt_status status_of(const std::function<void()>& f, std::string* message = nullptr) {
  try {
    f();
  } catch (const ddpm_rt::Exception& e) {
    if (message != nullptr) *message = e.what();
    return e.status();
  }
  return DDPM_RT_OK;
}

// DDPM algorithm 2 with eq. 7, fixed_small, on one Gaussian: float64 throughout but for the shared normals.
std::vector<double> plain_ddpm(const Mixture& m, uint64_t seed) {
  const std::vector<double> ab = alpha_bar("linear");
  std::vector<float> z(kN);
  ddpm_rt_noise(seed, 0, 0, 0, kN, z.data());
  std::vector<double> x(z.begin(), z.end());
  for (int t = 999; t >= 0; --t) {
    const double a = std::sqrt(ab[t]), s = std::sqrt(1 - ab[t]), ab_p = t > 0 ? ab[t - 1] : 1;
    const double beta = 1 - ab[t] / ab_p;
    ddpm_rt_noise(seed, static_cast<uint32_t>(999 - t), 1, 0, kN, z.data());
    for (size_t j = 0; j < kN; ++j) {
      const double v = ab[t] * m.stds[0] * m.stds[0] + s * s;
      const double eps = s * (x[j] - a * m.means[j]) / v;
      const double x0 = (x[j] - s * eps) / a;
      const double mean = std::sqrt(ab_p) * beta / (1 - ab[t]) * x0 + std::sqrt(1 - beta) * (1 - ab_p) / (1 - ab[t]) * x[j];
      x[j] = mean + (t > 0 ? std::sqrt((1 - ab_p) / (1 - ab[t]) * beta) * z[j] : 0);
    }
  }
  return x;
}

// DDIM eq. 12 with eta 0 and guidance u + s (c - u) between one component and the mixture.
std::vector<double> plain_ddim(const Mixture& m, uint64_t seed, int label, double scale, int steps) {
  const std::vector<double> ab = alpha_bar("linear");
  std::vector<float> z(kN);
  ddpm_rt_noise(seed, 0, 0, 0, kN, z.data());
  std::vector<double> x(z.begin(), z.end());
  for (int i = steps - 1; i >= 0; --i) {
    const int t = i * (1000 / steps);
    const double a = std::sqrt(ab[t]), s = std::sqrt(1 - ab[t]), ab_p = i > 0 ? ab[t - 1000 / steps] : 1;
    std::vector<double> r(m.stds.size());
    double total = 0;
    for (size_t k = 0; k < r.size(); ++k) {
      const double v = ab[t] * m.stds[k] * m.stds[k] + s * s;
      double d2 = 0;
      for (size_t j = 0; j < kN; ++j) d2 += std::pow(x[j] - a * m.means[k * kN + j], 2);
      total += r[k] = m.weights[k] * std::exp(-d2 / (2 * v)) / std::pow(v, 0.5 * kN);
    }
    std::vector<double> next(kN);
    for (size_t j = 0; j < kN; ++j) {
      const auto eps_of = [&](size_t k) {
        return s * (x[j] - a * m.means[k * kN + j]) / (ab[t] * m.stds[k] * m.stds[k] + s * s);
      };
      double u = 0;
      for (size_t k = 0; k < r.size(); ++k) u += r[k] / total * eps_of(k);
      const double e = u + scale * (eps_of(static_cast<size_t>(label)) - u);
      next[j] = std::sqrt(ab_p) * (x[j] - s * e) / a + std::sqrt(1 - ab_p) * e;
    }
    x = next;
  }
  return x;
}

void test_numbers() {
  const Mixture one = single();
  Engine engine = open(one, no_cache());
  SampleOptions o = floats(4, 11);
  o.sampler = "ddpm";
  const Samples out = sample(engine, o);
  double worst = 0;
  for (uint64_t i = 0; i < 4; ++i) {
    const std::vector<double> exact = plain_ddpm(one, 11 + i);
    for (size_t j = 0; j < kN; ++j) worst = std::max(worst, std::fabs(out[i * kN + j] - exact[j]));
  }
  std::printf("DDPM, 1000 steps, one Gaussian: max error %.2e of 3e-5\n", worst);
  CHECK(worst <= 3e-5);

  const Mixture three = classes();
  Engine guided = open(three, no_cache());
  for (double scale : {0.0, 1.0, 3.0}) {
    SampleOptions g = floats(3, 5);
    g.labels = {0, 1, 2};
    g.scale = scale;
    g.steps = 20;
    const Samples got = sample(guided, g);
    worst = 0;
    for (int i = 0; i < 3; ++i) {
      const std::vector<double> exact = plain_ddim(three, 5 + static_cast<uint64_t>(i), i, scale, 20);
      for (size_t j = 0; j < kN; ++j) worst = std::max(worst, std::fabs(got[static_cast<size_t>(i) * kN + j] - exact[j]));
    }
    std::printf("DDIM, 20 steps, three Gaussians, scale %g: max error %.2e of 3e-5\n", scale, worst);
    CHECK(worst <= 3e-5);
  }
}

void test_bits_do_not_depend_on_company() {
  const Mixture m = classes();
  Engine engine = open(m, no_cache(6));
  SampleOptions alone = floats(1, 42);
  alone.labels = {1};
  alone.sampler = "ddpm";
  alone.steps = 300;
  const Samples truth = sample(engine, alone);

  SampleOptions eight = alone;  // seeds 35 .. 42, more images than slots
  eight.n = 8;
  eight.seed = 35;
  eight.labels = {0, 2, 0, -1, 1, 2, 0, 1};
  const Samples batch = sample(engine, eight);
  CHECK(same(batch.data() + 7 * kN, truth.data(), kN));
  CHECK(!same(batch.data() + 6 * kN, truth.data(), kN));

  // Strangers of other samplers, lengths, scales and labels join and leave from other threads.
  std::atomic<bool> stop{false};
  std::vector<std::thread> strangers;
  std::atomic<int> served{0};
  for (int who = 0; who < 3; ++who) {
    strangers.emplace_back([&, who] {
      for (uint64_t round = 0; !stop; ++round) {
        SampleOptions o = floats(1 + who, 1000 * static_cast<uint64_t>(who) + round);
        o.sampler = who == 1 ? "ddpm" : "ddim";
        o.steps = 7 + 5 * who;
        o.scale = static_cast<double>(who);
        if (who == 2) o.labels = {-1};
        sample(engine, o);
        ++served;
      }
    });
  }
  int equal = 0;
  for (int round = 0; round < 20; ++round) equal += same(sample(engine, alone).data(), truth.data(), kN);
  while (served < 10) std::this_thread::yield();
  stop = true;
  for (std::thread& t : strangers) t.join();
  CHECK(equal == 20);
  CHECK(same(sample(engine, alone).data(), truth.data(), kN));
}

void test_two_requests_at_once() {
  const Mixture m = classes();
  Engine engine = open(m, no_cache());
  SampleOptions a = floats(5, 1), b = floats(7, 2);
  a.sampler = "ddpm";
  a.steps = 200;
  b.steps = 13;
  b.eta = 1.0;
  const Samples a_alone = sample(engine, a), b_alone = sample(engine, b);
  Samples a_out(5 * kN), b_out(7 * kN);
  Request ra = engine.submit(a, a_out.data(), a_out.size() * sizeof(float));
  Request rb = engine.submit(b, b_out.data(), b_out.size() * sizeof(float));
  ra.wait();
  rb.wait();
  CHECK(same(a_out.data(), a_alone.data(), a_out.size()));
  CHECK(same(b_out.data(), b_alone.data(), b_out.size()));
  CHECK(ra.progress() == std::make_pair(int64_t{1000}, int64_t{1000}));
  CHECK(rb.result().nfe == 26);  // two evaluations a row at scale 3
}

void test_cancel() {
  const Mixture m = classes();
  Engine engine = open(m, no_cache());
  SampleOptions kept = floats(3, 9), dropped = floats(4, 100);
  kept.sampler = dropped.sampler = "ddpm";
  const Samples truth = sample(engine, kept);
  dropped.callback = [](int64_t row, int64_t, const float*, size_t) { return row < 400; };
  Samples out(3 * kN), lost(4 * kN, 7.0f);
  Request victim = engine.submit(dropped, lost.data(), lost.size() * sizeof(float));
  Request survivor = engine.submit(kept, out.data(), out.size() * sizeof(float));
  CHECK(status_of([&] { victim.wait(); }) == DDPM_RT_CANCELLED);
  survivor.wait();
  CHECK(same(out.data(), truth.data(), out.size()));
  CHECK(victim.progress().first < victim.progress().second);
  CHECK(std::all_of(lost.begin(), lost.end(), [](float v) { return v == 7.0f; }));

  // From another thread, at once, whatever the lane is doing; then the output is never written again.
  dropped.callback = nullptr;
  Request second = engine.submit(dropped, lost.data(), lost.size() * sizeof(float));
  second.cancel();
  CHECK(status_of([&] { second.wait(); }) == DDPM_RT_CANCELLED);

  SampleOptions throwing = floats(1, 3);
  throwing.callback = [](int64_t, int64_t, const float*, size_t) -> bool { throw std::runtime_error("from the callback"); };
  bool rethrown = false;
  try {
    Samples one(kN);
    engine.sample(throwing, one.data(), one.size() * sizeof(float));
  } catch (const std::runtime_error& e) {
    rethrown = std::string(e.what()) == "from the callback";
  }
  CHECK(rethrown);
}

void test_previews() {
  const Mixture m = classes();
  Engine engine = open(m, no_cache());
  SampleOptions o = floats(3, 77);
  o.steps = 6;
  Samples last;
  int64_t calls = 0, last_row = 0;
  o.callback = [&](int64_t row, int64_t rows, const float* x0, size_t images) {
    CHECK(images == 3 && rows == 18 && row == last_row + 3);
    last_row = row;
    last.assign(x0, x0 + images * kN);
    ++calls;
    return true;
  };
  const Samples out = sample(engine, o);
  CHECK(calls == 6);
  CHECK(same(last.data(), out.data(), out.size()));  // the last row's x0 is the sample
}

// eps = x * 0.5 for all but what `spoil` says: exact in float32, so any neighbour's effect shows.
const char* const kCallable =
    R"({"sample": {"shape": [10], "role": "vector"}, "prediction": "eps", "num_classes": 4,
        "defaults": {"sampler": "ddim", "steps": 8, "scale": 1.0, "clip": "none"}})";

Engine callable(std::function<void(const int64_t*, size_t, float*)> spoil) {
  return Engine(
      kCallable, alpha_bar("linear"),
      [spoil](const float* x, const float*, const int64_t* label, size_t count, float* out) {
        for (size_t i = 0; i < count * kN; ++i) out[i] = 0.5f * x[i];
        spoil(label, count, out);
      },
      no_cache());
}

void test_nan_stays_with_its_image() {
  Engine healthy = callable([](const int64_t*, size_t, float*) {});
  Engine sick = callable([](const int64_t* label, size_t count, float* out) {
    for (size_t i = 0; i < count; ++i) {
      if (label[i] == 3) out[i * kN + 4] = std::numeric_limits<float>::quiet_NaN();
    }
  });
  SampleOptions o = floats(5, 6);
  o.labels = {0, 1, 3, 2, 0};
  const Samples truth = sample(healthy, o);
  Samples out(5 * kN);
  Request request = sick.submit(o, out.data(), out.size() * sizeof(float));
  std::string message;
  CHECK(status_of([&] { request.wait(); }, &message) == DDPM_RT_NUMERIC_ERROR);
  CHECK(message.find("image 2") != std::string::npos);
  CHECK(request.result().bad == std::vector<int64_t>{2});
  for (size_t i : {0, 1, 3, 4}) CHECK(same(out.data() + i * kN, truth.data() + i * kN, kN));
  o.keep_nonfinite = true;
  CHECK(sick.sample(o, out.data(), out.size() * sizeof(float)).bad == std::vector<int64_t>{2});
  // The slot of the sick image gives its successor nothing of it.
  o.labels = {0, 1, 2, 2, 0};
  const Samples after = sample(sick, o), clean = sample(healthy, o);
  CHECK(same(after.data(), clean.data(), after.size()));
}

void test_error_stays_with_its_request() {
  Engine healthy = callable([](const int64_t*, size_t, float*) {});
  std::atomic<int> shared_calls{0};
  Engine engine = callable([&](const int64_t* label, size_t count, float*) {
    const bool has_bad = std::find(label, label + count, 3) != label + count;
    if (has_bad && !std::all_of(label, label + count, [](int64_t l) { return l == 3; })) ++shared_calls;
    if (has_bad) throw std::runtime_error("no such digit");
  });
  SampleOptions good = floats(4, 1), bad = floats(2, 2);
  good.labels = {1};
  good.sampler = "ddpm";
  good.steps = 200;
  bad.labels = {3};
  const Samples truth = sample(healthy, good);
  for (int round = 0; round < 5; ++round) {
    Samples good_out(4 * kN), bad_out(2 * kN);
    Request a = engine.submit(good, good_out.data(), good_out.size() * sizeof(float));
    Request b = engine.submit(bad, bad_out.data(), bad_out.size() * sizeof(float));
    std::string message;
    CHECK(status_of([&] { b.wait(); }, &message) == DDPM_RT_BACKEND_ERROR);
    CHECK(message == "no such digit");
    a.wait();
    CHECK(same(good_out.data(), truth.data(), good_out.size()));
  }
  CHECK(shared_calls > 0);  // they did share a call, or this test would show nothing
}

void test_calls_from_inside() {
  Engine* self = nullptr;
  ddpm_rt_status inner = DDPM_RT_OK;
  Engine engine = callable([&](const int64_t*, size_t, float*) {
    Samples out(kN);
    inner = status_of([&] { self->sample(floats(1, 0), out.data(), out.size() * sizeof(float)); });
  });
  self = &engine;
  sample(engine, floats(1, 0));
  CHECK(inner == DDPM_RT_OPTION_ERROR);
}

void test_self_test() {
  Mixture m = single();
  const size_t row = kN + 2 + kN;
  m.self_test = R"({"section": "self_test", "count": 1, "tolerance": {"fp32": 2e-4}})";
  const double ab = alpha_bar("linear")[500], a = std::sqrt(ab), s = std::sqrt(1 - ab), v = ab * 0.09 + s * s;
  m.self_test_data.resize(row);
  for (size_t j = 0; j < kN; ++j) {
    m.self_test_data[j] = static_cast<float>(std::cos(static_cast<double>(j)));
    m.self_test_data[kN + 2 + j] = static_cast<float>(s * (m.self_test_data[j] - a * m.means[j]) / v);
  }
  m.self_test_data[kN] = 500;
  Engine right = open(m, no_cache());
  sample(right, floats(2, 0));
  CHECK(right.info().find(R"("status":"passed")") != std::string::npos);

  m.self_test_data[kN + 2] += 0.01f;
  Engine wrong = open(m, no_cache());
  std::string message;
  for (int round = 0; round < 2; ++round) {
    CHECK(status_of([&] { sample(wrong, floats(2, 0)); }, &message) == DDPM_RT_BACKEND_ERROR);
    CHECK(message.find("self-test: expected") != std::string::npos && message.find("got") != std::string::npos);
  }
}

void test_release_with_live_requests() {
  Samples out(50 * kN);
  SampleOptions o = floats(50, 0);
  o.sampler = "ddpm";
  std::unique_ptr<Engine> engine = std::make_unique<Engine>(open(classes(), no_cache()));
  Request request = engine->submit(o, out.data(), out.size() * sizeof(float));
  engine.reset();
  CHECK(status_of([&] { request.wait(); }) == DDPM_RT_CANCELLED);
}

void test_forked_child() {
#if defined(__unix__) && !defined(__SANITIZE_THREAD__)
  Engine engine = open(classes(), no_cache());
  Samples out(50 * kN);
  SampleOptions o = floats(50, 0);
  o.sampler = "ddpm";
  Request running = engine.submit(o, out.data(), out.size() * sizeof(float));
  const pid_t pid = fork();
  if (pid == 0) {
    Samples mine(kN);
    int right = 0;
    right += status_of([&] { sample(engine, floats(1, 0)); }) == DDPM_RT_DEVICE_ERROR;
    right += status_of([&] { running.wait(); }) == DDPM_RT_DEVICE_ERROR;
    right += status_of([&] { engine.info(); }) == DDPM_RT_DEVICE_ERROR;
    { Request gone = std::move(running); }  // released without waiting for a thread that is not here
    { Engine gone = std::move(engine); }
    _exit(right == 3 ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  running.cancel();
  CHECK(sample(engine, floats(1, 0)).size() == kN);  // the parent goes on
#endif
}

void test_starts() {
  Engine engine = open(single(), no_cache());
  SampleOptions o = floats(2, 3);
  const Samples drawn = sample(engine, o);
  Samples noise(2 * kN);
  ddpm_rt_noise(3, 0, 0, 0, kN, noise.data());
  ddpm_rt_noise(4, 0, 0, 0, kN, noise.data() + kN);
  o.latents = noise.data();
  o.latent_elements = noise.size();
  CHECK(same(sample(engine, o).data(), drawn.data(), drawn.size()));
  o.latents = nullptr;
  o.x_init = noise.data();
  o.x_init_elements = noise.size();
  CHECK(same(sample(engine, o).data(), drawn.data(), drawn.size()));  // DDIM's initial sigma is 1
}

}  // namespace

int main() {
  test_numbers();
  test_bits_do_not_depend_on_company();
  test_two_requests_at_once();
  test_cancel();
  test_previews();
  test_nan_stays_with_its_image();
  test_error_stays_with_its_request();
  test_calls_from_inside();
  test_self_test();
  test_release_with_live_requests();
  test_forked_child();
  test_starts();
  return finish();
}
