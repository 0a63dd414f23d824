// libFuzzer target over the plan container and the manifest's parser. Not part of the test run:
//   clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -Icsrc -Ikernels -I<nlohmann> tests/cpp/fuzz_plan.cpp
//     csrc/{schedule*,solver*,solvers/*,sha256,file_io,plan,spec*}.cpp -o fuzz_plan
//   mkdir -p corpus && ./fuzz_plan -max_len=32768 -max_total_time=60 corpus
// The mutator recomputes every digest, so that the checks behind them are reached. Linux only (memfd).
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "error.h"
#include "plan.h"
#include "sha256.h"
#include "spec.h"

using namespace ddpm_rt;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

uint64_t load64(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;
}

const char kManifest[] = R"({"format": 1, "requires": [], "row_version": 1, "rng_version": 1, "name": "m",
 "networks": {"n": {"kind": "gaussian_mixture", "means": "m", "stds": "s", "weights": "w", "K": 2},
  "t": {"kind": "onnx", "section": "s", "inputs": {"t": "t", "label": "l"}, "outputs": {"rows": "r"}, "rows_width": 8},
  "u": {"kind": "onnx", "section": "m", "inputs": {"x": "x", "rows": "r"}, "outputs": {"eps": "e"},
        "output_slices": {"mean": [0, 1], "variance": null}, "guided_channels": [0, 1]}},
 "stages": [{"kind": "diffusion", "network": "n", "inputs": {"x": "state", "t": "time", "label": "request"}}],
 "conditions": {"label": {"dtype": "int64", "shape": [], "role": "class", "classes": 2, "null": 2}},
 "class_names": ["a", "b"], "sample": {"shape": [1, 1, 2], "role": "image", "range": [-1, 1], "uint8": "round"},
 "schedule": {"section": "alpha_bar", "T": 4}, "prediction": "eps", "variance": "fixed",
 "time": {"type": "index", "scale": 1.0}, "defaults": {"sampler": "ddim", "steps": 2, "scale": 2, "clip": "none"},
 "self_test": {"section": "self", "count": 1, "tolerance": {"fp32": 1e-3}}})";

std::vector<uint8_t> seed_plan() {
  const double alpha_bar[] = {0.9, 0.5, 0.2, 0.1};
  std::vector<uint8_t> schedule(sizeof alpha_bar);
  std::memcpy(schedule.data(), alpha_bar, sizeof alpha_bar);
  char path[] = "/tmp/ddpm_rt_fuzz_XXXXXX";
  close(mkstemp(path));
  write_plan(path, kManifest, {{"alpha_bar", schedule},
                               {"m", std::vector<uint8_t>(32)},
                               {"s", std::vector<uint8_t>(16)},
                               {"w", std::vector<uint8_t>(16)},
                               {"self", std::vector<uint8_t>(24)}});
  std::vector<uint8_t> data;
  FILE* file = std::fopen(path, "rb");
  for (int c; (c = std::fgetc(file)) != EOF;) data.push_back(static_cast<uint8_t>(c));
  std::fclose(file);
  unlink(path);
  return data;
}

void seal(uint8_t* data, size_t size) {
  if (size < 96) return;
  const uint64_t manifest = load64(data + 24), bytes = load64(data + 32);
  uint32_t count;
  std::memcpy(&count, data + 48, 4);
  const size_t room = (size - 96) / 128, table = 128 * std::min<size_t>(count, room);
  for (size_t at = 96; at < 96 + table; at += 128) {
    const uint64_t offset = load64(data + at + 64), length = load64(data + at + 72);
    if (offset > size || length > size - offset) continue;
    const Digest digest = sha256(data + offset, length);
    std::copy(digest.begin(), digest.end(), data + at + 80);
  }
  if (manifest > size || bytes > size - manifest) return;
  Sha256 hash;
  hash.update(data, 64);
  hash.update(data + manifest, bytes);
  hash.update(data + 96, table);
  const Digest digest = hash.finish();
  std::copy(digest.begin(), digest.end(), data + 64);
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  static const std::vector<uint8_t> kSeed = seed_plan();
  uint32_t dice = seed * 2654435761u;
  if (size < 96 || dice >> 28 == 0) {
    if (kSeed.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
    std::copy(kSeed.begin(), kSeed.end(), data);
    size = kSeed.size();
  }
  const uint64_t manifest = load64(data + 24), bytes = load64(data + 32);
  const bool has_manifest = manifest < size && bytes > 0 && bytes <= size - manifest;
  const uint32_t kind = dice >> 8 & 7;
  if (kind < 4 && has_manifest) {
    // The text alone, kept at its length by spaces, so that the container stays whole.
    std::vector<uint8_t> text(data + manifest, data + manifest + bytes);
    const size_t n = LLVMFuzzerMutate(text.data(), text.size(), text.size());
    std::fill(text.begin() + n, text.end(), ' ');
    std::copy(text.begin(), text.end(), data + manifest);
  } else if (kind < 6) {
    LLVMFuzzerMutate(data, std::min<size_t>(size, 96 + 128 * 5), std::min<size_t>(size, 96 + 128 * 5));
  } else {
    size = LLVMFuzzerMutate(data, size, max_size);
  }
  if (dice >> 16 & 3 && size >= 24) {
    const uint64_t total = size;
    std::memcpy(data + 16, &total, 8);
  }
  if (dice >> 12 & 7) seal(data, size);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int kFile = memfd_create("plan", MFD_CLOEXEC);
  static const std::string kPath = "/proc/self/fd/" + std::to_string(kFile);
  if (ftruncate(kFile, 0) != 0 || pwrite(kFile, data, size, 0) != static_cast<ssize_t>(size)) std::abort();
  try {
    const auto plan = Plan::open(kPath);
    try {
      const ModelSpec spec = parse_manifest(plan->manifest(), plan.get(), nullptr);
      const Table table = compile_table(spec.schedule, spec.prediction, spec.defaults);
      validate_table(table.rows, kCpuFlags);
    } catch (const Error& e) {
      if (e.code() != Code::kPlan) std::abort();
    }
    for (const SectionInfo& info : plan->sections()) plan->read(info.name);
    plan->verify();
  } catch (const Error& e) {
    if (e.code() != Code::kPlan) std::abort();
  }
  return 0;
}
