// Engines for the emulated TensorRT, plans that embed them, and the library's switches by name.
#ifndef DDPM_RT_TESTS_TENSORRT_CASE_H_
#define DDPM_RT_TESTS_TENSORRT_CASE_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "emulated.h"
#include "plan.h"
#include "schedule.h"
#include "sha256.h"

namespace tensorrt_case {

using ddpm_rt::DynamicLibrary;
using Bytes = std::vector<uint8_t>;

inline const DynamicLibrary& library() {
  static std::string why;
  static const DynamicLibrary opened = DynamicLibrary::open(DDPM_RT_EMULATED_TENSORRT, &why);
  static const bool is_connected = [] {
    using Enqueue = void(void*, void (*)(void*), void*);
    opened.symbol<void(Enqueue*)>("tensorrt_emulated_connect")(emulated::library().symbol<Enqueue>("ddpm_rt_emulated_enqueue"));
    return true;
  }();
  (void)is_connected;
  return opened;
}

inline void set(const char* name, int64_t value) {
  if (library().symbol<int(const char*, int64_t)>("tensorrt_emulated_set")(name, value) != 0) return;
  std::printf("the emulated TensorRT has no %s\n", name);
  std::abort();
}
inline int64_t get(const char* name) { return library().symbol<int64_t(const char*)>("tensorrt_emulated_get")(name); }

// A switch for the length of a test.
class Setting {
 public:
  Setting(const char* name, int64_t value) : name_(name), before_(get(name)) { set(name, value); }
  ~Setting() { set(name_, before_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
  int64_t before_;
};

inline Bytes engine_of(const std::string& lines) {
  std::string text = "vtrt" + std::string(60, '\0') + lines;
  return {text.begin(), text.end()};
}

inline Bytes bytes_of(const std::string& text) { return {text.begin(), text.end()}; }
inline std::string digest_of(const Bytes& data) { return ddpm_rt::hex(ddpm_rt::sha256(data.data(), data.size())); }

// One embedded engine: what its card says, and its bytes.
struct Embedded {
  std::string network, precision, source;
  Bytes engine;
  std::string library = "tensorrt_rtx", version = "1.7.1.116", capabilities = "[]";
};

constexpr int kShape = 10;  // elements of a sample; a row is no multiple of 256 bytes

// unet(x, rows) and temb(t, label) where `is_split`, else unet(x, t, label).
inline std::string write_case(const std::string& path, const std::vector<Embedded>& engines, bool is_split = false,
                              const std::string& kind = "onnx") {
  std::vector<std::pair<std::string, Bytes>> sections;
  std::string cards;
  const std::vector<double> alpha_bar = ddpm_rt::make_schedule("linear", 1000).alpha_bar;
  const uint8_t* raw = reinterpret_cast<const uint8_t*>(alpha_bar.data());
  sections.emplace_back("alpha_bar", Bytes(raw, raw + alpha_bar.size() * sizeof(double)));
  sections.emplace_back("unet.onnx", bytes_of("the denoiser"));
  sections.emplace_back("temb.onnx", bytes_of("the embedding"));
  for (const Embedded& e : engines) {
    const std::string section = "engine" + std::to_string(sections.size());
    sections.emplace_back(section, e.engine);
    cards += (cards.empty() ? "" : ",") + std::string(R"({"library":")") + e.library + R"(","version":")" + e.version +
             R"(","network":")" + e.network + R"(","precision":")" + e.precision + R"(","source":")" + e.source +
             R"(","capabilities":)" + e.capabilities + R"(,"section":")" + section + "\"}";
  }
  const std::string inputs = is_split ? R"({"x":"x","rows":"rows"})" : R"({"x":"x","t":"t","label":"label"})";
  const std::string temb = is_split ? R"(,"temb":{"kind":"onnx","section":"temb.onnx","inputs":{"t":"t","label":"label"},)"
                                      R"("outputs":{"rows":"rows"},"rows_width":4})"
                                    : "";
  const std::string manifest =
      R"({"format":1,"row_version":1,"rng_version":1,"name":"case","networks":{"unet":{"kind":")" + kind + R"(","section":")" +
      (kind == "onnx" ? "unet.onnx" : "engine3") + R"(","inputs":)" + inputs + R"(,"outputs":{"eps":"eps"}})" + temb +
      R"(},"stages":[{"kind":"diffusion","network":"unet")" + (is_split ? R"(,"temb":"temb")" : "") +
      R"(}],"conditions":{"label":{"role":"class","classes":3,"null":3}},"sample":{"shape":[10],"role":"vector"},)"
      R"("schedule":{"section":"alpha_bar","T":1000},"prediction":"eps",)"
      R"("defaults":{"sampler":"ddim","steps":8,"scale":2.0,"clip":"none"},"engines":[)" + cards + "]}";
  ddpm_rt::write_plan(path, manifest, sections);
  return path;
}

inline std::string unet_source() { return digest_of(bytes_of("the denoiser")); }
inline std::string temb_source() { return digest_of(bytes_of("the embedding")); }

inline std::string whole(const std::string& type, const std::string& profiles, const std::string& more = "") {
  return "in x " + type + " -1 10\nin t float32 -1\nin label int64 -1\nout eps " + type + " -1 10\n" + profiles + more;
}

}  // namespace tensorrt_case

#endif  // DDPM_RT_TESTS_TENSORRT_CASE_H_
