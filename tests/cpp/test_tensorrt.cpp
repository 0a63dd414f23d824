// TensorRT engines through the whole engine, on the emulated device and an emulated TensorRT.
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "check.h"
#include "device_denoiser.h"
#include "engine.h"
#include "expect_error.h"
#include "schedule.h"
#include "tensorrt_case.h"

using namespace ddpm_rt;
using namespace tensorrt_case;

namespace {

constexpr const char* kPath = "test_tensorrt.plan";

struct Options {
  const char* device = "cuda";
  const char* backend = "tensorrt";
  const char* precision = "auto";
  bool trusts = true;
  std::string cache, library = DDPM_RT_EMULATED_TENSORRT;
  int max_batch = 6;
};

std::unique_ptr<Engine> open(const Options& given = {}) {
  ddpm_rt_engine_options o;
  ddpm_rt_engine_options_init(&o, sizeof o);
  o.device = given.device;
  o.backend = given.backend;
  o.precision = given.precision;
  o.trust_native = given.trusts ? 1 : 0;
  o.cache_dir = given.cache.c_str();
  o.tensorrt_library = given.library.c_str();
  o.cuda_library = DDPM_RT_EMULATED;
  o.max_batch = given.max_batch;
  return Engine::open(kPath, o);
}

std::vector<float> sample(Engine& engine, int64_t n, int steps = 8, double scale = 2) {
  ddpm_rt_sample_options o;
  ddpm_rt_sample_options_init(&o, sizeof o);
  std::vector<int64_t> labels(static_cast<size_t>(n));
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<int64_t>(i % 4) - 1;  // some without a condition
  std::vector<float> out(static_cast<size_t>(n) * kShape, 7.0f);
  o.n = n;
  o.labels = labels.data();
  o.label_count = labels.size();
  o.steps = steps;
  o.scale = scale;
  o.has_seed = 1;
  o.seed = 5;
  o.output = DDPM_RT_FLOAT_NCHW;
  const auto request = engine.submit(o, out.data(), out.size() * sizeof(float));
  request->wait(-1);
  if (request->status() != 0) throw Error(static_cast<Code>(request->status()), request->message());
  return out;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// What the emulated engines compute: exact in float32 for these coefficients, whatever the neighbours.
void evaluate(const float* x, float t, int64_t label, float* out) {
  for (size_t j = 0; j < kShape; ++j) out[j] = 0.25f * x[j] + 0.03125f * static_cast<float>(label) + 0.0001220703125f * t;
}

// The same network as a function on the CPU.
std::vector<float> expected(int64_t n, int steps = 8, double scale = 2) {
  const std::string manifest = R"({"sample":{"shape":[10],"role":"vector"},"prediction":"eps","num_classes":3,
      "defaults":{"sampler":"ddim","steps":8,"scale":2.0,"clip":"none"}})";
  const DenoiseFn fn = [](const float* x, const float* t, const int64_t* label, size_t count, float* out) {
    for (size_t i = 0; i < count; ++i) evaluate(x + i * kShape, t[i], label[i], out + i * kShape);
  };
  ddpm_rt_engine_options o;
  ddpm_rt_engine_options_init(&o, sizeof o);
  o.device = "cpu";
  o.cache_dir = "";
  const auto engine = Engine::from_callable(manifest, make_schedule("linear", 1000).alpha_bar, fn, o);
  return sample(*engine, n, steps, scale);
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, static_cast<double>(std::fabs(a[i] - b[i])));
    size = std::max(size, static_cast<double>(std::fabs(b[i])));
  }
  return most / size;
}

Embedded unet(const std::string& precision, const std::string& lines) { return {"unet", precision, unet_source(), engine_of(lines)}; }

// 13 images through 6 slots: buckets of several sizes at places that are no multiple of 256 bytes.
void test_whole_engine_has_the_cpus_bits() {
  for (const char* profiles : {"profile 1 4 16\n", "profile 1 1 1\nprofile 2 8 16\n"}) {
    write_case(kPath, {unet("fp32", whole("float32", profiles, "scratch 4096\n"))});
    const auto engine = open();
    CHECK(same(sample(*engine, 13), expected(13)));
    CHECK(same(sample(*engine, 1, 20, 1), expected(1, 20, 1)));
    CHECK(contains(engine->info(), "\"backend\":\"tensorrt\"") && contains(engine->info(), "tensorrt_rtx 1.7.1.116"));
    CHECK(contains(engine->info(), digest_of(engine_of(whole("float32", profiles, "scratch 4096\n")))));
  }
}

