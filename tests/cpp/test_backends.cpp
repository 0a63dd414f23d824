// The OpenVINO and ONNX Runtime denoisers against PyTorch's own outputs, and the bits of a row wherever it lands.
//
//   DDPM_RT_TEST_MODELS       folder written by tests/python/make_toy_onnx.py
//   DDPM_RT_TEST_MODEL        optional: only this one of split, whole, unlabelled
//   DDPM_RT_TEST_OPENVINO     path of libopenvino_c
//   DDPM_RT_TEST_ONNXRUNTIME  path of libonnxruntime
// Without them only what needs no backend is tested; the rest says that it was skipped.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#if defined(__SSE__)
#include <immintrin.h>
#endif

#include "check.h"
#include "denoiser.h"
#include "error.h"
#include "expect_error.h"
#include "plan.h"

using namespace ddpm_rt;

namespace {

constexpr int kCapacity = 32;

struct Model {
  ModelSpec spec;
  std::shared_ptr<const Plan> plan;
  size_t rows = 0, out = 0;
  std::vector<float> table;  // rows x [x | t | label | expected]

  const float* x(size_t i) const { return table.data() + i * (spec.elements() + 2 + out); }
  float t(size_t i) const { return x(i)[spec.elements()]; }
  int64_t label(size_t i) const { return static_cast<int64_t>(x(i)[spec.elements() + 1]); }
  const float* expected(size_t i) const { return x(i) + spec.elements() + 2; }
};

std::vector<uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The plan carries the graphs; the spec is made by hand, so that this test needs no manifest.
std::shared_ptr<const Plan> plan_with(const std::vector<std::pair<std::string, std::vector<uint8_t>>>& sections) {
  const std::string path = "test_backends.plan";
  write_plan(path, "{}", sections);
  auto plan = Plan::open(path);
  std::remove(path.c_str());
  return plan;
}

Model load(const std::string& stem) {
  Model m;
  std::istringstream text([&] {
    const auto bytes = read_file(stem + ".txt");
    return std::string(bytes.begin(), bytes.end());
  }());
  std::string key;
  m.spec.shape.resize(3);
  text >> key >> m.spec.shape[0] >> m.spec.shape[1] >> m.spec.shape[2];
  text >> key >> m.spec.num_classes >> key >> m.spec.network.rows_width >> key >> m.rows >> key >> m.out;
  m.spec.name = stem;
  m.spec.network.kind = "onnx";
  m.spec.network.section = "unet.onnx";
  m.spec.network.inputs = {{"x", "x"}};
  m.spec.network.outputs = {{"eps", "eps"}};
  NetworkSpec& front = m.spec.network.rows_width > 0 ? m.spec.temb : m.spec.network;
  std::vector<std::pair<std::string, std::vector<uint8_t>>> sections{{"unet.onnx", read_file(stem + ".onnx")}};
  if (m.spec.network.rows_width > 0) {
    m.spec.has_temb = true;
    m.spec.network.inputs["rows"] = "rows";
    m.spec.temb.kind = "onnx";
    m.spec.temb.section = "temb.onnx";
    m.spec.temb.outputs = {{"rows", "rows"}};
    sections.emplace_back("temb.onnx", read_file(stem + ".temb.onnx"));
  }
  front.inputs["t"] = "t";
  if (m.spec.num_classes > 0) front.inputs["label"] = "label";
  m.plan = plan_with(sections);
  const auto bytes = read_file(stem + ".bin");
  m.table.resize(bytes.size() / sizeof(float));
  std::memcpy(m.table.data(), bytes.data(), m.table.size() * sizeof(float));
  CHECK(m.rows > 0 && m.table.size() == m.rows * (m.spec.elements() + 2 + m.out));
  return m;
}

// A lane's memory, filled row by row from the model's table.
struct Lane {
  Lane(const Model& m, Denoiser& d) : model(m), denoiser(d), limits(d.limits()) {
    x.resize(kCapacity * limits.in_elements);
    t.resize(kCapacity);
    label.resize(kCapacity);
    rows.resize(kCapacity * limits.rows_width);
    out.resize(kCapacity * limits.out_elements);
  }
  void bind() {
    Evaluations e;
    e.capacity = kCapacity;
    e.x = x.data();
    e.t = t.data();
    e.label = label.data();
    e.rows = rows.data();
    e.out = out.data();
    denoiser.bind(e);
  }
  void fill(float value) {
    std::fill(x.begin(), x.end(), value);
    std::fill(t.begin(), t.end(), value);
    std::fill(rows.begin(), rows.end(), value);
    std::fill(label.begin(), label.end(), 0);
  }
  void put(size_t row, size_t place) {
    std::copy_n(model.x(row), limits.in_elements, &x[place * limits.in_elements]);
    t[place] = model.t(row);
    label[place] = model.label(row);
    if (limits.rows_width > 0) denoiser.embed(&t[place], &label[place], 1, &rows[place * limits.rows_width]);
  }
  bool same(size_t place, const std::vector<float>& bits) const {
    return std::memcmp(&out[place * limits.out_elements], bits.data(), bits.size() * sizeof(float)) == 0;
  }

