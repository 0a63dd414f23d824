// The container: round trip, every kind of damage, atomic writing; SHA-256 against NIST's vectors.
#include "plan.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "expect_error.h"
#include "sha256.h"

using namespace ddpm_rt;
namespace fs = std::filesystem;

namespace {

using Bytes = std::vector<uint8_t>;
using Sections = std::vector<std::pair<std::string, Bytes>>;

std::string folder;  // a fresh one, removed at the end

Bytes slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), {});
}

void spill(const std::string& path, const Bytes& data) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data.data()), data.size());
}

Bytes random_bytes(size_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  Bytes data(n);
  for (uint8_t& b : data) b = static_cast<uint8_t>(rng());
  return data;
}

const std::string kManifest = "{\"format\": 1, \"name\": \"t\u00e4st\"}";
const Sections kSections = {{"alpha_bar", random_bytes(800, 1)}, {"empty", {}}, {"unet.onnx", random_bytes(5000, 2)},
                            {"x", random_bytes(4096, 3)}};

template <typename T>
void put(Bytes* file, size_t offset, T value) {
  std::memcpy(file->data() + offset, &value, sizeof value);
}

template <typename T>
T get(const Bytes& file, size_t offset) {
  T value;
  std::memcpy(&value, file.data() + offset, sizeof value);
  return value;
}

// The digest as a forger would make it: over the real manifest and table, whatever the header now claims.
void seal(Bytes* file, size_t manifest_offset, size_t manifest_bytes) {
  Sha256 hash;
  hash.update(file->data(), 64);
  hash.update(file->data() + manifest_offset, manifest_bytes);
  hash.update(file->data() + 96, manifest_offset - 96);
  const Digest digest = hash.finish();
  std::copy(digest.begin(), digest.end(), file->begin() + 64);
}

void open_and_verify(const std::string& path) { Plan::open(path)->verify(); }

