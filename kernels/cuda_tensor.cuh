// Reading and writing what step_gpu.h lays out: elements of any type and layout, four at a time where memory allows.
#ifndef DDPM_RT_KERNELS_CUDA_TENSOR_CUH_
#define DDPM_RT_KERNELS_CUDA_TENSOR_CUH_

#include "float16.h"
#include "step_gpu.h"

#define DDPM_RT_DEVICE __device__ __forceinline__
// Where a loop that stays a loop would index registers at run time, and so put them in memory.
#if defined(__CUDACC__)
#define DDPM_RT_UNROLL _Pragma("unroll")
#else
#define DDPM_RT_UNROLL
#endif

namespace ddpm_rt {

constexpr uint32_t kBlock = 256;  // threads of every kernel

DDPM_RT_DEVICE float load_element(const GpuTensor& tensor, uint64_t index) {
  if (tensor.type == kGpuF32) return static_cast<const float*>(tensor.data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(tensor.data)[index];
  return tensor.type == kGpuF16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

DDPM_RT_DEVICE void store_element(const GpuTensor& tensor, uint64_t index, float value) {
  if (tensor.type == kGpuF32) {
    static_cast<float*>(tensor.data)[index] = value;
  } else {
    static_cast<uint16_t*>(tensor.data)[index] = tensor.type == kGpuF16 ? float_to_half(value) : float_to_bfloat16(value);
  }
}

// Where element `at` (canonical) of a place is.
DDPM_RT_DEVICE uint64_t element_index(const GpuTensor& tensor, uint32_t pixels, int32_t place, uint32_t at) {
  const uint64_t base = static_cast<uint64_t>(place) * tensor.row;
  if (tensor.layout == kGpuNchw) return base + at;
  const uint32_t channel = at / pixels;
  return base + static_cast<uint64_t>(at - channel * pixels) * tensor.channels + channel;
}

// Four neighbours as they are in memory: decoded only when needed, so that all loads of a thread are under way first.
struct RawFour {
  uint32_t word[4];
};

DDPM_RT_DEVICE RawFour load_raw(const GpuTensor& tensor, uint64_t index) {
  RawFour raw;
  if (tensor.type == kGpuF32) {
    const uint4 bits = *reinterpret_cast<const uint4*>(static_cast<const float*>(tensor.data) + index);
    raw = {{bits.x, bits.y, bits.z, bits.w}};
  } else {
    const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(tensor.data) + index);
    raw = {{bits.x, bits.y, 0, 0}};
  }
  return raw;
}

DDPM_RT_DEVICE uint16_t half_of(const RawFour& raw, int m) { return static_cast<uint16_t>(raw.word[m / 2] >> (16 * (m % 2))); }

DDPM_RT_DEVICE void decode(const RawFour& raw, GpuType type, float (&values)[4]) {
  if (type == kGpuF32) {
    for (int m = 0; m < 4; ++m) values[m] = bits_float(raw.word[m]);
  } else if (type == kGpuF16) {
    for (int m = 0; m < 4; ++m) values[m] = half_to_float(half_of(raw, m));
  } else {
    for (int m = 0; m < 4; ++m) values[m] = bfloat16_to_float(half_of(raw, m));
  }
}

DDPM_RT_DEVICE void store_four(const GpuTensor& tensor, uint64_t index, const float (&values)[4]) {
  if (tensor.type == kGpuF32) {
    *reinterpret_cast<uint4*>(static_cast<float*>(tensor.data) + index) = {float_bits(values[0]), float_bits(values[1]),
                                                                          float_bits(values[2]), float_bits(values[3])};
    return;
  }
  const bool is_half = tensor.type == kGpuF16;
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(tensor.data) + index) = {
      is_half ? floats_to_halves(values[0], values[1]) : floats_to_bfloat16s(values[0], values[1]),
      is_half ? floats_to_halves(values[2], values[3]) : floats_to_bfloat16s(values[2], values[3])};
}

// How a thread's share of a sample lies in the lists. A share is kFours runs of four canonical elements, each run one
// Philox block; in the lists it is kFours runs of four neighbours too, `channel` and `pixel` of which the share's element
// (run j, m-th) is. Launchers choose the access that alignment and layout allow (step_cuda.cu, access_of).
struct PlanarAccess {  // NCHW, N and all rows multiples of four
  static constexpr int kFours = 1;
  static constexpr bool kIsVector = true;
  static __host__ __device__ uint32_t shares(const GpuLane& lane) { return lane.channels * lane.pixels / 4; }
  static DDPM_RT_DEVICE uint32_t canonical(const GpuLane&, uint32_t share, int) { return 4 * share; }
  static DDPM_RT_DEVICE uint64_t index(const GpuLane&, const GpuTensor&, uint32_t share, int) { return 4 * share; }
  static constexpr __host__ __device__ int run_of(int, int) { return 0; }
  static constexpr __host__ __device__ int place_in_run(int, int m) { return m; }
};

struct PixelsOfThree {  // NHWC, three channels, a multiple of four pixels: four pixels per thread
  static constexpr int kFours = 3;
  static constexpr bool kIsVector = true;
  static __host__ __device__ uint32_t shares(const GpuLane& lane) { return lane.pixels / 4; }
  static DDPM_RT_DEVICE uint32_t canonical(const GpuLane& lane, uint32_t share, int run) { return run * lane.pixels + 4 * share; }
  static DDPM_RT_DEVICE uint64_t index(const GpuLane&, const GpuTensor&, uint32_t share, int j) { return 12 * share + 4 * j; }
  static constexpr __host__ __device__ int run_of(int j, int m) { return (4 * j + m) % 3; }
  static constexpr __host__ __device__ int place_in_run(int j, int m) { return (4 * j + m) / 3; }
};

struct PixelsOfFours {  // NHWC, channels a multiple of four: four pixels by four channels per thread, channels fastest
  static constexpr int kFours = 4;
  static constexpr bool kIsVector = true;
  static __host__ __device__ uint32_t shares(const GpuLane& lane) { return lane.pixels / 4 * (lane.channels / 4); }
  static DDPM_RT_DEVICE uint32_t canonical(const GpuLane& lane, uint32_t share, int run) {
    const uint32_t groups = lane.channels / 4, quad = share / groups;
    return (4 * (share - quad * groups) + run) * lane.pixels + 4 * quad;
  }
  static DDPM_RT_DEVICE uint64_t index(const GpuLane& lane, const GpuTensor& tensor, uint32_t share, int j) {
    const uint32_t groups = lane.channels / 4, quad = share / groups;
    return static_cast<uint64_t>(4 * quad + j) * tensor.channels + 4 * (share - quad * groups);
  }
  static constexpr __host__ __device__ int run_of(int, int m) { return m; }
  static constexpr __host__ __device__ int place_in_run(int j, int) { return j; }
};

struct ElementAccess {  // anything: element by element, four canonical neighbours per thread
  static constexpr int kFours = 1;
  static constexpr bool kIsVector = false;
  static __host__ __device__ uint32_t shares(const GpuLane& lane) { return (lane.channels * lane.pixels + 3) / 4; }
  static DDPM_RT_DEVICE uint32_t canonical(const GpuLane&, uint32_t share, int) { return 4 * share; }
};

// A thread's share of one place of a list.
template <typename Access>
struct Share {
  RawFour raw[Access::kFours] = {};

