// The kernels on a device, over memory of any DLPack producer. ddpm_rt/kernels/_device.py checks shapes, dtypes and devices;
// here only what memory safety needs.
#include <pybind11/stl.h>

#include "bindings_options.h"

#include <memory>
#include <utility>

namespace {

// DLPack's unversioned structs (https://dmlc.github.io/dlpack, ABI 0.8): what a capsule named "dltensor" points to.
struct DlTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; null: C-contiguous
  uint64_t byte_offset;
};
struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

[[noreturn]] void refuse(ddpm_rt_status status, const std::string& message) { throw ddpm_rt::Exception(status, message); }

// Holds a producer's memory for as long as it lives.
class DeviceTensor {
 public:
  explicit DeviceTensor(const py::capsule& capsule) {
    if (std::string(capsule.name() != nullptr ? capsule.name() : "") != "dltensor") {
      refuse(DDPM_RT_SHAPE_ERROR, "__dlpack__: expected a capsule named dltensor that nobody has used");
    }
    owned_.reset(static_cast<DlManagedTensor*>(capsule.get_pointer()));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    PyCapsule_SetDestructor(capsule.ptr(), nullptr);
    const DlTensor& t = owned_->tensor;
    if (t.ndim < 0 || t.ndim > 32 || t.lanes != 1) refuse(DDPM_RT_SHAPE_ERROR, "__dlpack__: expected scalars in at most 32 dimensions");
    for (int32_t i = 0; i < t.ndim; ++i) shape_.push_back(t.shape[i]);
    strides_.resize(shape_.size());
    int64_t dense = 1;
    for (int32_t i = t.ndim - 1; i >= 0; --i) {
      strides_[i] = t.strides != nullptr ? t.strides[i] : dense;
      dense *= shape_[i];
    }
  }

  char* data() const { return static_cast<char*>(owned_->tensor.data) + owned_->tensor.byte_offset; }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data()); }
  std::vector<int64_t> shape() const { return shape_; }
  std::vector<int64_t> strides() const { return strides_; }
  std::pair<int, int> device() const { return {owned_->tensor.device_type, owned_->tensor.device_id}; }
  std::pair<int, int> dtype() const { return {owned_->tensor.code, owned_->tensor.bits}; }

 private:
  struct Delete {
    void operator()(DlManagedTensor* tensor) const {
      if (tensor->deleter != nullptr) tensor->deleter(tensor);
    }
  };
  std::unique_ptr<DlManagedTensor, Delete> owned_;
  std::vector<int64_t> shape_, strides_;
};

template <typename T>
T* memory(const DeviceTensor* tensor) {
  return tensor != nullptr ? reinterpret_cast<T*>(tensor->data()) : nullptr;
}

class Kernels {
 public:
  Kernels(const std::string& device, const std::string& library) {
    ddpm_rt_device_kernels* made = nullptr;
    ddpm_rt::check(unlocked([&] {
      return ddpm_rt_device_kernels_open(device.c_str(), library.empty() ? nullptr : library.c_str(), &made);
    }));
    handle_.reset(made);
  }

