// The part of OpenVINO's C API that the denoiser uses, resolved at run time. The C API keeps its signatures from one
// release to the next (one binary ran on 2024.6 to 2026.4); the numbers of element types changed, so none is spelled
// here.
#ifndef DDPM_RT_DENOISERS_OPENVINO_API_H_
#define DDPM_RT_DENOISERS_OPENVINO_API_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "dynamic_library.h"
#include "error.h"

namespace ddpm_rt {
namespace openvino {

struct Core;
struct Model;
struct Compiled;
struct Request;
struct Tensor;
struct Port;

using Status = int;       // 0: fine
using ElementType = int;  // opaque: only ever handed back
struct Version {
  const char* build;
  const char* description;
};
struct Shape {
  int64_t rank;
  int64_t* dims;
};
struct Dimension {
  int64_t min, max;
};
struct PartialShape {
  Dimension rank;
  Dimension* dims;
};

struct Api {
  Status (*get_version)(Version*);
  void (*version_free)(Version*);
  const char* (*get_error_info)(Status);
  const char* (*get_last_err_msg)();  // null before 2024; the text is a copy that `free` takes
  void (*free)(const char*);

  Status (*core_create)(Core**);
  void (*core_free)(Core*);
  Status (*core_get_property)(const Core*, const char* device, const char* key, char** value);
  Status (*core_read_model_from_memory_buffer)(const Core*, const char* model, size_t bytes, const Tensor* weights,
                                               Model**);
  // `count` counts keys and values; all are const char*.
  Status (*core_compile_model)(const Core*, const Model*, const char* device, size_t count, Compiled**, ...);

  void (*model_free)(Model*);
  Status (*model_inputs_size)(const Model*, size_t*);
  Status (*model_const_input_by_name)(const Model*, const char* name, Port**);
  Status (*model_const_output_by_name)(const Model*, const char* name, Port**);
  Status (*model_reshape)(const Model*, const char** names, const PartialShape*, size_t count);

  Status (*const_port_get_shape)(const Port*, Shape*);
  Status (*port_get_partial_shape)(const Port*, PartialShape*);
  void (*partial_shape_free)(PartialShape*);
  Status (*port_get_element_type)(const Port*, ElementType*);
  void (*output_const_port_free)(Port*);
  Status (*shape_free)(Shape*);

  void (*compiled_model_free)(Compiled*);
  Status (*compiled_model_get_property)(const Compiled*, const char* key, char** value);
  Status (*compiled_model_create_infer_request)(const Compiled*, Request**);

  void (*infer_request_free)(Request*);
  Status (*infer_request_set_tensor)(Request*, const char* name, const Tensor*);
  Status (*infer_request_infer)(Request*);
  Status (*infer_request_start_async)(Request*);
  Status (*infer_request_wait)(Request*);

  Status (*tensor_create)(ElementType, Shape, Tensor**);
  Status (*tensor_create_from_host_ptr)(ElementType, Shape, void*, Tensor**);
  Status (*tensor_get_byte_size)(const Tensor*, size_t*);
  void (*tensor_free)(Tensor*);
};

// Throws Error(kBackend) naming the first function that the library lacks.
inline Api resolve(const DynamicLibrary& library) {
  Api api{};
  const auto get = [&library](const char* name, auto& function, bool optional = false) {
    function = library.symbol<std::remove_pointer_t<std::remove_reference_t<decltype(function)>>>(name);
    if (function == nullptr && !optional) {
      throw Error(Code::kBackend, std::string("openvino: expected a library with ") + name + ", got one without");
    }
  };
  get("ov_get_openvino_version", api.get_version);
  get("ov_version_free", api.version_free);
  get("ov_get_error_info", api.get_error_info);
  get("ov_get_last_err_msg", api.get_last_err_msg, true);
  get("ov_free", api.free);
  get("ov_core_create", api.core_create);
  get("ov_core_free", api.core_free);
  get("ov_core_get_property", api.core_get_property);
  get("ov_core_read_model_from_memory_buffer", api.core_read_model_from_memory_buffer);
  get("ov_core_compile_model", api.core_compile_model);
  get("ov_model_free", api.model_free);
  get("ov_model_inputs_size", api.model_inputs_size);
  get("ov_model_const_input_by_name", api.model_const_input_by_name);
  get("ov_model_const_output_by_name", api.model_const_output_by_name);
  get("ov_model_reshape", api.model_reshape);
  get("ov_const_port_get_shape", api.const_port_get_shape);
  get("ov_port_get_partial_shape", api.port_get_partial_shape);
  get("ov_partial_shape_free", api.partial_shape_free);
  get("ov_port_get_element_type", api.port_get_element_type);
  get("ov_output_const_port_free", api.output_const_port_free);
  get("ov_shape_free", api.shape_free);
  get("ov_compiled_model_free", api.compiled_model_free);
  get("ov_compiled_model_get_property", api.compiled_model_get_property);
  get("ov_compiled_model_create_infer_request", api.compiled_model_create_infer_request);
  get("ov_infer_request_free", api.infer_request_free);
  get("ov_infer_request_set_tensor", api.infer_request_set_tensor);
  get("ov_infer_request_infer", api.infer_request_infer);
  get("ov_infer_request_start_async", api.infer_request_start_async);
  get("ov_infer_request_wait", api.infer_request_wait);
  get("ov_tensor_create", api.tensor_create);
  get("ov_tensor_create_from_host_ptr", api.tensor_create_from_host_ptr);
  get("ov_tensor_get_byte_size", api.tensor_get_byte_size);
  get("ov_tensor_free", api.tensor_free);
  return api;
}

}  // namespace openvino
}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISERS_OPENVINO_API_H_