  DDPM_RT_DEVICE void load(const GpuLane& lane, const GpuTensor& tensor, int32_t place, uint32_t share) {
    if constexpr (Access::kIsVector) {
      const uint64_t base = static_cast<uint64_t>(place) * tensor.row;
      for (int j = 0; j < Access::kFours; ++j) raw[j] = load_raw(tensor, base + Access::index(lane, tensor, share, j));
    } else {
      const uint32_t at = 4 * share, n = lane.channels * lane.pixels;
      for (uint32_t m = 0; m < 4; ++m) {
        raw[0].word[m] = at + m < n ? float_bits(load_element(tensor, element_index(tensor, lane.pixels, place, at + m))) : 0;
      }
    }
  }

  DDPM_RT_DEVICE void decode_into(const GpuTensor& tensor, float (&values)[Access::kFours][4]) const {
    if constexpr (Access::kIsVector) {
      for (int j = 0; j < Access::kFours; ++j) {
        float four[4];
        decode(raw[j], tensor.type, four);
        for (int m = 0; m < 4; ++m) values[Access::run_of(j, m)][Access::place_in_run(j, m)] = four[m];
      }
    } else {
      for (int m = 0; m < 4; ++m) values[0][m] = bits_float(raw[0].word[m]);
    }
  }
};

template <typename Access>
DDPM_RT_DEVICE void store_share(const GpuLane& lane, const GpuTensor& tensor, int32_t place, uint32_t share,
                                const float (&values)[Access::kFours][4]) {
  if constexpr (Access::kIsVector) {
    const uint64_t base = static_cast<uint64_t>(place) * tensor.row;
    for (int j = 0; j < Access::kFours; ++j) {
      float four[4];
      for (int m = 0; m < 4; ++m) four[m] = values[Access::run_of(j, m)][Access::place_in_run(j, m)];
      store_four(tensor, base + Access::index(lane, tensor, share, j), four);
    }
  } else {
    const uint32_t at = 4 * share, n = lane.channels * lane.pixels;
    for (uint32_t m = 0; m < 4 && at + m < n; ++m) {
      store_element(tensor, element_index(tensor, lane.pixels, place, at + m), values[0][m]);
    }
  }
}

// Four canonical elements of a register or an operand; past the sample's end +0.
template <bool kIsVector>
DDPM_RT_DEVICE void load_canonical(const float* from, uint32_t at, uint32_t n, float (&values)[4]) {
  if constexpr (kIsVector) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from + at);
    values[0] = bits_float(bits.x);
    values[1] = bits_float(bits.y);
    values[2] = bits_float(bits.z);
    values[3] = bits_float(bits.w);
  } else {
    for (uint32_t m = 0; m < 4; ++m) values[m] = at + m < n ? from[at + m] : 0.0f;
  }
}

template <bool kIsVector>
DDPM_RT_DEVICE void store_canonical(float* to, uint32_t at, uint32_t n, const float (&values)[4]) {
  if constexpr (kIsVector) {
    *reinterpret_cast<uint4*>(to + at) = {float_bits(values[0]), float_bits(values[1]), float_bits(values[2]),
                                          float_bits(values[3])};
  } else {
    for (uint32_t m = 0; m < 4 && at + m < n; ++m) to[at + m] = values[m];
  }
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_CUDA_TENSOR_CUH_
