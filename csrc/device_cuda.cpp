// DeviceApi over the CUDA runtime: the only file that includes it. With kernels/step_cuda.cu this is libddpm_rt_cuda.so.
#include <cuda_runtime.h>

#include <cstring>

#include "device_api.h"

static_assert(CUDART_VERSION >= 12000, "expected the CUDA runtime 12.0 or later");
static_assert(ddpm_rt::kDeviceNotReady == cudaErrorNotReady, "step_gpu.h and device_api.h use CUDA's own numbers");
static_assert(ddpm_rt::kDeviceDriverTooOld == cudaErrorInsufficientDriver, "as above");
static_assert(ddpm_rt::kDeviceNone == cudaErrorNoDevice, "as above");

namespace ddpm_rt {
namespace {

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }
cudaGraph_t graph_of(void* graph) { return static_cast<cudaGraph_t>(graph); }
cudaGraphExec_t exec_of(void* exec) { return static_cast<cudaGraphExec_t>(exec); }

// The runtime keeps the last error of a call for the next one to find; ours have been told of it.
int told(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) cudaGetLastError();
  return static_cast<int>(error);
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int versions(int* driver, int* runtime) {
  *driver = *runtime = 0;
  const int error = told(cudaRuntimeGetVersion(runtime));
  return error != 0 ? error : told(cudaDriverGetVersion(driver));
}

int device_count(int* count) {
  *count = 0;
  return told(cudaGetDeviceCount(count));
}

int facts(int device, DeviceFacts* facts) {
  cudaDeviceProp properties;
  const int error = told(cudaGetDeviceProperties(&properties, device));
  if (error != 0) return error;
  *facts = DeviceFacts{};
  static_assert(sizeof properties.name == sizeof facts->name, "both are CUDA's 256 bytes");
  std::memcpy(facts->name, properties.name, sizeof facts->name);
  facts->name[sizeof facts->name - 1] = '\0';
  facts->major = properties.major;
  facts->minor = properties.minor;
  facts->multiprocessors = properties.multiProcessorCount;
  facts->memory_bytes = properties.totalGlobalMem;
  return 0;
}

int current_device(int* device) { return told(cudaGetDevice(device)); }
int set_device(int device) { return told(cudaSetDevice(device)); }

int free_memory(uint64_t* free_bytes, uint64_t* total_bytes) {
  size_t free_size = 0, total_size = 0;
  const int error = told(cudaMemGetInfo(&free_size, &total_size));
  *free_bytes = free_size;
  *total_bytes = total_size;
  return error;
}

int allocate(void** data, size_t bytes) { return told(cudaMalloc(data, bytes)); }
int release(void* data) { return told(cudaFree(data)); }
int allocate_pinned(void** data, size_t bytes) { return told(cudaHostAlloc(data, bytes, cudaHostAllocPortable)); }
int release_pinned(void* data) { return told(cudaFreeHost(data)); }

int copy(void* to, const void* from, size_t bytes, DeviceCopy kind, void* stream) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  const cudaMemcpyKind kinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice};
  return told(cudaMemcpyAsync(to, from, bytes, kinds[static_cast<int>(kind)], stream_of(stream)));
}

int fill(void* to, int byte, size_t bytes, void* stream) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return told(cudaMemsetAsync(to, byte, bytes, stream_of(stream)));
}

int create_stream(void** stream) {
  cudaStream_t made = nullptr;
  const int error = told(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
  *stream = made;
  return error;
}
int destroy_stream(void* stream) { return told(cudaStreamDestroy(stream_of(stream))); }
int synchronize_stream(void* stream) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return told(cudaStreamSynchronize(stream_of(stream)));
}
int stream_wait(void* stream, void* event) { return told(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0)); }