  const Model& model;
  Denoiser& denoiser;
  Limits limits;
  std::vector<float> x, t, rows, out;
  std::vector<int64_t> label;
};

using Make = std::unique_ptr<Denoiser> (*)(const ModelSpec&, const Plan&, const BackendOptions&);

double worst(const Lane& lane, size_t row, size_t place) {
  double difference = 0, largest = 0;
  for (size_t k = 0; k < lane.limits.out_elements; ++k) {
    const double want = lane.model.expected(row)[k], got = lane.out[place * lane.limits.out_elements + k];
    if (!std::isfinite(got)) return std::numeric_limits<double>::infinity();
    difference = std::fmax(difference, std::fabs(got - want));
    largest = std::fmax(largest, std::fabs(want));
  }
  return difference / largest;
}

// Returns the bits of every row.
std::vector<std::vector<float>> test_numbers(const Model& m, Make make, const BackendOptions& options) {
  const auto denoiser = make(m.spec, *m.plan, options);
  Denoiser& d = *denoiser;
  std::printf("%s %s\n", m.spec.name.c_str(), d.describe().c_str());
  CHECK(d.limits().in_elements == m.spec.elements() && d.limits().out_elements == m.out);
  CHECK(d.limits().takes_label == (m.spec.num_classes > 0) && !d.limits().any_batch);
#if defined(__SSE__)
  const unsigned mxcsr = _mm_getcsr() & ~0x3fu;  // without the sticky exception flags
#endif
  Lane lane(m, d);
  lane.bind();

  // Every row alone, in bucket 1: against PyTorch, and the bits to which everything else is held.
  std::vector<std::vector<float>> bits;
  d.prepare(1, 1);
  for (size_t row = 0; row < m.rows; ++row) {
    lane.fill(0);
    lane.put(row, 0);
    const Call call{1, 1, 0, 1};
    d.run(&call, 1);
    CHECK_NEAR(worst(lane, row, 0), 0, 2e-4);
    bits.emplace_back(lane.out.begin(), lane.out.begin() + static_cast<long>(m.out));
  }

  for (int streams = 1; streams <= d.limits().max_streams; ++streams) {
    for (int bucket : {1, 2, 4, 8}) {
      d.prepare(bucket, streams);
      d.prepare(bucket, streams);
      for (const int first : {0, 3, 3, 16}) {
        // All rows taken: stretch s starts at first + s * bucket, place p of it holds row p + 3 s.
        lane.fill(0);
        std::vector<Call> calls;
        for (int s = 0; s < streams; ++s) {
          calls.push_back({bucket, streams, first + s * bucket, bucket});
          for (int p = 0; p < bucket; ++p) lane.put((p + 3 * s) % m.rows, calls.back().first + p);
        }
        d.run(calls.data(), calls.size());
        for (int s = 0; s < streams; ++s) {
          for (int p = 0; p < bucket; ++p) CHECK(lane.same(calls[s].first + p, bits[(p + 3 * s) % m.rows]));
        }
      }
      // One row among padding of any content, at every place.
      for (const float padding : {0.0f, 1e30f, std::numeric_limits<float>::quiet_NaN()}) {
        for (int p = 0; p < bucket; ++p) {
          lane.fill(padding);
          lane.put(5 % m.rows, 8 + p);
          const Call call{bucket, streams, 8, p + 1};
          d.run(&call, 1);
          CHECK(lane.same(8 + p, bits[5 % m.rows]));
        }
      }
    }
  }

  Lane other(m, d);
  other.bind();
  other.put(1, 2);
  const Call call{1, 1, 2, 1};
  d.run(&call, 1);
  CHECK(other.same(2, bits[1]));
#if defined(__SSE__)
  CHECK((_mm_getcsr() & ~0x3fu) == mxcsr);
#endif

  const Call beyond{8, 1, kCapacity - 7, 1};
  CHECK(contains(message_of(Code::kInternal, [&] { d.run(&beyond, 1); }), "capacity"));
  return bits;
}

void test_embed(const Model& m, Make make, const BackendOptions& options) {
  const auto d = make(m.spec, *m.plan, options);
  const size_t width = d->limits().rows_width;
  CHECK(width == m.spec.network.rows_width);
  const size_t n = 37;  // two full batches of 16 and a part
  std::vector<float> t(n), all(n * width), one(width);
  std::vector<int64_t> label(n);
  for (size_t i = 0; i < n; ++i) {
    t[i] = static_cast<float>((i * 271) % 1000);
    label[i] = static_cast<int64_t>(i) % (m.spec.num_classes + 1);
  }
  d->embed(t.data(), label.data(), n, all.data());
  for (size_t i = 0; i < n; ++i) {
    d->embed(&t[i], &label[i], 1, one.data());
    CHECK(std::memcmp(one.data(), &all[i * width], width * sizeof(float)) == 0);
  }
  CHECK(std::memcmp(&all[0], &all[width], width * sizeof(float)) != 0);
}

void test_refusals(const Model& m, Make make, const BackendOptions& options) {
  const auto refused = [&](auto change) {
    ModelSpec spec = m.spec;
    change(spec);
    return message_of(Code::kBackend, [&] { make(spec, *m.plan, options); });
  };
  CHECK(contains(refused([](ModelSpec& s) { s.network.inputs["x"] = "no_such_input"; }), "no_such_input"));
  CHECK(contains(refused([](ModelSpec& s) { s.network.outputs["eps"] = "no_such_output"; }), "no_such_output"));
  CHECK(contains(refused([](ModelSpec& s) { s.network.outputs.clear(); }), "eps"));
  CHECK(contains(refused([](ModelSpec& s) { s.network.inputs.erase("x"); }), "inputs"));
  CHECK(contains(refused([](ModelSpec& s) { s.shape = {s.shape[0], 8, 8}; }), "8, 8]"));
  CHECK(contains(refused([](ModelSpec& s) { s.network.section = "empty.onnx"; }), "failed"));
  if (m.spec.has_temb) {
    CHECK(contains(refused([](ModelSpec& s) { s.network.rows_width += 1; }), "rows"));
    CHECK(contains(refused([](ModelSpec& s) { s.temb.inputs["t"] = "no_such_time"; }), "no_such_time"));
    CHECK(contains(refused([](ModelSpec& s) { s.has_temb = false; }), "temb"));
    CHECK(contains(refused([](ModelSpec& s) { std::swap(s.temb.inputs["t"], s.temb.inputs["label"]); }),
                   "expected element"));
  }
  BackendOptions unknown = options;
  unknown.precision = "int4";
  CHECK(contains(message_of(Code::kBackend, [&] { make(m.spec, *m.plan, unknown); }), "int4"));
}

// A reduced precision either computes within its tolerance or says that this machine cannot.
void test_precision(const Model& m, Make make, BackendOptions options, const char* precision, double tolerance) {
  options.precision = precision;
  std::unique_ptr<Denoiser> d;
  const std::string refusal = message_of(Code::kBackend, [&] {
    d = make(m.spec, *m.plan, options);
    d->prepare(2, 1);
  });
  if (!refusal.empty()) {
    std::printf("%s\n", refusal.c_str());
    CHECK(contains(refusal, precision));
    return;
  }
  CHECK(contains(d->describe(), precision));
  Lane lane(m, *d);
  lane.bind();
  lane.put(0, 0);
  lane.put(1, 1);
  const Call call{2, 1, 0, 2};
  d->run(&call, 1);
  CHECK_NEAR(worst(lane, 1, 1), 0, tolerance);
}

void test_library(const char* name, Make make, const char* real) {
  const auto plan = plan_with({{"unet.onnx", {1, 2, 3}}});
  ModelSpec spec;
  spec.shape = {1, 4, 4};
  spec.network.section = "unet.onnx";
  spec.network.inputs = {{"x", "x"}, {"t", "t"}};
  spec.network.outputs = {{"eps", "eps"}};
  BackendOptions options;
  options.library = "no_such_folder/no_such_library.so";
  const std::string missing = message_of(Code::kBackend, [&] { make(spec, *plan, options); });
  CHECK(contains(missing, "no_such_library.so") && contains(missing, std::string("pip install ") + name));
  if (real == nullptr) return;
  options.library = real;
  CHECK(contains(message_of(Code::kBackend, [&] { make(spec, *plan, options); }), "not one"));
}

void test_backend(const char* name, Make make, const char* variable, const char* folder) {
  const char* library = std::getenv(variable);
  test_library(name, make, library);
  if (library == nullptr || folder == nullptr) {
    std::printf("skipped: %s; set %s and DDPM_RT_TEST_MODELS\n", name, variable);
    return;
  }
  BackendOptions options;
  options.library = library;
  options.threads = 2;
  const char* only = std::getenv("DDPM_RT_TEST_MODEL");
  for (const std::string model : {"split", "whole", "unlabelled"}) {
    if (only != nullptr && model != only) continue;
    Model m = load(std::string(folder) + "/" + model);
    const auto bits = test_numbers(m, make, options);
    if (m.spec.has_temb) {
      options.threads = 1;
      CHECK(test_numbers(m, make, options) == bits);
      options.threads = 2;
      test_embed(m, make, options);
    }
    test_precision(m, make, options, "bf16", 1e-1);
    test_precision(m, make, options, "fp16", 2e-2);
    auto sections = std::vector<std::pair<std::string, std::vector<uint8_t>>>{{"empty.onnx", {0x08, 0x09}}};
    for (const SectionInfo& s : m.plan->sections()) sections.emplace_back(s.name, m.plan->read(s.name));
    m.plan = plan_with(sections);
    test_refusals(m, make, options);
  }
}

}  // namespace

int main() {
  const char* folder = std::getenv("DDPM_RT_TEST_MODELS");
  test_backend("openvino", make_openvino, "DDPM_RT_TEST_OPENVINO", folder);
  test_backend("onnxruntime", make_onnxruntime, "DDPM_RT_TEST_ONNXRUNTIME", folder);
  return finish();
}
