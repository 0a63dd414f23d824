// The device as a table of C functions: all that the engine knows of CUDA. libddpm_rt_cuda.so provides it
// (device_cuda.cpp and kernels/step_cuda.cu); the tests have one whose streams are threads.
//
// Every function returns a cudaError_t as int: 0 is success. Streams, events and graphs are the runtime's own handles.
// Work on a stream is asynchronous; only functions called synchronize_* wait for the device. Host memory in an
// asynchronous copy is pinned. There is no default stream: a null stream is refused.
#ifndef DDPM_RT_DEVICE_API_H_
#define DDPM_RT_DEVICE_API_H_

#include <cstddef>
#include <cstdint>

#include "step_gpu.h"

namespace ddpm_rt {

constexpr uint32_t kDeviceApiVersion = 1;
constexpr const char* kDeviceApiSymbol = "ddpm_rt_device_api";

constexpr int kDeviceNotReady = 600;          // cudaErrorNotReady, of query_event
constexpr int kDeviceDriverTooOld = 35;       // cudaErrorInsufficientDriver: also where there is no driver at all
constexpr int kDeviceNone = 100;              // cudaErrorNoDevice

struct DeviceFacts {
  char name[256];
  int32_t major, minor;                       // compute capability
  int32_t multiprocessors;
  uint32_t is_host_memory;                    // 1: the host may read and write what the device allocates (emulated)
  uint64_t memory_bytes;
};

enum class DeviceCopy : int32_t { kToDevice, kToHost, kOnDevice };

// The structs of step_gpu.h as this translation unit has them: a library built from other sources is refused.
constexpr uint64_t device_layout() {
  constexpr uint64_t kSizes[] = {sizeof(StepRow), sizeof(GpuSlot),   sizeof(GpuLane),   sizeof(GpuNetwork), sizeof(GpuInstall),
                                 sizeof(GpuPadding), sizeof(GpuCopy), sizeof(GpuPacket), sizeof(GpuFinish),  sizeof(GpuMixture)};
  uint64_t mixed = 0;
  for (uint64_t size : kSizes) mixed = mixed * 1000003 + size;
  return mixed;
}

struct DeviceApi {
  uint32_t version, bytes;                    // kDeviceApiVersion, sizeof(DeviceApi)
  uint32_t row_version, rng_version;
  uint64_t layout;                            // device_layout()
  const char* name;                           // "cuda" or "emulated"

  const char* (*error_text)(int error);
  int (*versions)(int* driver, int* runtime);  // 13000 is 13.0; driver 0: none is installed
  int (*device_count)(int* count);
  int (*facts)(int device, DeviceFacts* facts);
  int (*current_device)(int* device);         // of the calling thread
  int (*set_device)(int device);
  int (*free_memory)(uint64_t* free_bytes, uint64_t* total_bytes);

  int (*allocate)(void** data, size_t bytes);
  int (*release)(void* data);                 // may wait for the device
  int (*allocate_pinned)(void** data, size_t bytes);  // readable and writable by the device under the same address
  int (*release_pinned)(void* data);
  int (*copy)(void* to, const void* from, size_t bytes, DeviceCopy kind, void* stream);
  int (*fill)(void* to, int byte, size_t bytes, void* stream);

  int (*create_stream)(void** stream);        // never waits for other streams of the process
  int (*destroy_stream)(void* stream);
  int (*synchronize_stream)(void* stream);
  int (*stream_wait)(void* stream, void* event);
  int (*create_event)(void** event, int is_timed);
  int (*destroy_event)(void* event);
  int (*record_event)(void* event, void* stream);
  int (*query_event)(void* event);            // 0: reached, kDeviceNotReady: not yet
  int (*synchronize_event)(void* event);
  int (*elapsed)(void* start, void* end, double* seconds);

  int (*begin_capture)(void* stream);         // of the calling thread only
  int (*end_capture)(void* stream, void** graph);  // ends the capture on failure too
  int (*add_child)(void* stream, void* graph);     // a capturing stream: another's graph becomes its next node, by copy
  int (*instantiate)(void** exec, void* graph);
  int (*launch_graph)(void* exec, void* stream);
  int (*destroy_graph)(void* graph);
  int (*destroy_exec)(void* exec);

  decltype(&gpu_scratch_bytes) scratch_bytes;
  decltype(&launch_step) step;
  decltype(&launch_advance) advance;
  decltype(&launch_apply) apply;
  decltype(&launch_finish) finish;
  decltype(&launch_normals) normals;
  decltype(&launch_cfg_combine) cfg_combine;
  decltype(&launch_gaussian_mixture) gaussian_mixture;
};

// Filled in one place for every library that provides it.
inline void fill_device_header(DeviceApi* api, const char* name) {
  api->version = kDeviceApiVersion;
  api->bytes = sizeof(DeviceApi);
  api->row_version = kRowVersion;
  api->rng_version = kRngVersion;
  api->layout = device_layout();
  api->name = name;
  api->scratch_bytes = &gpu_scratch_bytes;
  api->step = &launch_step;
  api->advance = &launch_advance;
  api->apply = &launch_apply;
  api->finish = &launch_finish;
  api->normals = &launch_normals;
  api->cfg_combine = &launch_cfg_combine;
  api->gaussian_mixture = &launch_gaussian_mixture;
}

using DeviceApiFn = const DeviceApi*();

}  // namespace ddpm_rt

#endif  // DDPM_RT_DEVICE_API_H_
