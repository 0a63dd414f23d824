// The TensorRT library by itself: which are refused, and what a real one says of engines without a GPU.
//
//   DDPM_RT_TEST_TENSORRT   path of libtensorrt_rtx.so.1 or libnvinfer.so.11
//   DDPM_RT_TEST_ENGINE     an engine that this library built
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "check.h"
#include "device_denoiser.h"
#include "expect_error.h"
#include "schedule.h"
#include "tensorrt_case.h"

using namespace ddpm_rt;
using namespace tensorrt_case;

namespace {

void test_libraries() {
  CHECK_ERROR(Code::kBackend, examine_tensorrt("no/such/libnvinfer.so.11", nullptr), "no/such/libnvinfer.so.11");
  CHECK_ERROR(Code::kBackend, examine_tensorrt("libm.so.6", nullptr), "getInferLibMajorVersion");
  CHECK(contains(examine_tensorrt(DDPM_RT_EMULATED_TENSORRT, nullptr), "1.7.1.116"));
  for (const auto& [major, minor] : {std::make_pair(10, 9), std::make_pair(12, 0), std::make_pair(1, 4)}) {
    const Setting a("major", major), b("minor", minor);
    CHECK_ERROR(Code::kBackend, examine_tensorrt(DDPM_RT_EMULATED_TENSORRT, nullptr),
                "got version " + std::to_string(major) + "." + std::to_string(minor));
  }
}

// What the real library says without a GPU. With one, a whole engine loads.
void test_the_real_library() {
  const char *library = std::getenv("DDPM_RT_TEST_TENSORRT"), *path = std::getenv("DDPM_RT_TEST_ENGINE");
  if (library == nullptr || path == nullptr) {
    std::printf("skipped: the real library (DDPM_RT_TEST_TENSORRT, DDPM_RT_TEST_ENGINE)\n");
    return;
  }
  std::printf("%s\n", examine_tensorrt(library, nullptr).c_str());
  std::ifstream file(path, std::ios::binary);
  const Bytes engine{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  CHECK(engine.size() > 1000);
  const auto judged = [&](Bytes data, Code code) { CHECK(!message_of(code, [&] { examine_tensorrt(library, &data); }).empty()); };
  bool has_gpu = true;
  try {
    examine_tensorrt(library, &engine);
  } catch (const Error& e) {
    has_gpu = false;
    CHECK(e.code() == Code::kDevice && contains(e.what(), "cudaError"));
  }
  for (const size_t bytes : {size_t{0}, size_t{63}, size_t{64}, size_t{1000}, engine.size() / 2, engine.size() - 1}) {
    judged(Bytes(engine.begin(), engine.begin() + static_cast<ptrdiff_t>(bytes)), Code::kPlan);
  }
  Bytes longer = engine;
  longer.push_back(0);
  judged(longer, Code::kPlan);
  for (const size_t at : {0, 3, 16, 64, 72}) {
    Bytes flipped = engine;
    flipped[at] ^= 0x10;
    judged(flipped, Code::kPlan);
  }
  judged(bytes_of(std::string(100000, 'x')), Code::kPlan);
  std::printf("the real library: a whole engine %s\n", has_gpu ? "loads" : "needs a GPU");
}

}  // namespace

int main() {
  if (!library()) return std::printf("%s: cannot be opened\n", DDPM_RT_EMULATED_TENSORRT), 1;
  test_libraries();
  test_the_real_library();
  return finish();
}
