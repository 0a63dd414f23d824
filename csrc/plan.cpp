#include "plan.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <set>

#include "error.h"
#include "file_io.h"
#include "sha256.h"

namespace ddpm_rt {
namespace {

constexpr uint64_t kHeaderBytes = 64, kDigestBytes = 32, kTableOffset = kHeaderBytes + kDigestBytes;
constexpr uint64_t kEntryBytes = 128, kNameBytes = 64, kAlign = 4096;
constexpr size_t kReadPiece = 1 << 20;
const char kMagic[] = "DDPMPLAN";

[[noreturn]] void refuse(const std::string& path, const std::string& message) {
  throw Error(Code::kPlan, path + ": " + message);
}

template <typename Found>
[[noreturn]] void refuse(const std::string& path, const std::string& field, uint64_t expected, Found found) {
  refuse(path, field + ": expected " + std::to_string(expected) + ", got " + std::to_string(found));
}

void require_little_endian() {
  const uint16_t probe = 1;
  uint8_t first;
  std::memcpy(&first, &probe, 1);
  if (first != 1) throw Error(Code::kPlan, "host: expected a little-endian machine, got a big-endian one");
}

template <typename T>
T load(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
void store(uint8_t* p, T v) {
  std::memcpy(p, &v, sizeof v);
}

// Only for offsets inside a real or planned file, so that the sum cannot wrap.
uint64_t align_up(uint64_t offset) { return (offset + kAlign - 1) / kAlign * kAlign; }

std::string printable(const uint8_t* p, size_t bytes) {
  std::string text;
  for (size_t i = 0; i < bytes; ++i) text += p[i] >= 0x20 && p[i] <= 0x7e ? static_cast<char>(p[i]) : '?';
  return text;
}

bool is_name(const std::string& name) {
  return !name.empty() && name.size() < kNameBytes &&
         std::all_of(name.begin(), name.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

bool all_zero(const uint8_t* p, size_t bytes) {
  return std::all_of(p, p + bytes, [](uint8_t b) { return b == 0; });
}

Digest metadata_digest(const uint8_t* header, const uint8_t* manifest, size_t manifest_bytes, const uint8_t* table,
                       size_t table_bytes) {
  Sha256 hash;
  hash.update(header, kHeaderBytes);
  hash.update(manifest, manifest_bytes);
  hash.update(table, table_bytes);
  return hash.finish();
}

void read_or_refuse(int fd, const std::string& path, const std::string& field, uint64_t offset, void* out, size_t bytes) {
  std::string why;
  if (!read_at(fd, offset, out, bytes, &why)) refuse(path, field + ": " + why);
}

struct Header {
  uint64_t manifest_offset, manifest_bytes;
  uint32_t count;
};

// Every field against its one right value; afterwards all lengths are at most what the real file holds.
Header parse_header(const uint8_t* h, uint64_t real_bytes, const std::string& path) {
  if (std::memcmp(h, kMagic, 8) != 0) {
    refuse(path, std::string("magic: expected \"") + kMagic + "\", got \"" + printable(h, 8) + "\": not a plan file");
  }
  const uint32_t format = load<uint32_t>(h + 8), header_bytes = load<uint32_t>(h + 12);
  if (format != kPlanFormat) refuse(path, "format version", kPlanFormat, format);
  if (header_bytes != kHeaderBytes) refuse(path, "header bytes", kHeaderBytes, header_bytes);
  const uint64_t file_bytes = load<uint64_t>(h + 16);
  if (file_bytes != real_bytes) {
    refuse(path, "file bytes: expected " + std::to_string(file_bytes) + " as the header says, got a file of " +
                     std::to_string(real_bytes) +
                     (real_bytes < file_bytes ? ": the file is truncated, or the header damaged"
                                              : ": the file was extended, or the header damaged"));
  }
  Header header = {load<uint64_t>(h + 24), load<uint64_t>(h + 32), load<uint32_t>(h + 48)};
  const uint64_t table_offset = load<uint64_t>(h + 40);
  if (table_offset != kTableOffset) refuse(path, "table offset", kTableOffset, table_offset);
  if (header.count > kMaxSections) {
    refuse(path, "section count: expected at most " + std::to_string(kMaxSections) + ", got " +
                     std::to_string(header.count));
  }
  const uint64_t table_end = kTableOffset + kEntryBytes * header.count;
  if (header.manifest_offset != table_end) refuse(path, "manifest offset", table_end, header.manifest_offset);
  if (header.manifest_bytes < 1 || header.manifest_bytes > kMaxManifestBytes) {
    refuse(path, "manifest bytes: expected 1 to " + std::to_string(kMaxManifestBytes) + ", got " +
                     std::to_string(header.manifest_bytes));
  }
  if (table_end + header.manifest_bytes > real_bytes) {
    refuse(path, "manifest bytes: expected its end within the file's " + std::to_string(real_bytes) + " bytes, got " +
                     std::to_string(table_end + header.manifest_bytes));
  }
  if (!all_zero(h + 52, 12)) refuse(path, "header bytes 52 to 63: expected zero, got other values");
  return header;
}

std::vector<SectionInfo> parse_table(const std::vector<uint8_t>& table, uint64_t manifest_end, uint64_t real_bytes,
                                     const std::string& path) {
  std::vector<SectionInfo> sections;
  std::set<std::string> names;
  uint64_t end = manifest_end;
  for (size_t i = 0; i < table.size() / kEntryBytes; ++i) {
    const uint8_t* entry = table.data() + i * kEntryBytes;
    const std::string field = "section " + std::to_string(i);
    const size_t length = std::find(entry, entry + kNameBytes, 0) - entry;
    SectionInfo info{std::string(reinterpret_cast<const char*>(entry), length), load<uint64_t>(entry + 64),
                     load<uint64_t>(entry + 72), {}};
    std::copy(entry + 80, entry + 112, info.sha256.begin());
    if (!is_name(info.name) || !all_zero(entry + length, kNameBytes - length)) {
      refuse(path, field + " name: expected 1 to 63 printable ASCII characters padded with zeros, got \"" +
                       printable(entry, kNameBytes) + "\"");
    }
    if (!names.insert(info.name).second) refuse(path, field + " name: expected unique names, got \"" + info.name + "\" twice");
    if (!all_zero(entry + 112, 16)) refuse(path, field + " bytes 112 to 127: expected zero, got other values");
    const uint64_t offset = align_up(end);
    if (info.offset != offset) refuse(path, field + " (" + info.name + ") offset", offset, info.offset);
    if (offset > real_bytes || info.bytes > real_bytes - offset) {
      refuse(path, field + " (" + info.name + ") bytes: expected at most " +
                       std::to_string(offset > real_bytes ? 0 : real_bytes - offset) + " to the end of the file, got " +
                       std::to_string(info.bytes));
    }
    end = offset + info.bytes;
    sections.push_back(std::move(info));
  }
  if (end != real_bytes) refuse(path, "file bytes: expected the end of the last section", end, real_bytes);
  return sections;
}

}  // namespace

std::shared_ptr<const Plan> Plan::open(const std::string& path) {
  require_little_endian();
  uint64_t real_bytes = 0;
  std::string why;
  const int fd = open_regular(path, &real_bytes, &why);
  if (fd < 0) throw Error(Code::kPlan, "path: " + path + ": " + why);
  std::shared_ptr<Plan> plan(new Plan);
  plan->fd_ = fd;
  plan->path_ = path;
  uint8_t head[kTableOffset];
  if (real_bytes < sizeof head) {
    refuse(path, "file bytes: expected at least " + std::to_string(sizeof head) + " for the header, got " +
                     std::to_string(real_bytes) + ": not a plan file, or truncated");
  }
  read_or_refuse(fd, path, "header", 0, head, sizeof head);
  const Header header = parse_header(head, real_bytes, path);
  std::vector<uint8_t> table(kEntryBytes * header.count);
  plan->manifest_.resize(header.manifest_bytes);
  read_or_refuse(fd, path, "section table", kTableOffset, table.data(), table.size());
  read_or_refuse(fd, path, "manifest", header.manifest_offset, &plan->manifest_[0], plan->manifest_.size());
  Digest stated;
  std::copy(head + kHeaderBytes, head + kTableOffset, stated.begin());
  const Digest found = metadata_digest(head, reinterpret_cast<const uint8_t*>(plan->manifest_.data()),
                                       plan->manifest_.size(), table.data(), table.size());
  if (stated != found) {
    refuse(path, "digest of header, manifest and table: expected " + hex(stated) + ", got " + hex(found) +
                     ": the file is damaged");
  }
  plan->sections_ = parse_table(table, header.manifest_offset + header.manifest_bytes, real_bytes, path);
  return plan;
}

Plan::~Plan() { close_file(fd_); }

const SectionInfo& Plan::find(const std::string& section) const {
  for (const SectionInfo& info : sections_) {
    if (info.name == section) return info;
  }
  refuse(path_, "section: expected one of the plan's " + std::to_string(sections_.size()) + ", got \"" + section + "\"");
}

bool Plan::has(const std::string& section) const {
  return std::any_of(sections_.begin(), sections_.end(), [&](const SectionInfo& s) { return s.name == section; });
}

void Plan::check_digest(const SectionInfo& info, const Digest& found) const {
  if (found != info.sha256) {
    refuse(path_, "section " + info.name + ": expected SHA-256 " + hex(info.sha256) + ", got " + hex(found) +
                      ": the file is damaged");
  }
}

std::vector<uint8_t> Plan::read(const std::string& section) const {
  const SectionInfo& info = find(section);
  std::vector<uint8_t> data;
  try {
    data.resize(info.bytes);
  } catch (const std::exception&) {
    refuse(path_, "section " + info.name + ": expected memory for " + std::to_string(info.bytes) + " bytes, got none");
  }
  read_or_refuse(fd_, path_, "section " + info.name, info.offset, data.data(), data.size());
  check_digest(info, sha256(data.data(), data.size()));
  return data;
}

void Plan::verify() const {
  std::vector<uint8_t> piece(kReadPiece);
  uint64_t end = kTableOffset + kEntryBytes * sections_.size() + manifest_.size();
  for (const SectionInfo& info : sections_) {
    const size_t padding = info.offset - end;
    read_or_refuse(fd_, path_, "padding before " + info.name, end, piece.data(), padding);
    if (!all_zero(piece.data(), padding)) {
      refuse(path_, "padding before section " + info.name + ": expected zeros, got other bytes: the file is damaged");
    }
    Sha256 hash;
    for (uint64_t done = 0; done < info.bytes; done += kReadPiece) {
      const size_t n = std::min<uint64_t>(kReadPiece, info.bytes - done);
      read_or_refuse(fd_, path_, "section " + info.name, info.offset + done, piece.data(), n);
      hash.update(piece.data(), n);
    }
    check_digest(info, hash.finish());
    end = info.offset + info.bytes;
  }
}

void write_plan(const std::string& path, const std::string& manifest,
                const std::vector<std::pair<std::string, std::vector<uint8_t>>>& sections) {
  require_little_endian();
  if (sections.size() > kMaxSections) {
    refuse(path, "section count: expected at most " + std::to_string(kMaxSections) + ", got " +
                     std::to_string(sections.size()));
  }
  if (manifest.empty() || manifest.size() > kMaxManifestBytes) {
    refuse(path, "manifest bytes: expected 1 to " + std::to_string(kMaxManifestBytes) + ", got " +
                     std::to_string(manifest.size()));
  }
  std::vector<uint8_t> table(kEntryBytes * sections.size());
  const uint64_t manifest_offset = kTableOffset + table.size();
  std::set<std::string> names;
  uint64_t end = manifest_offset + manifest.size();
  for (size_t i = 0; i < sections.size(); ++i) {
    const auto& [name, data] = sections[i];
    if (!is_name(name) || !names.insert(name).second) {
      refuse(path, "section " + std::to_string(i) + " name: expected 1 to 63 printable ASCII characters, unique, got \"" +
                       printable(reinterpret_cast<const uint8_t*>(name.data()), std::min<size_t>(name.size(), 80)) + "\"");
    }
    uint8_t* entry = table.data() + i * kEntryBytes;
    const Digest digest = sha256(data.data(), data.size());
    std::copy(name.begin(), name.end(), entry);
    store<uint64_t>(entry + 64, align_up(end));
    store<uint64_t>(entry + 72, data.size());
    std::copy(digest.begin(), digest.end(), entry + 80);
    end = align_up(end) + data.size();
  }
  std::vector<uint8_t> head(kTableOffset);
  std::copy(kMagic, kMagic + 8, head.data());
  store<uint32_t>(&head[8], kPlanFormat);
  store<uint32_t>(&head[12], kHeaderBytes);
  store<uint64_t>(&head[16], end);
  store<uint64_t>(&head[24], manifest_offset);
  store<uint64_t>(&head[32], manifest.size());
  store<uint64_t>(&head[40], kTableOffset);
  store<uint32_t>(&head[48], static_cast<uint32_t>(sections.size()));
  const Digest digest = metadata_digest(head.data(), reinterpret_cast<const uint8_t*>(manifest.data()), manifest.size(),
                                        table.data(), table.size());
  std::copy(digest.begin(), digest.end(), head.begin() + kHeaderBytes);

  TemporaryFile file(path);
  std::string why;
  uint64_t written = 0;
  const auto check = [&](bool ok) {
    if (!ok) throw Error(Code::kPlan, "path: " + path + ": " + why);
  };
  const auto put = [&](const void* data, size_t bytes) {
    check(file.write(data, bytes, &why));
    written += bytes;
  };
  const uint8_t zeros[kAlign] = {};
  check(file.open(&why));
  put(head.data(), head.size());
  put(table.data(), table.size());
  put(manifest.data(), manifest.size());
  for (const auto& section : sections) {
    put(zeros, align_up(written) - written);
    put(section.second.data(), section.second.size());
  }
  check(file.commit(&why));
}

}  // namespace ddpm_rt
