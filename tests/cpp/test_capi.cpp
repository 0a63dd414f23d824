// The C edge and the header-only C++ over it: every misuse is a typed status whose message says field, expected, got, and
// the engine goes on after each.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.h"
#include "ddpm_rt/ddpm_rt.hpp"
#include "mixture.h"

using namespace ddpm_rt;

namespace {

static_assert(!std::is_copy_constructible_v<Engine> && std::is_move_constructible_v<Engine>, "owners are move-only");
static_assert(!std::is_copy_constructible_v<Request> && std::is_move_constructible_v<Request>, "owners are move-only");
static_assert(!std::is_copy_constructible_v<v0::Plan> && std::is_move_constructible_v<v0::Plan>, "owners are move-only");

constexpr size_t kPixels = 2 * 3 * 4;
const char* const kPath = "test_capi.plan";

Mixture image(bool conditional) {
  Mixture m;
  m.shape = {2, 3, 4};
  m.role = "image";
  m.conditional = conditional;
  const size_t K = conditional ? 3 : 1;
  for (size_t i = 0; i < K * kPixels; ++i) m.means.push_back(std::sin(static_cast<double>(i)));
  m.stds.assign(K, 0.1);
  m.weights.assign(K, 1.0 / static_cast<double>(K));
  m.defaults = conditional ? R"({"sampler": "ddim", "steps": 7, "scale": 2.0})" : R"({"sampler": "ddpm"})";
  return m;
}

Engine open(const Mixture& m) {
  check(write_mixture(m, kPath));
  EngineOptions options;
  options.cache_dir = "";
  Engine engine(kPath, options);
  std::remove(kPath);
  return engine;
}

// The status, its message holding all parts.
bool refused(ddpm_rt_status expected, ddpm_rt_status got, std::initializer_list<const char*> parts) {
  const std::string message = ddpm_rt_last_error();
  bool named = expected == got;
  for (const char* part : parts) named = named && message.find(part) != std::string::npos;
  if (!named) std::printf("status %d, expected %d: %s\n", got, expected, message.c_str());
  return named;
}

void test_sample_options() {
  Engine engine = open(image(true)), plain = open(image(false));
  std::vector<uint8_t> out(2 * kPixels);
  std::vector<float> latents(2 * kPixels, 0.5f);
  const std::vector<int64_t> two{1, 2}, high{1, 3}, low{-2, 0};
  const std::vector<uint64_t> seeds{1, 2};
  ddpm_rt_sample_options o;
  size_t bytes = out.size();
  const auto run = [&](const std::function<void()>& change, Engine& with) {
    ddpm_rt_sample_options_init(&o, sizeof o);
    o.n = 2;
    o.has_seed = 1;
    bytes = out.size();
    change();
    return ddpm_rt_engine_sample(with.get(), &o, out.data(), bytes);
  };
  const auto nothing = [] {};
  const auto check_refused = [&](ddpm_rt_status status, std::initializer_list<const char*> parts,
                                 const std::function<void()>& change) {
    CHECK(refused(status, run(change, engine), parts));
    CHECK(run(nothing, engine) == DDPM_RT_OK);
  };
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  check_refused(DDPM_RT_OPTION_ERROR, {"n: expected 1 to", "got 0"}, [&] { o.n = 0; });
  check_refused(DDPM_RT_OPTION_ERROR, {"n: expected 1 to", "got -5"}, [&] { o.n = -5; });
  check_refused(DDPM_RT_OPTION_ERROR, {"n: expected 1 to"}, [&] { o.n = int64_t{1} << 40; });
  check_refused(DDPM_RT_SHAPE_ERROR, {"out: expected", "got 48"}, [&] { o.n = 2147483647; });
  check_refused(DDPM_RT_SHAPE_ERROR, {"out: expected 48 bytes, got 47"}, [&] { --bytes; });
  check_refused(DDPM_RT_OPTION_ERROR, {"output: expected", "got 9"}, [&] { o.output = 9; });
  check_refused(DDPM_RT_SHAPE_ERROR, {"labels: expected 1 or 2", "got 0"}, [&] { o.labels = two.data(); });
  check_refused(DDPM_RT_SHAPE_ERROR, {"labels: expected 1 or 3", "got 2"}, [&] {
    o.labels = two.data();
    o.label_count = 2;
    o.n = 3;
    bytes = 3 * kPixels;  // refused before anything is written
  });
  check_refused(DDPM_RT_OPTION_ERROR, {"labels: expected", "0 to 2", "got 3 at index 1"},
                [&] { o.labels = high.data(), o.label_count = 2; });
  check_refused(DDPM_RT_OPTION_ERROR, {"labels: expected", "got -2"}, [&] { o.labels = low.data(), o.label_count = 2; });
  check_refused(DDPM_RT_OPTION_ERROR, {"steps: expected", "got -1"}, [&] { o.steps = -1; });
  check_refused(DDPM_RT_OPTION_ERROR, {"steps", "expected", "1001"}, [&] { o.steps = 1001; });
  check_refused(DDPM_RT_OPTION_ERROR, {"scale: expected a finite number, got inf"}, [&] { o.scale = inf; });
  check_refused(DDPM_RT_OPTION_ERROR, {"scale: expected a finite number"}, [&] { o.scale = 1e39; });
  check_refused(DDPM_RT_OPTION_ERROR, {"eta: expected"}, [&] { o.eta = inf; });
  check_refused(DDPM_RT_OPTION_ERROR, {"eta: expected", "1.5"}, [&] { o.eta = 1.5; });
  check_refused(DDPM_RT_OPTION_ERROR, {"eta: expected 0 with sampler ddpm"}, [&] { o.eta = 0.5, o.sampler = "ddpm"; });
  check_refused(DDPM_RT_OPTION_ERROR, {"sampler: expected one of ddpm, ddim", "leap"}, [&] { o.sampler = "leap"; });
  check_refused(DDPM_RT_OPTION_ERROR, {"clip: expected one of", "rederive", "hard"}, [&] { o.clip = "hard"; });
  check_refused(DDPM_RT_OPTION_ERROR, {"variance: expected", "big"}, [&] { o.variance = "big", o.sampler = "ddpm"; });
  check_refused(DDPM_RT_OPTION_ERROR, {"grid: expected", "even"}, [&] { o.grid = "even"; });
  check_refused(DDPM_RT_OPTION_ERROR, {"seed: expected either seed or seeds, got both"},
                [&] { o.seeds = seeds.data(), o.seed_count = 2; });
  check_refused(DDPM_RT_SHAPE_ERROR, {"seeds: expected 2", "got 1"},
                [&] { o.seeds = seeds.data(), o.seed_count = 1, o.has_seed = 0; });
  check_refused(DDPM_RT_SHAPE_ERROR, {"latents: expected 48", "got 24"},
                [&] { o.latents = latents.data(), o.latent_elements = kPixels; });
  check_refused(DDPM_RT_OPTION_ERROR, {"x_init: expected either latents or x_init, got both"}, [&] {
    o.latents = o.x_init = latents.data();
    o.latent_elements = o.x_init_elements = 2 * kPixels;
  });
  CHECK(refused(DDPM_RT_OPTION_ERROR, run([&] { o.scale = 3; }, plain), {"scale: expected 1", "no condition to guide"}));
  CHECK(refused(DDPM_RT_OPTION_ERROR, run([&] { o.labels = two.data(), o.label_count = 2; }, plain), {"labels", "no classes"}));
  CHECK(run([&] { o.scale = 1; }, plain) == DDPM_RT_OK);
  CHECK(run([&] { o.scale = nan; }, engine) == DDPM_RT_OK);  // NaN is "the plan's"
  CHECK(ddpm_rt_engine_sample(engine.get(), &o, nullptr, out.size()) == DDPM_RT_SHAPE_ERROR);
  CHECK(ddpm_rt_engine_sample(nullptr, &o, out.data(), out.size()) == DDPM_RT_OPTION_ERROR);
}

void test_conditions_of_a_plan_without() {
  Engine engine = open(image(true));
  std::vector<uint8_t> out(kPixels);
  const float value = 1;
  ddpm_rt_condition c;
  ddpm_rt_condition_init(&c, sizeof c);
  CHECK(c.struct_size == sizeof c && c.count == 1 && c.data == nullptr && c.lengths == nullptr);
  c.name = "text";
  c.data = &value;
  c.elements = 1;
  const ddpm_rt_condition* list[] = {&c, nullptr};
  ddpm_rt_sample_options o;
  ddpm_rt_sample_options_init(&o, sizeof o);
  const auto check_refused = [&](std::initializer_list<const char*> parts) {
    CHECK(refused(DDPM_RT_OPTION_ERROR, ddpm_rt_engine_sample(engine.get(), &o, out.data(), out.size()), parts));
  };
  o.condition_count = 1;
  check_refused({"cond: expected a pointer, got null"});
  o.conditions = list;
  check_refused({"cond: expected names among none", "no conditions", "\"text\""});
  c.struct_size = 0;
  check_refused({"cond.struct_size"});
  o.conditions = list + 1;
  check_refused({"cond: expected pointers, got null at index 0"});
  o.condition_count = 0;
  o.negative_conditions = list;
  o.negative_condition_count = 1;
  c.struct_size = sizeof c;
  check_refused({"negative: expected names among none"});
  o.negative_condition_count = 0;
  CHECK(ddpm_rt_engine_sample(engine.get(), &o, out.data(), out.size()) == DDPM_RT_OK);
}

void test_uint8_needs_an_image() {
  Mixture m = image(false);
  m.shape = {24};
  m.role = "vector";
  Engine engine = open(m);
  SampleOptions o;
  o.seed = 1;
  std::vector<float> out(kPixels);
  bool refused_u8 = false;
  try {
    engine.sample(o, out.data(), kPixels);
  } catch (const Exception& e) {
    refused_u8 = e.status() == DDPM_RT_OPTION_ERROR && std::string(e.what()).find("output: expected float") == 0;
  }
  CHECK(refused_u8);
  o.output = DDPM_RT_FLOAT_NCHW;
  engine.sample(o, out.data(), out.size() * sizeof(float));
}

void test_struct_sizes() {
  Engine engine = open(image(true));
  std::vector<uint8_t> out(kPixels), again(kPixels);
  ddpm_rt_sample_options o;
  ddpm_rt_sample_options_init(&o, sizeof o);
  CHECK(o.struct_size == sizeof o && o.n == 1 && std::isnan(o.scale));
  o.has_seed = 1;
  CHECK(ddpm_rt_engine_sample(engine.get(), &o, out.data(), out.size()) == DDPM_RT_OK);

  // An older program: what lies beyond its struct is never read.
  ddpm_rt_sample_options old = o;
  old.struct_size = offsetof(ddpm_rt_sample_options, latents);
  old.latents = reinterpret_cast<const float*>(uintptr_t{8});
  old.latent_elements = kPixels;
  CHECK(ddpm_rt_engine_sample(engine.get(), &old, again.data(), again.size()) == DDPM_RT_OK);
  CHECK(out == again);

  // A newer one: zeros beyond are fine, anything else is a feature this library lacks.
  struct {
    ddpm_rt_sample_options known;
    double unknown;
  } newer{o, 0};
  newer.known.struct_size = sizeof newer;
  CHECK(ddpm_rt_engine_sample(engine.get(), &newer.known, again.data(), again.size()) == DDPM_RT_OK);
  newer.unknown = 0.7;
  CHECK(refused(DDPM_RT_OPTION_ERROR, ddpm_rt_engine_sample(engine.get(), &newer.known, again.data(), again.size()),
                {"struct_size: expected at most", "got"}));
  o.struct_size = 0;
  CHECK(refused(DDPM_RT_OPTION_ERROR, ddpm_rt_engine_sample(engine.get(), &o, out.data(), out.size()), {"struct_size"}));
}

void test_engine_options() {
  check(write_mixture(image(true), kPath));
  ddpm_rt_engine* engine = nullptr;
  ddpm_rt_engine_options o;
  const auto with = [&](const std::function<void()>& change) {
    ddpm_rt_engine_options_init(&o, sizeof o);
    o.cache_dir = "";
    change();
    return ddpm_rt_engine_open(kPath, &o, &engine);
  };
  CHECK(refused(DDPM_RT_OPTION_ERROR, with([&] { o.device = "tpu"; }), {"device: expected", "tpu"}));
  CHECK(refused(DDPM_RT_DEVICE_ERROR, with([&] { o.device = "cuda:0"; }), {"device: expected", "cuda:0"}));
  CHECK(refused(DDPM_RT_OPTION_ERROR, with([&] { o.backend = "abacus"; }), {"backend: expected one of", "abacus"}));
  CHECK(refused(DDPM_RT_OPTION_ERROR, with([&] { o.backend = "openvino"; }), {"backend: expected analytic", "openvino"}));
  CHECK(refused(DDPM_RT_OPTION_ERROR, with([&] { o.precision = "int8"; }), {"precision: expected one of", "int8"}));
  CHECK(refused(DDPM_RT_OPTION_ERROR, with([&] { o.precision = "bf16"; }), {"precision: expected fp32", "bf16"}));
  CHECK(refused(DDPM_RT_OPTION_ERROR, with([&] { o.threads = -1; }), {"threads: expected", "-1"}));
  CHECK(refused(DDPM_RT_OPTION_ERROR, with([&] { o.max_batch = -3; }), {"max_batch: expected", "-3"}));
  CHECK(refused(DDPM_RT_OPTION_ERROR, with([&] { o.batch_invariant = 2; }), {"batch_invariant: expected", "2"}));
  CHECK(engine == nullptr);
  std::remove(kPath);
  CHECK(ddpm_rt_engine_open("no/such.plan", nullptr, &engine) == DDPM_RT_PLAN_ERROR && engine == nullptr);
  CHECK(ddpm_rt_engine_open(nullptr, nullptr, &engine) == DDPM_RT_OPTION_ERROR);
  ddpm_rt_engine_release(nullptr);
  ddpm_rt_request_release(nullptr);
}

void test_result() {
  Engine engine = open(image(true));
  SampleOptions o;
  o.n = 6;
  o.seed = 0xfffffffffffffffe;  // wraps
  std::vector<uint8_t> out(6 * kPixels);
  Result r = engine.sample(o, out.data(), out.size());
  CHECK((r.seeds == std::vector<uint64_t>{0xfffffffffffffffe, 0xffffffffffffffff, 0, 1, 2, 3}));
  CHECK(r.nfe == 14 && r.bad.empty() && r.seconds > 0);
  for (int64_t label : r.labels) CHECK(label >= 0 && label < 3);
  // A drawn label belongs to the seed, not to the place.
  o.seed = 2;
  o.n = 1;
  CHECK(engine.sample(o, out.data(), kPixels).labels[0] == r.labels[4]);
  o.labels = {-1};
  r = engine.sample(o, out.data(), kPixels);
  CHECK(r.labels[0] == -1 && r.nfe == 7);
  o.seed.reset();
  CHECK(engine.sample(o, out.data(), kPixels).seeds != engine.sample(o, out.data(), kPixels).seeds);

  o.seed = 3;
  o.n = 1;
  o.labels = {1};
  Request request = engine.submit(o, out.data(), kPixels);
  while (!request.wait(0.01)) {
  }
  const std::string info = engine.info();
  for (const char* key : {"\"fingerprint\"", "\"backend\":\"analytic\"", "\"shape\":[2,3,4]", "\"loop\"", "\"threads\""}) {
    CHECK(info.find(key) != std::string::npos);
  }
}

// The loop a host writes over the pieces gives the engine's own bits.
void test_own_loop() {
  const std::vector<double> ab = alpha_bar("linear");
  const char* manifest = R"({"sample": {"shape": [2, 3, 4], "role": "image", "range": [-1, 1]}, "prediction": "eps", "num_classes": 3})";
  EngineOptions options;
  options.cache_dir = "";
  const auto toy = [](float x, float t, int64_t label) { return 0.3f * x + 1e-4f * t * static_cast<float>(label - 1); };
  Engine engine(manifest, ab,
                [&](const float* x, const float* t, const int64_t* label, size_t count, float* out) {
                  for (size_t i = 0; i < count * kPixels; ++i) out[i] = toy(x[i], t[i / kPixels], label[i / kPixels]);
                },
                options);
  SampleOptions so;
  so.seed = 17;
  so.labels = {2};
  so.scale = 3;
  so.steps = 9;
  so.eta = 0.5;
  so.output = DDPM_RT_FLOAT_NCHW;
  std::vector<float> expected(kPixels), x(kPixels), c(kPixels), u(kPixels);
  engine.sample(so, expected.data(), kPixels * sizeof(float));

  ddpm_rt_sample_options o;
  ddpm_rt_sample_options_init(&o, sizeof o);
  o.steps = 9;
  o.eta = 0.5;
  ddpm_rt_string* rows = nullptr;
  size_t count = 0;
  double sigma = 0;
  check(ddpm_rt_rows(ab.data(), ab.size(), "eps", &o, &rows, &count, &sigma));
  CHECK(count == 9 && sigma == 1.0);
  const char* row = ddpm_rt_string_data(rows);
  const uint64_t seed = 17;
  ddpm_rt_noise(seed, 0, 0, 0, kPixels, x.data());
  for (size_t i = 0; i < count; ++i, row += 256) {
    float t;
    std::memcpy(&t, row + 4, sizeof t);
    for (size_t j = 0; j < kPixels; ++j) c[j] = toy(x[j], t, 2), u[j] = toy(x[j], t, 3);
    check(ddpm_rt_step(x.data(), c.data(), u.data(), row, i + 1 < count ? row + 256 : nullptr, 3, &seed, nullptr, 0, nullptr,
                       nullptr, nullptr, nullptr, 1, kPixels));
  }
  ddpm_rt_string_release(rows);
  CHECK(std::memcmp(x.data(), expected.data(), kPixels * sizeof(float)) == 0);
}

void test_pieces_refuse() {
  float x[4] = {}, eps[4] = {};
  uint32_t row[64] = {};
  const auto step = [&](void* bytes, const uint64_t* seeds, const ddpm_rt_step_operands* operands = nullptr) {
    return ddpm_rt_step(x, eps, nullptr, bytes, nullptr, 1, seeds, nullptr, 0, nullptr, nullptr, nullptr, operands, 1, 4);
  };
  row[0] = 1u << 13;
  CHECK(refused(DDPM_RT_OPTION_ERROR, step(row, nullptr), {"row.flags: expected", "got 8192"}));
  row[0] = 1u << 3;  // THRESHOLD with a percentile of 0 and a cap of 0
  CHECK(refused(DDPM_RT_OPTION_ERROR, step(row, nullptr), {"row.threshold: expected", "cap"}));
  const std::pair<uint32_t, const char*> kLacking[] = {
      {1u << 5, "operands.variance"}, {1u << 8, "operands.mask"}, {1u << 9, "seeds"}, {1u << 10, "operands.x0_true"}};
  for (const auto& [flag, name] : kLacking) {
    row[0] = flag;
    CHECK(refused(DDPM_RT_OPTION_ERROR, step(row, nullptr), {name}));
  }
  ddpm_rt_step_operands operands;
  ddpm_rt_step_operands_init(&operands, sizeof operands);
  CHECK(operands.struct_size == sizeof operands && operands.kl == nullptr);
  double kl = -1;
  operands.x0_true = x;
  row[0] = 1u << 10;  // VLB: of two equal Gaussians
  CHECK(refused(DDPM_RT_OPTION_ERROR, step(row, nullptr, &operands), {"operands.kl"}));
  operands.kl = &kl;
  CHECK(step(row, nullptr, &operands) == DDPM_RT_OK && kl == 0);
  operands.scale2 = std::nan("");
  CHECK(refused(DDPM_RT_OPTION_ERROR, step(row, nullptr, &operands), {"operands.scale2"}));
  row[0] = 1u << 12;
  CHECK(step(row, nullptr) == DDPM_RT_OK);
  row[0] |= 1u << 0;
  CHECK(refused(DDPM_RT_OPTION_ERROR, step(row, nullptr), {"history: expected"}));
  CHECK(refused(DDPM_RT_OPTION_ERROR, step(nullptr, nullptr), {"row: expected"}));
  const float one = 1;
  CHECK(refused(DDPM_RT_OPTION_ERROR, ddpm_rt_cfg_combine(x, eps, &one, 1.5, 1, 4, x), {"rescale: expected", "1.5"}));
  const float c[2] = {3, 5}, u[2] = {1, 2}, s = 2.5f;
  float e[2];
  CHECK(ddpm_rt_cfg_combine(c, u, &s, 0, 1, 2, e) == DDPM_RT_OK && e[0] == 6.0f && e[1] == 9.5f);
  double ab[10];
  CHECK(ddpm_rt_alpha_bar("quartic", 10, ab) == DDPM_RT_OPTION_ERROR);
  CHECK(ddpm_rt_alpha_bar("linear", 0, ab) == DDPM_RT_OPTION_ERROR);
  ddpm_rt_string* rows = nullptr;
  CHECK(ddpm_rt_rows(ab, 0, "eps", nullptr, &rows, nullptr, nullptr) != DDPM_RT_OK && rows == nullptr);
  CHECK(ddpm_rt_option_count() > 10 && ddpm_rt_option_at(100000) == nullptr);
}

void test_plans() {
  check(write_mixture(image(false), kPath));
  v0::Plan plan(kPath);
  plan.verify();
  bool found = false;
  for (const auto& s : plan.sections()) found = found || (s.name == "means" && s.bytes == kPixels * 8 && s.sha256.size() == 64);
  CHECK(found);
  const std::vector<unsigned char> means = plan.read("means");
  double first;
  std::memcpy(&first, means.data() + 8, sizeof first);
  CHECK(first == std::sin(1.0));
  bool refused_name = false;
  try {
    plan.read("nothing");
  } catch (const Exception& e) {
    refused_name = e.status() == DDPM_RT_PLAN_ERROR;
  }
  CHECK(refused_name);
  std::remove(kPath);
  PlanWriter writer;
  bool refused_manifest = false;
  try {
    writer.finish("{}", kPath);
  } catch (const Exception& e) {
    refused_manifest = e.status() == DDPM_RT_PLAN_ERROR;
  }
  CHECK(refused_manifest);
  std::FILE* left = std::fopen(kPath, "rb");
  CHECK(left == nullptr);
  if (left != nullptr) std::fclose(left);
}

// The message belongs to the thread whose call failed.
void test_last_error_is_per_thread() {
  double ab[1];
  CHECK(ddpm_rt_alpha_bar("mine", 1, ab) != DDPM_RT_OK);
  std::string other;
  std::thread([&other] {
    double none[1];
    ddpm_rt_alpha_bar("theirs", 1, none);
    other = ddpm_rt_last_error();
  }).join();
  CHECK(std::string(ddpm_rt_last_error()).find("mine") != std::string::npos);
  CHECK(other.find("theirs") != std::string::npos);
}

}  // namespace

int main() {
  test_sample_options();
  test_uint8_needs_an_image();
  test_conditions_of_a_plan_without();
  test_struct_sizes();
  test_engine_options();
  test_result();
  test_own_loop();
  test_pieces_refuse();
  test_plans();
  test_last_error_is_per_thread();
  return finish();
}
