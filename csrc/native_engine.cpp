#include "native_engine.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#ifndef _WIN32
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "file_io.h"
#include "json_field.h"

namespace ddpm_rt {
namespace {

constexpr size_t kMaxCardBytes = 1 << 16, kMaxEngines = 64, kMaxEntries = 4096;
constexpr const char* kCardSuffix = ".json";
constexpr const char* kEngineSuffix = ".engine";

std::vector<std::string> texts(const Field& field) {
  std::vector<std::string> list;
  if (!field.is_present()) return list;
  const size_t n = field.array(0, kMaxEngines);
  for (size_t i = 0; i < n; ++i) list.push_back(field[i].text());
  return list;
}

std::string optional_text(const Field& field) { return field.is_present() ? field.text() : ""; }

// What the two kinds of cards share. Bounds on profiles are the engine's own to tell.
NativeEngine read_card(const Field& card) {
  NativeEngine engine;
  engine.library = card["library"].one_of({kTensorRt, kTensorRtRtx});
  engine.version = optional_text(card["version"]);
  engine.network = card["network"].text();
  engine.source = optional_text(card["source"]);
  engine.precision = card["precision"].one_of({"fp32", "fp16", "bf16"});
  engine.capabilities = texts(card["capabilities"]);
  return engine;
}

#ifdef _WIN32
bool is_ours_alone(const std::string&) { return false; }
void touch(const std::string&) {}
int64_t stamp_of(const std::string&) { return 0; }
#else
// What lies in a place that others can write to is not loaded as machine code.
bool is_ours_alone(const std::string& path) {
  struct stat s;
  if (lstat(path.c_str(), &s) != 0) return false;
  return s.st_uid == geteuid() && (s.st_mode & (S_IWGRP | S_IWOTH)) == 0 && !S_ISLNK(s.st_mode);
}
void touch(const std::string& path) { utimensat(AT_FDCWD, path.c_str(), nullptr, 0); }  // a read-only cache keeps its times
int64_t stamp_of(const std::string& path) {
  struct stat s;
  return stat(path.c_str(), &s) == 0 ? static_cast<int64_t>(s.st_mtime) : 0;
}
#endif

std::vector<uint8_t> read_whole(const std::string& path, const std::string& digest) {
  uint64_t bytes = 0;
  std::string why;
  const int fd = open_regular(path, &bytes, &why);
  if (fd < 0) throw Error(Code::kPlan, path + ": expected an engine, got: " + why);
  std::vector<uint8_t> data(bytes);
  const bool is_whole = read_at(fd, 0, data.data(), data.size(), &why);
  close_file(fd);
  if (!is_whole) throw Error(Code::kPlan, path + ": expected an engine, got: " + why);
  const std::string found = hex(sha256(data.data(), data.size()));
  if (found != digest) {
    throw Error(Code::kPlan, path + ": expected SHA-256 " + digest + " as its card says, got " + found + ": remove it and build again");
  }
  return data;
}

NativeEngine read_cached(const std::string& card_path) {
  const std::string path = card_path.substr(0, card_path.size() - std::string(kCardSuffix).size()) + kEngineSuffix;
  if (!is_ours_alone(card_path) || !is_ours_alone(path)) {
    throw Error(Code::kPlan, path + ": expected files that only their owner can write, got others");
  }
  std::ifstream file(card_path, std::ios::binary);
  std::string text(kMaxCardBytes + 1, '\0');
  file.read(&text[0], static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  const nlohmann::json json = text.size() <= kMaxCardBytes ? nlohmann::json::parse(text, nullptr, false) : nlohmann::json();
  NativeEngine engine = read_card(Field(&json, "", Code::kPlan));
  engine.digest = Field(&json, "", Code::kPlan)["sha256"].text();
  engine.where = path;
  engine.stamp = stamp_of(card_path);
  engine.read = [path, card_path, digest = engine.digest] {
    std::vector<uint8_t> data = read_whole(path, digest);
    touch(card_path);
    return data;
  };
  return engine;
}

}  // namespace

std::vector<NativeEngine> engines_in_plan(const std::shared_ptr<const Plan>& plan) {
  const nlohmann::json manifest = nlohmann::json::parse(plan->manifest(), nullptr, false);
  const Field list = Field(&manifest, "", Code::kPlan)["engines"];
  std::vector<NativeEngine> engines;
  if (!list.is_present()) return engines;
  const size_t n = list.array(0, kMaxEngines);
  for (size_t i = 0; i < n; ++i) {
    NativeEngine engine = read_card(list[i]);
    const std::string section = list[i]["section"].text();
    for (const SectionInfo& info : plan->sections()) {
      if (info.name == section) engine.digest = hex(info.sha256);
    }
    if (engine.digest.empty()) list[i]["section"].refuse("the name of a section of this plan");
    engine.where = plan->path() + " (" + section + ")";
    engine.read = [plan, section] { return plan->read(section); };
    engines.push_back(std::move(engine));
  }
  return engines;
}

std::vector<NativeEngine> engines_in_cache(const std::string& folder, const std::string& source, std::string* skipped) {
  namespace fs = std::filesystem;
  std::vector<NativeEngine> engines;
  std::error_code error;
  if (folder.empty() || !fs::is_directory(folder, error)) return engines;
  if (!is_ours_alone(folder)) {
    *skipped = folder + ": expected a folder that only its owner can write, got another";
    return engines;
  }
  size_t entries = 0;
  for (fs::directory_iterator at(folder, error), end; !error && at != end && entries < kMaxEntries; at.increment(error), ++entries) {
    const std::string path = at->path().string();
    if (at->path().extension() != kCardSuffix) continue;
    try {
      NativeEngine engine = read_cached(path);
      if (engine.source == source) engines.push_back(std::move(engine));
    } catch (const Error& e) {
      *skipped = e.what();
    }
  }
  std::stable_sort(engines.begin(), engines.end(),
                   [](const NativeEngine& a, const NativeEngine& b) { return a.stamp > b.stamp; });
  return engines;
}

}  // namespace ddpm_rt
