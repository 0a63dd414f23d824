// The part of ONNX Runtime's C API that the denoiser uses, by slot. The API is a table of function pointers whose slots
// never move (version 22 of it is asked for, and every later library serves that), so none of their headers is needed.
#ifndef DDPM_RT_DENOISERS_ONNXRUNTIME_API_H_
#define DDPM_RT_DENOISERS_ONNXRUNTIME_API_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(_WIN32) && !defined(_WIN64)
#define DDPM_RT_ORT_CALL __stdcall
#else
#define DDPM_RT_ORT_CALL
#endif

namespace ddpm_rt {
namespace ort {

struct Status;  // null: fine
struct Env;
struct Session;
struct SessionOptions;
struct MemoryInfo;
struct Value;
struct Binding;
struct Allocator;
struct RunOptions;
struct TypeInfo;
struct TensorInfo;

constexpr uint32_t kApiVersion = 22;
constexpr int kFloat = 1, kInt64 = 7;                    // ONNXTensorElementDataType
constexpr int kDeviceAllocator = 0, kDefaultMemory = 0;  // OrtAllocatorType, OrtMemType
constexpr int kLogFatal = 4;                             // OrtLoggingLevel

struct ApiBase {
  const void* const*(DDPM_RT_ORT_CALL* get_api)(uint32_t version);  // null: the library is older than the version
  const char*(DDPM_RT_ORT_CALL* version_string)();
};

struct Api {
  const char*(DDPM_RT_ORT_CALL* get_error_message)(const Status*);
  void(DDPM_RT_ORT_CALL* release_status)(Status*);

  Status*(DDPM_RT_ORT_CALL* create_env)(int log_level, const char* id, Env**);
  void(DDPM_RT_ORT_CALL* release_env)(Env*);
  Status*(DDPM_RT_ORT_CALL* create_session_options)(SessionOptions**);
  Status*(DDPM_RT_ORT_CALL* set_intra_op_num_threads)(SessionOptions*, int);
  void(DDPM_RT_ORT_CALL* release_session_options)(SessionOptions*);

  Status*(DDPM_RT_ORT_CALL* create_session_from_array)(const Env*, const void* model, size_t bytes,
                                                       const SessionOptions*, Session**);
  Status*(DDPM_RT_ORT_CALL* session_get_input_count)(const Session*, size_t*);
  Status*(DDPM_RT_ORT_CALL* session_get_output_count)(const Session*, size_t*);
  Status*(DDPM_RT_ORT_CALL* session_get_input_name)(const Session*, size_t, Allocator*, char**);
  Status*(DDPM_RT_ORT_CALL* session_get_output_name)(const Session*, size_t, Allocator*, char**);
  Status*(DDPM_RT_ORT_CALL* session_get_input_type_info)(const Session*, size_t, TypeInfo**);
  Status*(DDPM_RT_ORT_CALL* session_get_output_type_info)(const Session*, size_t, TypeInfo**);
  void(DDPM_RT_ORT_CALL* release_session)(Session*);

  Status*(DDPM_RT_ORT_CALL* cast_type_info_to_tensor_info)(const TypeInfo*, const TensorInfo**);  // null: no tensor
  Status*(DDPM_RT_ORT_CALL* get_tensor_element_type)(const TensorInfo*, int*);
  Status*(DDPM_RT_ORT_CALL* get_dimensions_count)(const TensorInfo*, size_t*);
  Status*(DDPM_RT_ORT_CALL* get_dimensions)(const TensorInfo*, int64_t*, size_t);  // -1: dynamic
  void(DDPM_RT_ORT_CALL* release_type_info)(TypeInfo*);

  Status*(DDPM_RT_ORT_CALL* get_allocator_with_default_options)(Allocator**);  // not ours to release
  Status*(DDPM_RT_ORT_CALL* allocator_free)(Allocator*, void*);
  Status*(DDPM_RT_ORT_CALL* create_cpu_memory_info)(int allocator_type, int memory_type, MemoryInfo**);
  void(DDPM_RT_ORT_CALL* release_memory_info)(MemoryInfo*);
  Status*(DDPM_RT_ORT_CALL* create_tensor_with_data)(const MemoryInfo*, void* data, size_t bytes, const int64_t* shape,
                                                     size_t rank, int element_type, Value**);
  void(DDPM_RT_ORT_CALL* release_value)(Value*);

  Status*(DDPM_RT_ORT_CALL* create_io_binding)(Session*, Binding**);
  Status*(DDPM_RT_ORT_CALL* bind_input)(Binding*, const char* name, const Value*);
  Status*(DDPM_RT_ORT_CALL* bind_output)(Binding*, const char* name, const Value*);
  Status*(DDPM_RT_ORT_CALL* run_with_binding)(Session*, const RunOptions*, const Binding*);
  void(DDPM_RT_ORT_CALL* release_io_binding)(Binding*);
};

inline Api resolve(const void* const* table) {
  Api api{};
  const auto get = [table](size_t slot, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(const_cast<void*>(table[slot]));
  };
  get(2, api.get_error_message);
  get(3, api.create_env);
  get(8, api.create_session_from_array);
  get(10, api.create_session_options);
  get(24, api.set_intra_op_num_threads);
  get(30, api.session_get_input_count);
  get(31, api.session_get_output_count);
  get(33, api.session_get_input_type_info);
  get(34, api.session_get_output_type_info);
  get(36, api.session_get_input_name);
  get(37, api.session_get_output_name);
  get(49, api.create_tensor_with_data);
  get(55, api.cast_type_info_to_tensor_info);
  get(60, api.get_tensor_element_type);
  get(61, api.get_dimensions_count);
  get(62, api.get_dimensions);
  get(69, api.create_cpu_memory_info);
  get(76, api.allocator_free);
  get(78, api.get_allocator_with_default_options);
  get(92, api.release_env);
  get(93, api.release_status);
  get(94, api.release_memory_info);
  get(95, api.release_session);
  get(96, api.release_value);
  get(98, api.release_type_info);
  get(100, api.release_session_options);
  get(133, api.run_with_binding);
  get(134, api.create_io_binding);
  get(135, api.release_io_binding);
  get(136, api.bind_input);
  get(137, api.bind_output);
  return api;
}

}  // namespace ort
}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISERS_ONNXRUNTIME_API_H_