void test_sha256() {
  const auto both = [](const std::string& text, const std::string& expected) {
    for (bool portable : {false, true}) {
      Sha256 hash(portable);
      hash.update(text.data(), text.size());
      CHECK(hex(hash.finish()) == expected);
    }
  };
  // FIPS 180-4 examples and the NIST long message.
  both("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  both("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  both("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  both("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
       "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  both(std::string(1000000, 'a'), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  const Bytes data = random_bytes(1000, 7);
  for (size_t n = 0; n <= 300; ++n) {
    Sha256 fast, slow(true), pieces;
    fast.update(data.data(), n);
    slow.update(data.data(), n);
    for (size_t i = 0; i < n; i += 1 + i % 67) pieces.update(&data[i], std::min(n - i, 1 + i % 67));
    const Digest digest = fast.finish();
    CHECK(digest == slow.finish() && digest == pieces.finish() && digest == sha256(data.data(), n));
  }
  std::printf("SHA instructions: %s\n", Sha256::has_instructions() ? "yes" : "no, both runs were portable");
}

void test_round_trip() {
  const std::string path = folder + "/a.plan";
  write_plan(path, kManifest, kSections);
  const auto plan = Plan::open(path);
  CHECK(plan->path() == path && plan->manifest() == kManifest && plan->sections().size() == kSections.size());
  for (size_t i = 0; i < kSections.size(); ++i) {
    const SectionInfo& info = plan->sections()[i];
    CHECK(info.name == kSections[i].first && info.bytes == kSections[i].second.size() && info.offset % 4096 == 0);
    CHECK(plan->has(info.name) && plan->read(info.name) == kSections[i].second);
    CHECK(info.sha256 == sha256(kSections[i].second.data(), kSections[i].second.size()));
  }
  plan->verify();
  CHECK(!plan->has("unet"));
  CHECK_ERROR(Code::kPlan, plan->read("unet"), "\"unet\"");
  const Bytes first = slurp(path);
  write_plan(path, kManifest, kSections);  // over an existing one
  CHECK(slurp(path) == first);
  write_plan(folder + "/none.plan", "{}", {});
  CHECK(Plan::open(folder + "/none.plan")->sections().empty());
  write_plan(folder + "/last_empty.plan", "{}", {{"a", {1}}, {"b", {}}});
  CHECK(Plan::open(folder + "/last_empty.plan")->read("b").empty());
  const std::string long_name = folder + "/" + std::string(250, 'n');
  write_plan(long_name, "{}", {});
  open_and_verify(long_name);
  CHECK(std::distance(fs::directory_iterator(folder), fs::directory_iterator{}) == 4);
  CHECK((fs::status(path).permissions() & fs::perms::owner_write) != fs::perms::none);
}

void test_damage() {
  const std::string good_path = folder + "/good.plan", path = folder + "/bad.plan";
  write_plan(good_path, kManifest, kSections);
  const Bytes good = slurp(good_path);

  write_plan(path, "{}", {{"a", random_bytes(50, 4)}});
  for (size_t n = fs::file_size(path); n-- > 0;) {
    fs::resize_file(path, n);
    CHECK_ERROR(Code::kPlan, Plan::open(path), "file bytes");
  }
  for (size_t n : {1, 4096, 100000}) {
    Bytes longer = good;
    longer.resize(good.size() + n);
    spill(path, longer);
    CHECK_ERROR(Code::kPlan, Plan::open(path), "extended");
  }
  std::mt19937 rng(5);
  spill(path, good);
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  const auto poke = [&](size_t at, uint8_t value) {
    file.seekp(static_cast<std::streamoff>(at));
    file.put(static_cast<char>(value));
    file.flush();
  };
  for (int i = 0; i < 5000; ++i) {
    const size_t bit = rng() % (good.size() * 8), at = bit / 8;
    poke(at, good[at] ^ static_cast<uint8_t>(1u << bit % 8));
    CHECK_ERROR(Code::kPlan, open_and_verify(path), path);
    poke(at, good[at]);
  }
  open_and_verify(path);
  {
    Bytes flipped = good;  // damage is found by the read of the section that has it, and only there
    flipped[flipped.size() - 1] ^= 1;
    spill(path, flipped);
    const auto plan = Plan::open(path);
    CHECK(plan->read("unet.onnx") == kSections[2].second);
    CHECK_ERROR(Code::kPlan, plan->read("x"), "section x");
    CHECK_ERROR(Code::kPlan, plan->verify(), "section x");
  }
  {
    spill(path, good);  // a file that shrinks under an open plan is a short read, not a crash
    const auto plan = Plan::open(path);
    fs::resize_file(path, good.size() - 100);
    CHECK_ERROR(Code::kPlan, plan->read("x"), "end of the file");
  }
  spill(path, {});
  CHECK_ERROR(Code::kPlan, Plan::open(path), "file bytes");
  Bytes zip = good;
  std::memcpy(zip.data(), "PK\3\4\0\0\0\0", 8);
  spill(path, zip);
  CHECK_ERROR(Code::kPlan, Plan::open(path), "DDPMPLAN");
  CHECK(contains(message_of(Code::kPlan, [&] { Plan::open(folder + "/missing.plan"); }), "no such file"));
  CHECK_ERROR(Code::kPlan, Plan::open(folder), "regular file");
  CHECK_ERROR(Code::kPlan, Plan::open("/dev/null"), "regular file");
  CHECK(!message_of(Code::kPlan, [&] { Plan::open(""); }).empty());
  CHECK(!message_of(Code::kPlan, [&] { Plan::open(good_path + std::string("\0x", 2)); }).empty());
  const std::string fifo = folder + "/fifo";
  CHECK(mkfifo(fifo.c_str(), 0600) == 0);
  CHECK_ERROR(Code::kPlan, Plan::open(fifo), "regular file");
  fs::remove(fifo);
}

// Every integer of header and table, with a valid digest, so that the field's own check must refuse it.
void test_lengths() {
  const std::string good_path = folder + "/good.plan", path = folder + "/bad.plan";
  write_plan(good_path, kManifest, kSections);
  const Bytes good = slurp(good_path);
  const size_t manifest_offset = get<uint64_t>(good, 24), manifest_bytes = get<uint64_t>(good, 32);
  const uint64_t k31 = uint64_t{1} << 31, k32 = uint64_t{1} << 32, k63 = uint64_t{1} << 63;
  const uint64_t values[] = {0,       1,       2,       k31 - 1, k31,     k31 + 1,        k32 - 1,
                             k32,     k32 + 1, k63 - 1, k63,     k63 + 1, ~uint64_t{0},   ~uint64_t{0} - 4095,
                             good.size(), good.size() + 1, kMaxManifestBytes + 1, 96, 4096};
  struct Position {
    size_t offset, width;
    const char* name;
  };
  std::vector<Position> positions = {{8, 4, "format version"}, {12, 4, "header bytes"},   {16, 8, "file bytes"},
                                     {24, 8, "manifest offset"}, {32, 8, "manifest bytes"}, {40, 8, "table offset"},
                                     {48, 4, "section count"},   {52, 4, "header bytes 52"}, {56, 8, "header bytes 52"}};
  for (size_t i = 0; i < kSections.size(); ++i) {
    positions.push_back({96 + 128 * i + 64, 8, "offset"});
    positions.push_back({96 + 128 * i + 72, 8, "bytes"});
    positions.push_back({96 + 128 * i + 112, 8, "bytes 112"});
    positions.push_back({96 + 128 * i + 120, 8, "bytes 112"});
  }
  for (const Position& p : positions) {
    for (uint64_t value : values) {
      Bytes file = good;
      p.width == 4 ? put(&file, p.offset, static_cast<uint32_t>(value)) : put(&file, p.offset, value);
      const bool changed = file != good;
      seal(&file, manifest_offset, manifest_bytes);
      spill(path, file);
      // A changed length is refused by the first field that then disagrees: for a section whose padding can absorb
      // the difference that is its SHA-256.
      const std::string message = changed ? message_of(Code::kPlan, [&] { open_and_verify(path); }) : "";
      if (changed && message.empty()) std::printf("%s = %llu\n", p.name, static_cast<unsigned long long>(value));
      CHECK(!changed || (contains(message, "expected") && contains(message, "got")));
      if (changed && p.offset < 32 && p.offset != 24) CHECK(contains(message, p.name));
    }
  }
  const auto with = [&](auto change) {
    Bytes file = good;
    change(file);
    seal(&file, manifest_offset, manifest_bytes);
    spill(path, file);
    Plan::open(path);
  };
  with([](Bytes&) {});
  CHECK_ERROR(Code::kPlan, with([](Bytes& f) { put(&f, 8, uint32_t{2}); }), "format version: expected 1, got 2");
  CHECK_ERROR(Code::kPlan, with([](Bytes& f) { std::memset(&f[96], 0, 64); }), "name");            // empty
  CHECK_ERROR(Code::kPlan, with([](Bytes& f) { std::memset(&f[96], 'a', 64); }), "name");          // unterminated
  CHECK_ERROR(Code::kPlan, with([](Bytes& f) { f[97] = '\n'; }), "name");                          // not printable
  CHECK_ERROR(Code::kPlan, with([](Bytes& f) { f[96 + 63] = 'x'; }), "name");                      // not padded
  CHECK_ERROR(Code::kPlan, with([](Bytes& f) { std::memcpy(&f[224], &f[96], 64); }), "twice");     // alpha_bar twice
}

size_t files_in_folder() { return std::distance(fs::directory_iterator(folder), fs::directory_iterator{}); }

void test_write_failures() {
  const size_t before = files_in_folder();
  const auto write = [](const std::string& path) { write_plan(path, kManifest, kSections); };
  CHECK(contains(message_of(Code::kPlan, [&] { write(folder + "/no/such/a.plan"); }), "No such file"));
  CHECK(contains(message_of(Code::kPlan, [&] { write(folder + "/good.plan/a.plan"); }), "Not a directory"));
  CHECK_ERROR(Code::kPlan, write(folder), "regular file");
  CHECK_ERROR(Code::kPlan, write("/dev/full"), "regular file");
  CHECK(fs::is_character_file("/dev/full"));
  CHECK_ERROR(Code::kPlan, write(""), "file name");
  CHECK(!message_of(Code::kPlan, [&] { write(folder + "/"); }).empty());
  CHECK(!message_of(Code::kPlan, [&] { write(folder + "/" + std::string(300, 'n')); }).empty());
  CHECK(!message_of(Code::kPlan, [&] { write("/proc/a.plan"); }).empty());

  const Bytes old = slurp(folder + "/good.plan");
  struct rlimit limit, small;
  getrlimit(RLIMIT_FSIZE, &limit);
  small = limit;
  small.rlim_cur = 6000;  // a disk that is full after 6000 bytes
  std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string message = message_of(Code::kPlan, [&] { write(folder + "/good.plan"); });
  const std::string fresh = message_of(Code::kPlan, [&] { write(folder + "/new.plan"); });
  setrlimit(RLIMIT_FSIZE, &limit);
  CHECK(contains(message, "File too large") && contains(fresh, "File too large"));
  CHECK(slurp(folder + "/good.plan") == old);
  CHECK(!fs::exists(folder + "/new.plan"));

  const std::string path = folder + "/new.plan";
  CHECK_ERROR(Code::kPlan, write_plan(path, "", {}), "manifest bytes");
  CHECK_ERROR(Code::kPlan, write_plan(path, std::string(kMaxManifestBytes + 1, ' '), {}), "manifest bytes");
  for (const std::string& name : {std::string(), std::string("a\n"), std::string(64, 'a'), std::string("a\0", 2)}) {
    CHECK_ERROR(Code::kPlan, write_plan(path, "{}", {{name, {}}}), "name");
  }
  CHECK_ERROR(Code::kPlan, write_plan(path, "{}", {{"a", {}}, {"a", {}}}), "unique");
  Sections many(kMaxSections + 1);
  for (size_t i = 0; i < many.size(); ++i) many[i].first = std::to_string(i);
  CHECK_ERROR(Code::kPlan, write_plan(path, "{}", many), "section count");
  CHECK(files_in_folder() == before);
  many.pop_back();
  write_plan(path, std::string(kMaxManifestBytes, ' '), many);  // exactly at the limits
  open_and_verify(path);
}

}  // namespace

int main() {
  char name[] = "/tmp/ddpm_rt_test_plan_XXXXXX";
  if (mkdtemp(name) == nullptr) return 1;
  folder = name;
  test_sha256();
  test_round_trip();
  test_damage();
  test_lengths();
  test_write_failures();
  fs::remove_all(folder);
  return finish();
}