void test_ticks_are_captured_unless_the_library_says_no() {
  write_case(kPath, {unet("fp32", whole("float32", "profile 1 4 16\n"))});
  for (const int64_t is_capturable : {1, 0}) {
    const Setting setting("capturable", is_capturable);
    const auto engine = open();
    const int64_t launches = emulated::get("launch_graph");
    CHECK(same(sample(*engine, 4, 12), expected(4, 12)));
    CHECK((emulated::get("launch_graph") > launches + 4) == (is_capturable != 0));
  }
}

void test_half_types_cross_the_lane() {
  for (const auto& [precision, type, most] : {std::make_tuple("fp16", "float16", 2e-3), std::make_tuple("bf16", "bfloat16", 2e-2)}) {
    write_case(kPath, {unet(precision, whole(type, "profile 1 4 16\n"))});
    const auto engine = open();
    const double apart = distance(sample(*engine, 9), expected(9));
    std::printf("%s: %.2g of at most %.0e\n", precision, apart, most);
    CHECK(apart > 0 && apart <= most);
  }
}

void test_split_networks_embed_on_the_device() {
  const std::string inner = "in x float32 -1 10\nin rows float32 -1 4\nout eps float32 -1 10\nprofile 1 4 16\nscratch 512\n";
  const std::string outer = "in t float32 -1\nin label int64 -1\nout rows float32 -1 4\nprofile 16 16 16\nscratch 1024\n";
  const Embedded temb{"temb", "fp32", temb_source(), engine_of(outer)};
  write_case(kPath, {unet("fp32", inner), temb}, true);
  const auto engine = open();
  CHECK(same(sample(*engine, 9, 40), expected(9, 40)));
  write_case(kPath, {unet("fp32", inner)}, true);
  CHECK_ERROR(Code::kBackend, open(), "engine of temb in fp32");
}

void test_tensorrt_proper_takes_the_same_path() {
  const Setting major("major", 11), minor("minor", 3), patch("patch", 0), build("build", 9);
  Embedded engine = unet("fp32", whole("float32", "profile 1 4 16\n"));
  engine.library = "tensorrt";
  engine.version = "11.3.0.9";
  write_case(kPath, {engine});
  CHECK(same(sample(*open(), 9), expected(9)));
}

void test_of_several_libraries_the_one_that_built_is_taken() {
  write_case(kPath, {unet("fp32", whole("float32", "profile 1 4 16\n"))});
  Options options;
  options.library = "no/such.so:libm.so.6:" DDPM_RT_EMULATED_TENSORRT;
  CHECK(same(sample(*open(options), 3), expected(3)));
  // Another version's, which opens too, built none of them.
  const std::string other = "./test_tensorrt_other.so";
  std::filesystem::copy_file(DDPM_RT_EMULATED_TENSORRT, other, std::filesystem::copy_options::overwrite_existing);
  std::string why;
  DynamicLibrary::open(other, &why).symbol<int(const char*, int64_t)>("tensorrt_emulated_set")("minor", 6);
  options.library = other + ":" DDPM_RT_EMULATED_TENSORRT;
  CHECK(same(sample(*open(options), 3), expected(3)));
  options.library = other;
  CHECK_ERROR(Code::kBackend, open(options), "expected one built by tensorrt_rtx 1.6");
  std::filesystem::remove(other);
  options.library = "no/such.so:libm.so.6";
  const std::string message = message_of(Code::kBackend, [&] { open(options); });
  CHECK(contains(message, "no/such.so") && contains(message, "libm.so.6"));
}

void test_precisions_are_chosen_by_what_was_built() {
  write_case(kPath, {unet("fp32", whole("float32", "profile 1 4 16\n")), unet("fp16", whole("float16", "profile 1 4 16\n"))});
  CHECK(contains(open()->info(), "\"precision\":\"fp16\""));
  Options options;
  options.precision = "fp32";
  CHECK(contains(open(options)->info(), "\"precision\":\"fp32\""));
  options.precision = "bf16";
  CHECK_ERROR(Code::kBackend, open(options), "ddpm-rt build test_tensorrt.plan --backend tensorrt --precision bf16");
}

