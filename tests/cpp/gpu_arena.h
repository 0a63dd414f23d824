// Memory for the tests of the GPU kernels: one block on the device and its twin on the host, so that a test writes the
// twin, uploads, launches, downloads, and compares every byte that the kernels may or may not have touched.
#ifndef DDPM_RT_TESTS_GPU_ARENA_H_
#define DDPM_RT_TESTS_GPU_ARENA_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "float16.h"
#include "step_gpu.h"

namespace gpu_case {

// The emulation's memory is the host's; a real device copies.
struct Device {
  void* (*allocate)(size_t bytes);
  void (*release)(void* memory);
  void (*upload)(void* device, const void* host, size_t bytes);
  void (*download)(void* host, const void* device, size_t bytes);  // after everything launched so far
};

template <typename T>
struct Array {
  T* host = nullptr;
  T* device = nullptr;
  size_t size = 0;
  T& operator[](size_t i) const { return host[i]; }
};

class Arena {
 public:
  static constexpr uint8_t kPoison = 0xFF;  // NaN in every type, -1 in every place

  Arena(const Device& device, size_t bytes)
      : device_(device), twin_(bytes, kPoison), memory_(static_cast<uint8_t*>(device.allocate(bytes))) {}
  ~Arena() { device_.release(memory_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Poisoned, and followed by poison. `shift` elements off the alignment of 256 bytes.
  template <typename T>
  Array<T> take(size_t size, size_t shift = 0) {
    used_ = (used_ + 255) / 256 * 256;
    const size_t at = used_ + shift * sizeof(T);
    used_ = at + size * sizeof(T) + 64;
    if (used_ > twin_.size()) {
      std::fprintf(stderr, "gpu_case: an arena of %zu bytes is too small\n", twin_.size());
      std::abort();
    }
    return {reinterpret_cast<T*>(twin_.data() + at), reinterpret_cast<T*>(memory_ + at), size};
  }

  void upload() { device_.upload(memory_, twin_.data(), used_); }
  std::vector<uint8_t> download() const {
    std::vector<uint8_t> bytes(used_);
    device_.download(bytes.data(), memory_, used_);
    return bytes;
  }
  // The twin takes what the device has.
  void pull() { device_.download(twin_.data(), memory_, used_); }
  // The first `bytes` of the device's memory become what they were.
  void restore(const std::vector<uint8_t>& before, size_t bytes) { device_.upload(memory_, before.data(), bytes); }
  const uint8_t* twin() const { return twin_.data(); }
  size_t used() const { return used_; }
  template <typename T>
  size_t offset(const Array<T>& array) const {
    return static_cast<size_t>(reinterpret_cast<const uint8_t*>(array.host) - twin_.data());
  }

 private:
  const Device device_;
  std::vector<uint8_t> twin_;
  uint8_t* memory_;
  size_t used_ = 0;
};

// What a list of the type makes of a value.
inline float rounded(ddpm_rt::GpuType type, float value) {
  if (type == ddpm_rt::kGpuF32) return value;
  return type == ddpm_rt::kGpuF16 ? ddpm_rt::half_to_float(ddpm_rt::float_to_half(value))
                                  : ddpm_rt::bfloat16_to_float(ddpm_rt::float_to_bfloat16(value));
}

// A packed list on both sides.
struct List {
  ddpm_rt::GpuTensor tensor{};  // device addresses
  uint8_t* host = nullptr;

  static size_t bytes_of(ddpm_rt::GpuType type) { return type == ddpm_rt::kGpuF32 ? 4 : 2; }

  List() = default;
  List(Arena* arena, ddpm_rt::GpuType type, ddpm_rt::GpuLayout layout, uint32_t channels, uint32_t pixels, size_t capacity,
       size_t shift) {
    const size_t bytes = bytes_of(type), row = static_cast<size_t>(channels) * pixels;
    if (bytes == 4) {
      const Array<uint32_t> array = arena->take<uint32_t>(capacity * row, shift);
      host = reinterpret_cast<uint8_t*>(array.host);
      tensor.data = array.device;
    } else {
      const Array<uint16_t> array = arena->take<uint16_t>(capacity * row, shift);
      host = reinterpret_cast<uint8_t*>(array.host);
      tensor.data = array.device;
    }
    tensor.type = type;
    tensor.layout = layout;
    tensor.channels = channels;
    tensor.row = row;
  }

  // Without the device's functions: the index is written out once more.
  size_t index(int32_t place, uint32_t channel, uint32_t pixel, uint32_t pixels) const {
    const size_t within = tensor.layout == ddpm_rt::kGpuNchw ? static_cast<size_t>(channel) * pixels + pixel
                                                            : static_cast<size_t>(pixel) * tensor.channels + channel;
    return static_cast<size_t>(place) * tensor.row + within;
  }
  void write(size_t at, float value) const {
    if (tensor.type == ddpm_rt::kGpuF32) {
      reinterpret_cast<float*>(host)[at] = value;
    } else {
      reinterpret_cast<uint16_t*>(host)[at] =
          tensor.type == ddpm_rt::kGpuF16 ? ddpm_rt::float_to_half(value) : ddpm_rt::float_to_bfloat16(value);
    }
  }
  float read(size_t at) const {
    if (tensor.type == ddpm_rt::kGpuF32) return reinterpret_cast<const float*>(host)[at];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(host)[at];
    return tensor.type == ddpm_rt::kGpuF16 ? ddpm_rt::half_to_float(bits) : ddpm_rt::bfloat16_to_float(bits);
  }
  // The part of a list from another channel on, as the variance is of out.
  List from_channel(uint32_t channel, uint32_t pixels) const {
    List part = *this;
    const size_t bytes = (tensor.layout == ddpm_rt::kGpuNchw ? static_cast<size_t>(channel) * pixels : channel) *
                         bytes_of(tensor.type);
    part.host = host + bytes;
    part.tensor.data = static_cast<uint8_t*>(tensor.data) + bytes;
    return part;
  }
};

}  // namespace gpu_case

#endif  // DDPM_RT_TESTS_GPU_ARENA_H_