int create_event(void** event, int is_timed) {
  cudaEvent_t made = nullptr;
  const int error = told(cudaEventCreateWithFlags(&made, is_timed ? cudaEventDefault : cudaEventDisableTiming));
  *event = made;
  return error;
}
int destroy_event(void* event) { return told(cudaEventDestroy(event_of(event))); }
int record_event(void* event, void* stream) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return told(cudaEventRecord(event_of(event), stream_of(stream)));
}
int query_event(void* event) { return told(cudaEventQuery(event_of(event))); }
int synchronize_event(void* event) { return told(cudaEventSynchronize(event_of(event))); }
int elapsed(void* start, void* end, double* seconds) {
  float milliseconds = 0;
  const int error = told(cudaEventElapsedTime(&milliseconds, event_of(start), event_of(end)));
  *seconds = 1e-3 * static_cast<double>(milliseconds);
  return error;
}

// Thread-local: another thread of the process may allocate or wait meanwhile, as a framework beside us does.
int begin_capture(void* stream) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return told(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal));
}

int end_capture(void* stream, void** graph) {
  cudaGraph_t made = nullptr;
  const int error = told(cudaStreamEndCapture(stream_of(stream), &made));
  *graph = made;
  return error;
}

int add_child(void* stream, void* child) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  const cudaGraphNode_t* after = nullptr;
  size_t count = 0;
#if CUDART_VERSION >= 13000
  int error = told(cudaStreamGetCaptureInfo(stream_of(stream), &status, nullptr, &graph, &after, nullptr, &count));
#else
  int error = told(cudaStreamGetCaptureInfo_v2(stream_of(stream), &status, nullptr, &graph, &after, &count));
#endif
  if (error != 0) return error;
  if (status != cudaStreamCaptureStatusActive) return cudaErrorStreamCaptureInvalidated;
  cudaGraphNode_t node = nullptr;
  error = told(cudaGraphAddChildGraphNode(&node, graph, after, count, graph_of(child)));
  if (error != 0) return error;
#if CUDART_VERSION >= 13000
  return told(cudaStreamUpdateCaptureDependencies(stream_of(stream), &node, nullptr, 1, cudaStreamSetCaptureDependencies));
#else
  return told(cudaStreamUpdateCaptureDependencies(stream_of(stream), &node, 1, cudaStreamSetCaptureDependencies));
#endif
}

int instantiate(void** exec, void* graph) {
  cudaGraphExec_t made = nullptr;
  const int error = told(cudaGraphInstantiate(&made, graph_of(graph), 0));
  *exec = made;
  return error;
}
int launch_graph(void* exec, void* stream) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return told(cudaGraphLaunch(exec_of(exec), stream_of(stream)));
}
int destroy_graph(void* graph) { return told(cudaGraphDestroy(graph_of(graph))); }
int destroy_exec(void* exec) { return told(cudaGraphExecDestroy(exec_of(exec))); }

DeviceApi make_api() {
  DeviceApi api{};
  fill_device_header(&api, "cuda");
  api.error_text = &error_text;
  api.versions = &versions;
  api.device_count = &device_count;
  api.facts = &facts;
  api.current_device = &current_device;
  api.set_device = &set_device;
  api.free_memory = &free_memory;
  api.allocate = &allocate;
  api.release = &release;
  api.allocate_pinned = &allocate_pinned;
  api.release_pinned = &release_pinned;
  api.copy = &copy;
  api.fill = &fill;
  api.create_stream = &create_stream;
  api.destroy_stream = &destroy_stream;
  api.synchronize_stream = &synchronize_stream;
  api.stream_wait = &stream_wait;
  api.create_event = &create_event;
  api.destroy_event = &destroy_event;
  api.record_event = &record_event;
  api.query_event = &query_event;
  api.synchronize_event = &synchronize_event;
  api.elapsed = &elapsed;
  api.begin_capture = &begin_capture;
  api.end_capture = &end_capture;
  api.add_child = &add_child;
  api.instantiate = &instantiate;
  api.launch_graph = &launch_graph;
  api.destroy_graph = &destroy_graph;
  api.destroy_exec = &destroy_exec;
  return api;
}

}  // namespace
}  // namespace ddpm_rt

extern "C" __attribute__((visibility("default"))) const ddpm_rt::DeviceApi* ddpm_rt_device_api() {
  static const ddpm_rt::DeviceApi api = ddpm_rt::make_api();
  return &api;
}