void test_trust() {
  write_case(kPath, {unet("fp32", whole("float32", "profile 1 4 16\n"))});
  Options options;
  options.trusts = false;
  CHECK_ERROR(Code::kOption, open(options), "trust_native: expected true");
  // Only by name: a plan that embeds engines still runs elsewhere without them.
  options.backend = "auto";
  CHECK(contains(message_of(Code::kBackend, [&] { open(options); }), "trust_native"));
}

void test_mismatches_name_found_needed_and_the_command() {
  const std::string command = "ddpm-rt build test_tensorrt.plan --backend tensorrt --precision fp32";
  Embedded engine = unet("fp32", whole("float32", "profile 1 4 16\n"));
  engine.version = "1.6.0.61";
  write_case(kPath, {engine});
  std::string message = message_of(Code::kBackend, [] { open(); });
  CHECK(contains(message, "1.6.0.61") && contains(message, "1.7.1.116") && contains(message, command));

  engine.version = "1.7.1.116";
  engine.capabilities = R"(["8.6","8.9"])";
  write_case(kPath, {engine});
  message = message_of(Code::kDevice, [] { open(); });
  CHECK(contains(message, "8.6, 8.9") && contains(message, "9.0") && contains(message, command));
  engine.capabilities = R"(["9.0"])";
  write_case(kPath, {engine});
  CHECK(same(sample(*open(), 3), expected(3)));

  engine = unet("fp32", whole("float32", "profile 8 8 16\n"));
  write_case(kPath, {engine});
  message = message_of(Code::kBackend, [] { sample(*open(), 1); });
  CHECK(contains(message, "8 to 16 rows), got 2") && contains(message, command));

  const struct {
    int64_t bit;
    Code code;
    const char* found;
  } kHeaders[] = {{1, Code::kBackend, "another version"}, {2, Code::kDevice, "other compute capabilities"}, {4, Code::kDevice, "driver"},
                  {16, Code::kDevice, "memory"},          {32, Code::kPlan, "a serialized engine"}};
  write_case(kPath, {unet("fp32", whole("float32", "profile 1 4 16\n"))});
  for (const auto& header : kHeaders) {
    const Setting setting("diagnostics", header.bit);
    CHECK_ERROR(header.code, open(), header.found);
  }
  const Setting setting("has_device", 0);
  CHECK_ERROR(Code::kDevice, open(), "cudaError 35");
}

void test_engines_that_do_not_fit_the_model() {
  const auto refuses = [](const std::string& lines, const char* part) {
    write_case(kPath, {unet("fp32", lines)});
    CHECK_ERROR(Code::kBackend, open(), part);
  };
  refuses("in x float32 -1 11\nin t float32 -1\nin label int64 -1\nout eps float32 -1 11\nprofile 1 4 16\n", "[-1, 10]");
  refuses("in x float32 -1 10\nin t float32 -1\nin label int32 -1\nout eps float32 -1 10\nprofile 1 4 16\n", "int64");
  refuses("in x float32 -1 10\nin t float16 -1\nin label int64 -1\nout eps float32 -1 10\nprofile 1 4 16\n", "float16");
  refuses("in x int32 -1 10\nin t float32 -1\nin label int64 -1\nout eps float32 -1 10\nprofile 1 4 16\n", "float16 or bfloat16");
  refuses("in y float32 -1 10\nin t float32 -1\nin label int64 -1\nout eps float32 -1 10\nprofile 1 4 16\n", "y, t, label, eps");
  refuses("in x float32 -1 10\nin t float32 -1\nout eps float32 -1 10\nprofile 1 4 16\n", "4 inputs and outputs");
  refuses("in x float32 -1 10\nin t float32 -1\nin label int64 -1\nout eps float32 -1 7\nprofile 1 4 16\n", "eps");
  refuses(whole("float32", ""), "optimization profile");
  write_case(kPath, {{"unet", "fp32", temb_source(), engine_of(whole("float32", "profile 1 4 16\n"))}});  // another model's
  CHECK_ERROR(Code::kBackend, open(), "got none");
  write_case(kPath, {{"unet", "fp32", unet_source(), bytes_of("PK\3\4 no engine")}});
  CHECK_ERROR(Code::kPlan, open(), "a serialized engine");
}

