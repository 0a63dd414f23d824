// C API: texts, the table of options, plan files. Engines are in capi_engine.cpp, the pieces in capi_pieces.cpp.
#include "capi_edge.h"

#include <utility>
#include <vector>

#include "options.h"
#include "plan.h"
#include "spec.h"

namespace {

thread_local std::string last_error;

}  // namespace

namespace ddpm_rt {

ddpm_rt_status set_last_error(ddpm_rt_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

}  // namespace ddpm_rt

using ddpm_rt::expect_given;
using ddpm_rt::guarded;

struct ddpm_rt_plan {
  std::shared_ptr<const ddpm_rt::Plan> plan;
};
struct ddpm_rt_plan_writer {
  std::vector<std::pair<std::string, std::vector<uint8_t>>> sections;
};

extern "C" {

const char* ddpm_rt_version(void) { return DDPM_RT_VERSION; }
const char* ddpm_rt_last_error(void) { return last_error.c_str(); }
const char* ddpm_rt_string_data(const ddpm_rt_string* s) { return s != nullptr ? s->text.c_str() : ""; }
void ddpm_rt_string_release(ddpm_rt_string* s) { delete s; }

size_t ddpm_rt_option_count(void) { return ddpm_rt::option_table().size(); }

const ddpm_rt_option_info* ddpm_rt_option_at(size_t index) {
  static const std::vector<ddpm_rt_option_info> kTable = [] {
    std::vector<ddpm_rt_option_info> table;
    for (const ddpm_rt::OptionInfo& o : ddpm_rt::option_table()) {
      table.push_back({o.name, o.aliases, o.type, o.range, o.default_value, o.scope, o.help});
    }
    return table;
  }();
  return index < kTable.size() ? &kTable[index] : nullptr;
}

ddpm_rt_status ddpm_rt_plan_open(const char* path, ddpm_rt_plan** plan) {
  return guarded([&] {
    expect_given(plan, "plan");
    *plan = nullptr;
    expect_given(path, "path");
    *plan = new ddpm_rt_plan{ddpm_rt::Plan::open(path)};
    return DDPM_RT_OK;
  });
}

void ddpm_rt_plan_release(ddpm_rt_plan* plan) { delete plan; }

const char* ddpm_rt_plan_manifest(const ddpm_rt_plan* plan) { return plan != nullptr ? plan->plan->manifest().c_str() : ""; }

size_t ddpm_rt_plan_section_count(const ddpm_rt_plan* plan) { return plan != nullptr ? plan->plan->sections().size() : 0; }

ddpm_rt_status ddpm_rt_plan_section_info(const ddpm_rt_plan* plan, size_t index, const char** name, uint64_t* offset,
                                         uint64_t* bytes, char* sha256_hex) {
  return guarded([&] {
    expect_given(plan, "plan");
    const auto& sections = plan->plan->sections();
    if (index >= sections.size()) {
      throw ddpm_rt::Error(ddpm_rt::Code::kOption, "index: expected less than " + std::to_string(sections.size()) +
                                                       " sections, got " + std::to_string(index));
    }
    const ddpm_rt::SectionInfo& section = sections[index];
    if (name != nullptr) *name = section.name.c_str();
    if (offset != nullptr) *offset = section.offset;
    if (bytes != nullptr) *bytes = section.bytes;
    if (sha256_hex != nullptr) std::memcpy(sha256_hex, ddpm_rt::hex(section.sha256).c_str(), 65);
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_plan_section_read(const ddpm_rt_plan* plan, const char* name, void* out, size_t bytes) {
  return guarded([&] {
    expect_given(plan, "plan");
    expect_given(name, "name");
    const std::vector<uint8_t> data = plan->plan->read(name);
    if (data.size() != bytes) {
      throw ddpm_rt::Error(ddpm_rt::Code::kShape, "bytes: expected " + std::to_string(data.size()) + " for section " + name +
                                                      ", got " + std::to_string(bytes));
    }
    if (bytes > 0) {
      expect_given(out, "out");
      std::memcpy(out, data.data(), bytes);
    }
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_plan_verify(const ddpm_rt_plan* plan) {
  return guarded([&] {
    expect_given(plan, "plan");
    plan->plan->verify();
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_plan_writer_create(ddpm_rt_plan_writer** writer) {
  return guarded([&] {
    expect_given(writer, "writer");
    *writer = new ddpm_rt_plan_writer;
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_plan_writer_add(ddpm_rt_plan_writer* writer, const char* name, const void* data, size_t bytes) {
  return guarded([&] {
    expect_given(writer, "writer");
    expect_given(name, "name");
    if (bytes > 0) expect_given(data, "data");
    const uint8_t* from = static_cast<const uint8_t*>(data);
    writer->sections.emplace_back(name, bytes > 0 ? std::vector<uint8_t>(from, from + bytes) : std::vector<uint8_t>());
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_plan_writer_finish(ddpm_rt_plan_writer* writer, const char* manifest_json, const char* path) {
  return guarded([&] {
    expect_given(writer, "writer");
    expect_given(manifest_json, "manifest_json");
    expect_given(path, "path");
    ddpm_rt::check_manifest(manifest_json, writer->sections);
    ddpm_rt::write_plan(path, manifest_json, writer->sections);
    return DDPM_RT_OK;
  });
}

void ddpm_rt_plan_writer_release(ddpm_rt_plan_writer* writer) { delete writer; }

}  // extern "C"
