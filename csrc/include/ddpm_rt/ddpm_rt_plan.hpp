// Plan files for C++17: the part of ddpm_rt.hpp that reads and writes them, which includes it.
#ifndef DDPM_RT_DDPM_RT_PLAN_HPP_
#define DDPM_RT_DDPM_RT_PLAN_HPP_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ddpm_rt.hpp"

namespace ddpm_rt {
inline namespace v0 {

class Plan {
 public:
  explicit Plan(const std::string& path) {
    ddpm_rt_plan* plan = nullptr;
    check(ddpm_rt_plan_open(path.c_str(), &plan));
    handle_.reset(plan);
  }
  struct Section {
    std::string name, sha256;
    std::uint64_t offset, bytes;
  };
  std::string manifest() const { return ddpm_rt_plan_manifest(handle_.get()); }
  std::vector<Section> sections() const {
    std::vector<Section> all;
    for (std::size_t i = 0; i < ddpm_rt_plan_section_count(handle_.get()); ++i) {
      const char* name = nullptr;
      char sha256[65] = {};
      Section s{};
      check(ddpm_rt_plan_section_info(handle_.get(), i, &name, &s.offset, &s.bytes, sha256));
      s.name = name;
      s.sha256 = sha256;
      all.push_back(std::move(s));
    }
    return all;
  }
  std::vector<unsigned char> read(const std::string& name) const {
    std::uint64_t bytes = 0;  // stays 0 for an unknown name, which the library then names in its error
    for (const Section& s : sections()) {
      if (s.name == name) bytes = s.bytes;
    }
    std::vector<unsigned char> data(static_cast<std::size_t>(bytes));
    check(ddpm_rt_plan_section_read(handle_.get(), name.c_str(), data.data(), data.size()));
    return data;
  }
  void verify() const { check(ddpm_rt_plan_verify(handle_.get())); }

 private:
  struct Release { void operator()(ddpm_rt_plan* plan) const { ddpm_rt_plan_release(plan); } };
  std::unique_ptr<ddpm_rt_plan, Release> handle_;
};

class PlanWriter {
 public:
  PlanWriter() {
    ddpm_rt_plan_writer* writer = nullptr;
    check(ddpm_rt_plan_writer_create(&writer));
    handle_.reset(writer);
  }
  void add(const std::string& name, const void* data, std::size_t bytes) {
    check(ddpm_rt_plan_writer_add(handle_.get(), name.c_str(), data, bytes));
  }
  void finish(const std::string& manifest, const std::string& path) {
    check(ddpm_rt_plan_writer_finish(handle_.get(), manifest.c_str(), path.c_str()));
  }

 private:
  struct Release { void operator()(ddpm_rt_plan_writer* writer) const { ddpm_rt_plan_writer_release(writer); } };
  std::unique_ptr<ddpm_rt_plan_writer, Release> handle_;
};

}  // namespace v0
}  // namespace ddpm_rt

#endif  // DDPM_RT_DDPM_RT_PLAN_HPP_