void test_a_failed_batch_takes_its_own_requests_only() {
  write_case(kPath, {unet("fp32", whole("float32", "profile 1 4 16\n"))});
  const Setting setting("capturable", 0);
  const auto engine = open();
  sample(*engine, 1);
  std::string message;
  for (int i = 0; i < 5 && message.empty(); ++i) {  // a probe of another batch size may take the failure instead, and is dropped
    set("fail enqueue", 3);
    message = message_of(Code::kBackend, [&] { sample(*engine, 1); });
  }
  CHECK(contains(message, "an injected failure"));
  CHECK(same(sample(*engine, 1), expected(1)));
}

void test_raw_engines() {
  write_case(kPath, {{"unet", "fp16", "", engine_of(whole("float16", "profile 1 4 16\n"))}}, false, "tensorrt");
  Options options;
  options.backend = "auto";
  CHECK(distance(sample(*open(options), 5), expected(5)) <= 2e-3);
  options.trusts = false;
  CHECK_ERROR(Code::kOption, open(options), "trust_native");
  options.trusts = true;
  options.device = "cpu";
  CHECK_ERROR(Code::kDevice, open(options), "expected a GPU for a compiled engine");
  options.backend = "openvino";
  CHECK_ERROR(Code::kOption, open(options), "compiled engine");
}

void write_file(const std::string& path, const Bytes& data) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
}

void test_the_cache_of_the_user() {
  namespace fs = std::filesystem;
  const std::string cache = "test_tensorrt_cache", folder = cache + "/engines";
  fs::remove_all(cache);
  fs::create_directories(folder);
  chmod(folder.c_str(), 0700);
  write_case(kPath, {});
  Options options;
  options.cache = cache;
  options.trusts = false;  // what the user built needs no word of trust
  CHECK_ERROR(Code::kBackend, open(options), folder);

  const Bytes engine = engine_of(whole("float32", "profile 1 4 16\n"));
  const auto card = [&](const std::string& digest) {
    return bytes_of(R"({"library":"tensorrt_rtx","version":"1.7.1.116","network":"unet","precision":"fp32","source":")" + unet_source() +
                    R"(","sha256":")" + digest + "\"}");
  };
  write_file(folder + "/a.engine", engine);
  write_file(folder + "/a.json", card(digest_of(engine)));
  write_file(folder + "/b.json", bytes_of("{"));
  CHECK(same(sample(*open(options), 9), expected(9)));
  options.device = options.backend = "auto";  // an engine for this plan is reason enough to take a GPU
  CHECK(contains(open(options)->info(), "\"backend\":\"tensorrt\""));

  options = Options();
  options.cache = cache;
  write_file(folder + "/a.json", card(digest_of(bytes_of("other"))));
  CHECK_ERROR(Code::kPlan, open(options), "SHA-256");
  write_file(folder + "/a.json", card(digest_of(engine)));
  chmod((folder + "/a.engine").c_str(), 0666);
  CHECK_ERROR(Code::kBackend, open(options), "got none");
  chmod((folder + "/a.engine").c_str(), 0600);
  chmod(folder.c_str(), 0777);
  CHECK_ERROR(Code::kBackend, open(options), "got none");
  fs::remove_all(cache);
}

}  // namespace

int main() {
  if (!library()) return std::printf("%s: cannot be opened\n", DDPM_RT_EMULATED_TENSORRT), 1;
  test_whole_engine_has_the_cpus_bits();
  test_ticks_are_captured_unless_the_library_says_no();
  test_half_types_cross_the_lane();
  test_split_networks_embed_on_the_device();
  test_tensorrt_proper_takes_the_same_path();
  test_of_several_libraries_the_one_that_built_is_taken();
  test_precisions_are_chosen_by_what_was_built();
  test_trust();
  test_mismatches_name_found_needed_and_the_command();
  test_engines_that_do_not_fit_the_model();
  test_a_failed_batch_takes_its_own_requests_only();
  test_raw_engines();
  test_the_cache_of_the_user();
  std::remove(kPath);
  return finish();
}
