// Bits that nothing may change: the library's kernels against the same source compiled for one instruction set at a
// time, calls large enough to bypass the caches, and a hash that every machine must reproduce.
#include <algorithm>

#include "check.h"
#include "step.h"
#include "step_case.h"

using namespace ddpm_rt;
using namespace step_case;

#define DECLARE_ISA(isa)                                                                          \
  extern "C" {                                                                                    \
  void isa##_step(const void*, size_t, size_t, uint8_t*);                                         \
  void isa##_normals(uint64_t, size_t, float*);                                                   \
  void isa##_combine(const float*, const float*, const float*, float, size_t, size_t, float*);    \
  void isa##_quantise(const float*, size_t, size_t, bool, uint8_t*);                              \
  }
DECLARE_ISA(isa_default)
#if defined(DDPM_RT_TEST_X86_64_LEVELS)
DECLARE_ISA(isa_v3)
DECLARE_ISA(isa_v4)
#endif

namespace {

struct Isa {
  const char* name;
  bool is_supported;
  decltype(&isa_default_step) step;
  decltype(&isa_default_normals) normals;
  decltype(&isa_default_combine) combine;
  decltype(&isa_default_quantise) quantise;
};

#define ISA_ROW(isa, supported) {#isa, supported, isa##_step, isa##_normals, isa##_combine, isa##_quantise}

std::vector<Isa> instruction_sets() {
  std::vector<Isa> sets = {ISA_ROW(isa_default, true)};
#if defined(DDPM_RT_TEST_X86_64_LEVELS)
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  sets.push_back(ISA_ROW(isa_v3, v3));
  sets.push_back(ISA_ROW(isa_v4, v4));
#endif
  return sets;
}

const size_t kSizes[] = {1, 3, 255, 257, 768, 784, 3072};

uint64_t fnv1a(const void* data, size_t size, uint64_t hash) {
  const unsigned char* bytes = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3ull;
  return hash;
}

void test_isa(const Isa& isa) {
  bool same = true;
  for (uint64_t trial = 0; trial < 300; ++trial) {
    Random random(trial);
    Case library(&random, kSizes[trial % 7]);
    if (trial % 2 == 1) library.add_rare_flags(&random);
    Case other = library;
    uint8_t bad[2] = {0, 0};
    const StepSlot a = library.slot(), b = other.slot();
    step_cpu(&a, 1, library.elements, &bad[0]);
    isa.step(&b, 1, other.elements, &bad[1]);
    same = same && library.same_bits(other) && bad[0] == bad[1];
  }
  CHECK(same);

  constexpr size_t kNormals = 100001;
  std::vector<float> library(kNormals), other(kNormals);
  fill_normals(42, 3, kStreamStep, 0, kNormals, library.data());
  isa.normals(42, kNormals, other.data());
  CHECK(library == other);

  const float scale[2] = {3.0f, -1.5f};
  std::vector<float> out(2 * 3073), out_isa(2 * 3073);
  for (float phi : {0.0f, 0.7f}) {
    cfg_combine_cpu(library.data(), library.data() + 50000, scale, phi, 2, 3073, out.data());
    isa.combine(library.data(), library.data() + 50000, scale, phi, 2, 3073, out_isa.data());
    CHECK(out == out_isa);
  }
  std::vector<uint8_t> pixels(3 * 1001), pixels_isa(3 * 1001);
  for (bool truncate : {false, true}) {
    to_uint8_nhwc(library.data(), 3, 1001, -1.0f, 1.0f, truncate, pixels.data());
    isa.quantise(library.data(), 3, 1001, truncate, pixels_isa.data());
    CHECK(pixels == pixels_isa);
  }
}

uint64_t hash_of_steps(bool is_rare) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (uint64_t trial = 0; trial < 200; ++trial) {
    Random random(trial);
    Case c(&random, kSizes[trial % 7]);
    if (is_rare) c.add_rare_flags(&random);
    const StepSlot slot = c.slot();
    uint8_t bad = 0;
    step_cpu(&slot, 1, c.elements, &bad);
    for (const std::vector<float>& array : c.arrays) hash = fnv1a(array.data(), c.elements * sizeof(float), hash);
    if (is_rare) hash = fnv1a(&c.kl, sizeof c.kl, hash);
  }
  return hash;
}

// One number for all that step_cpu computes on random rows; equal on every machine and compiler.
void test_golden_step() {
  constexpr uint64_t kGolden = 0x5fd0b6d7c0ed4341ull, kGoldenRare = 0x9b51a54d92865a22ull;
  const uint64_t hash = hash_of_steps(false), rare = hash_of_steps(true);
  if (hash != kGolden) std::printf("hash of 200 random rows: got 0x%016llx\n", static_cast<unsigned long long>(hash));
  if (rare != kGoldenRare) std::printf("with rare flags: got 0x%016llx\n", static_cast<unsigned long long>(rare));
  CHECK(hash == kGolden);
  CHECK(rare == kGoldenRare);
}

// A call large enough to bypass the caches gives the bits of small calls.
void test_streaming_call() {
  constexpr size_t kElements = 2099, kCount = 4001;  // above 2^23 elements, slots at every alignment
  std::vector<float> x(kElements * kCount), e(x.size()), in(x.size() + 1), in_one(kElements);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(i % 8191) * 0x1p-11f;
    e[i] = static_cast<float>(i % 8179) * 0x1p-12f - 1.0f;
  }
  const std::vector<float> x_before = x;
  StepRow row{}, next{};
  row.p = 1.25f;
  row.q = -0.75f;
  row.wx[kX] = 0.3f;
  row.wx[kX0] = 0.7f;
  next.c_in = 0.9f;
  std::vector<StepSlot> slots(kCount);
  for (size_t s = 0; s < kCount; ++s) {
    slots[s].row = &row;
    slots[s].next = &next;
    slots[s].x = &x[s * kElements];
    slots[s].cond = &e[s * kElements];
    slots[s].in[0] = &in[s * kElements];
  }
  in.back() = Case::kUnwritten;
  std::vector<uint8_t> bad(kCount, 0);
  step_cpu(slots.data(), kCount, kElements, bad.data());
  bool same = in.back() == Case::kUnwritten;
  for (size_t s = 0; s < kCount; s += 37) {
    std::vector<float> x_one(x_before.begin() + static_cast<std::ptrdiff_t>(s * kElements),
                             x_before.begin() + static_cast<std::ptrdiff_t>((s + 1) * kElements));
    StepSlot one = slots[s];
    one.x = x_one.data();
    one.in[0] = in_one.data();
    step_cpu(&one, 1, kElements, bad.data());
    same = same && memcmp(x_one.data(), &x[s * kElements], kElements * sizeof(float)) == 0 &&
           memcmp(in_one.data(), &in[s * kElements], kElements * sizeof(float)) == 0;
  }
  CHECK(same);
}

}  // namespace

int main() {
  for (const Isa& isa : instruction_sets()) {
    std::printf("%s: %s\n", isa.name, isa.is_supported ? "compared" : "not supported by this machine, skipped");
    if (isa.is_supported) test_isa(isa);
  }
  test_golden_step();
  test_streaming_call();
  return finish();
}