  void step(const DeviceTensor* x, const DeviceTensor* source, const DeviceTensor* eps, const DeviceTensor* eps_uncond, int type, bool channels_last,
            const py::buffer& table, size_t index, double scale, const UInt64Array& seeds, const DeviceTensor* history,
            uint32_t ring, const DeviceTensor* anchor, const DeviceTensor* in, const DeviceTensor* x0, const DeviceTensor* guide,
            double scale2, const DeviceTensor* variance, const DeviceTensor* grad, const DeviceTensor* known,
            const DeviceTensor* mask, const DeviceTensor* x0_true, const DeviceTensor* kl, size_t channels, size_t pixels,
            uintptr_t stream) {
    const py::buffer_info rows = table.request();
    const size_t row_count = static_cast<size_t>(rows.size * rows.itemsize) / kRowBytes;
    if (index >= row_count) refuse(DDPM_RT_OPTION_ERROR, "index: expected a row of the table, got " + std::to_string(index));
    ddpm_rt_step_operands operands;
    ddpm_rt_step_operands_init(&operands, sizeof operands);
    operands.guide = memory<const float>(guide);
    operands.scale2 = scale2;
    operands.variance = memory<const float>(variance);
    operands.grad = memory<const float>(grad);
    operands.known = memory<const float>(known);
    operands.mask = memory<const float>(mask);
    operands.x0_true = memory<const float>(x0_true);
    operands.kl = memory<double>(kl);
    ddpm_rt_device_step_call call;
    ddpm_rt_device_step_call_init(&call, sizeof call);
    call.x = memory<float>(x);
    call.source = memory<const float>(source);
    call.eps = memory<const void>(eps);
    call.eps_uncond = memory<const void>(eps_uncond);
    call.eps_type = type;
    call.channels_last = channels_last;
    call.row = static_cast<const char*>(rows.ptr) + index * kRowBytes;
    call.next_row = index + 1 < row_count ? static_cast<const char*>(call.row) + kRowBytes : nullptr;
    call.scale = scale;
    call.seeds = seeds.data();
    call.history = memory<float>(history);
    call.ring = ring;
    call.anchor = memory<float>(anchor);
    call.in = memory<float>(in);
    call.x0 = memory<float>(x0);
    call.operands = &operands;
    call.count = static_cast<size_t>(seeds.size());
    call.channels = channels;
    call.pixels = pixels;
    call.stream = reinterpret_cast<void*>(stream);
    ddpm_rt::check(unlocked([&] { return ddpm_rt_device_step(handle_.get(), &call); }));
  }

  void cfg_combine(const DeviceTensor& cond, const DeviceTensor& uncond, const FloatArray& scale, double rescale, int type,
                   size_t elements, const DeviceTensor& out, uintptr_t stream) {
    const float* scales = scale.data();
    const auto count = static_cast<size_t>(scale.size());
    ddpm_rt::check(unlocked([&] {
      return ddpm_rt_device_cfg_combine(handle_.get(), cond.data(), uncond.data(), scales, rescale, type, count, elements,
                                        out.data(), reinterpret_cast<void*>(stream));
    }));
  }

 private:
  struct Release { void operator()(ddpm_rt_device_kernels* kernels) const { ddpm_rt_device_kernels_release(kernels); } };
  std::unique_ptr<ddpm_rt_device_kernels, Release> handle_;
};

}  // namespace

void bind_device_kernels(py::module_& m) {
  using py::arg;
  py::class_<DeviceTensor>(m, "DeviceTensor")
      .def(py::init<const py::capsule&>(), arg("capsule"))
      .def_property_readonly("address", &DeviceTensor::address)
      .def_property_readonly("shape", &DeviceTensor::shape)
      .def_property_readonly("strides", &DeviceTensor::strides)
      .def_property_readonly("device", &DeviceTensor::device)
      .def_property_readonly("dtype", &DeviceTensor::dtype);
  py::class_<Kernels>(m, "DeviceKernels")
      .def(py::init<const std::string&, const std::string&>(), arg("device"), arg("library"))
      .def("step", &Kernels::step, arg("x"), arg("source"), arg("eps"), arg("eps_uncond"), arg("type"), arg("channels_last"),
           arg("rows"), arg("index"), arg("scale"), arg("seeds"), arg("history"), arg("ring"), arg("anchor"), arg("input"), arg("x0"),
           arg("guide"), arg("scale2"), arg("variance"), arg("grad"), arg("known"), arg("mask"), arg("x0_true"), arg("kl"),
           arg("channels"), arg("pixels"), arg("stream"))
      .def("cfg_combine", &Kernels::cfg_combine, arg("cond"), arg("uncond"), arg("scale"), arg("rescale"), arg("type"),
           arg("elements"), arg("out"), arg("stream"));
}
