// C API: the step and guidance kernels on a device, for a loop of the host's own.
#include <string>

#include "capi_edge.h"
#include "capi_step_checks.h"
#include "engine.h"
#include "gpu_kernels.h"

using ddpm_rt::Code;
using ddpm_rt::Error;
using ddpm_rt::expect_given;
using ddpm_rt::guarded;

struct ddpm_rt_device_kernels {
  ddpm_rt::DeviceKernels kernels;
};

namespace {

constexpr size_t kMostSamples = 65535, kMostElements = 0x7FFFFFFF;  // step_gpu.h

ddpm_rt::GpuType type_of(int32_t type, const char* field) {
  if (type >= 0 && type <= 2) return static_cast<ddpm_rt::GpuType>(type);
  throw Error(Code::kOption, std::string(field) + ": expected 0 (float32), 1 (float16) or 2 (bfloat16), got " + std::to_string(type));
}

void expect_sizes(size_t count, size_t elements) {
  ddpm_rt::expect_count(count, elements);
  if (count <= kMostSamples && elements <= kMostElements) return;
  throw Error(Code::kShape, "count: expected at most 65535 samples of fewer than 2^31 elements, got " + std::to_string(count) +
                                " x " + std::to_string(elements));
}

}  // namespace

extern "C" {

void ddpm_rt_device_step_call_init(ddpm_rt_device_step_call* call, size_t struct_size) {
  ddpm_rt_device_step_call full{};
  full.scale = 1;
  ddpm_rt::write_struct(full, call, struct_size);
}

ddpm_rt_status ddpm_rt_device_kernels_open(const char* device, const char* cuda_library, ddpm_rt_device_kernels** kernels) {
  return guarded([&] {
    expect_given(kernels, "kernels");
    *kernels = nullptr;
    expect_given(device, "device");
    *kernels = new ddpm_rt_device_kernels{
        ddpm_rt::DeviceKernels(ddpm_rt::open_named(device, cuda_library != nullptr ? cuda_library : ""))};
    return DDPM_RT_OK;
  });
}

void ddpm_rt_device_kernels_release(ddpm_rt_device_kernels* kernels) { delete kernels; }

ddpm_rt_status ddpm_rt_device_step(ddpm_rt_device_kernels* kernels, const ddpm_rt_device_step_call* given) {
  return guarded([&] {
    expect_given(kernels, "kernels");
    expect_given(given, "call");
    ddpm_rt::DeviceStep step{};
    step.call = ddpm_rt::read_struct(given, "call", &ddpm_rt_device_step_call_init);
    const ddpm_rt_device_step_call& call = step.call;
    if (call.count == 0) return DDPM_RT_OK;
    if (call.channels == 0 || call.pixels > kMostElements / call.channels) {
      throw Error(Code::kShape, "channels: expected 1 or more and fewer than 2^31 elements, got " + std::to_string(call.channels) +
                                    " x " + std::to_string(call.pixels));
    }
    expect_sizes(call.count, call.channels * call.pixels);
    expect_given(call.x, "x");
    expect_given(call.row, "row");
    expect_given(call.stream, "stream");
    type_of(call.eps_type, "eps_type");
    step.row = ddpm_rt::read_row(call.row, "row");
    step.has_next = call.next_row != nullptr && !(step.row.flags & ddpm_rt::kLast);
    if (step.has_next) step.next = ddpm_rt::read_row(call.next_row, "next_row");
    ddpm_rt::expect_next(step.row, call.next_row, call.in, call.ring);
    ddpm_rt::finite_scale(call.scale, "scale");
    step.operands = ddpm_rt::read_struct(call.operands, "operands", &ddpm_rt_step_operands_init);
    ddpm_rt::finite_scale(step.operands.scale2, "operands.scale2");
    ddpm_rt::expect_operands(step.row, {call.eps, call.seeds, call.history, call.anchor}, step.operands);
    kernels->kernels.step(step);
    return DDPM_RT_OK;
  });
}

ddpm_rt_status ddpm_rt_device_cfg_combine(ddpm_rt_device_kernels* kernels, const void* cond, const void* uncond,
                                          const float* scale, double rescale, int32_t type, size_t count, size_t elements,
                                          void* out, void* stream) {
  return guarded([&] {
    expect_given(kernels, "kernels");
    if (count == 0) return DDPM_RT_OK;
    expect_sizes(count, elements);
    expect_given(cond, "cond");
    expect_given(uncond, "uncond");
    expect_given(scale, "scale");
    expect_given(out, "out");
    expect_given(stream, "stream");
    const ddpm_rt::GpuType checked = type_of(type, "type");
    const float phi = ddpm_rt::rescale_share(rescale);
    kernels->kernels.cfg_combine(cond, uncond, scale, phi, checked, static_cast<uint32_t>(count), elements, out, stream);
    return DDPM_RT_OK;
  });
}

}  // extern "C"
