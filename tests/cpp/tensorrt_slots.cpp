// The slots that the denoiser calls TensorRT by, against NVIDIA's own headers. Built where CMake finds them.
#include <NvInfer.h>

#include <cstdio>
#include <cstring>

#include "check.h"
#include "denoisers/tensorrt_api.h"

namespace api = nvinfer1::apiv;
using namespace ddpm_rt::nv;

namespace {

// Where a virtual method lies in its class's table: the Itanium C++ ABI has 1 + its offset in a pointer to it.
template <class Method>
size_t slot(Method method) {
  uintptr_t word = 0;
  std::memcpy(&word, &method, sizeof word);
  return (word - 1) / sizeof(void*) - 2;  // behind the destructors
}

template <class Theirs>
int32_t number(Theirs value) {
  return static_cast<int32_t>(value);
}

}  // namespace

int main() {
  CHECK(slot(&api::VRuntime::deserializeCudaEngine) == runtime::kDeserializeCudaEngine);

  CHECK(slot(&api::VCudaEngine::createExecutionContext) == engine::kCreateExecutionContext);
  CHECK(slot(&api::VCudaEngine::getNbOptimizationProfiles) == engine::kGetNbOptimizationProfiles);
  CHECK(slot(&api::VCudaEngine::getTensorShape) == engine::kGetTensorShape);
  CHECK(slot(&api::VCudaEngine::getTensorDataType) == engine::kGetTensorDataType);
  CHECK(slot(&api::VCudaEngine::getTensorIOMode) == engine::kGetTensorIoMode);
  CHECK(slot(&api::VCudaEngine::getTensorFormat) == engine::kGetTensorFormat);
  CHECK(slot(&api::VCudaEngine::getProfileShape) == engine::kGetProfileShape);
  CHECK(slot(&api::VCudaEngine::getNbIOTensors) == engine::kGetNbIoTensors);
  CHECK(slot(&api::VCudaEngine::getIOTensorName) == engine::kGetIoTensorName);
  CHECK(slot(&api::VCudaEngine::getDeviceMemorySizeV2) == engine::kGetDeviceMemorySizeV2);
  CHECK(slot(&api::VCudaEngine::createExecutionContextWithRuntimeConfig) == engine::kCreateExecutionContextWithRuntimeConfig);
  CHECK(slot(&api::VCudaEngine::createRuntimeConfig) == engine::kCreateRuntimeConfig);

  CHECK(slot(&api::VExecutionContext::setOptimizationProfileAsync) == context::kSetOptimizationProfileAsync);
  CHECK(slot(&api::VExecutionContext::setInputShape) == context::kSetInputShape);
  CHECK(slot(&api::VExecutionContext::setTensorAddress) == context::kSetTensorAddress);
  CHECK(slot(&api::VExecutionContext::enqueueV3) == context::kEnqueueV3);
  CHECK(slot(&api::VExecutionContext::setDeviceMemoryV2) == context::kSetDeviceMemoryV2);

  CHECK(slot(&api::VRuntimeConfig::setExecutionContextAllocationStrategy) == config::kSetExecutionContextAllocationStrategy);
#ifdef TRT_MAJOR_RTX
  CHECK(slot(&api::VRuntime::getEngineHeaderSize) == runtime::kGetEngineHeaderSize);
  CHECK(slot(&api::VRuntime::getEngineValidity) == runtime::kGetEngineValidity);
  CHECK(slot(&api::VExecutionContext::isStreamCapturable) == context::kIsStreamCapturable);
  CHECK(slot(&api::VRuntimeConfig::setDynamicShapesKernelSpecializationStrategy) == config::kSetDynamicShapesKernelSpecializationStrategy);
  CHECK(number(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER) == kEager);
  CHECK(NV_TENSORRT_MAJOR == kMajorRtx);
#else
  CHECK(NV_TENSORRT_MAJOR == kMajorTensorRt);
#endif

  CHECK(number(nvinfer1::DataType::kFLOAT) == kFloat && number(nvinfer1::DataType::kHALF) == kHalf);
  CHECK(number(nvinfer1::DataType::kINT32) == kInt32 && number(nvinfer1::DataType::kINT64) == kInt64);
  CHECK(number(nvinfer1::DataType::kBF16) == kBf16);
  CHECK(number(nvinfer1::TensorIOMode::kINPUT) == kInput && number(nvinfer1::TensorIOMode::kOUTPUT) == kOutput);
  CHECK(number(nvinfer1::OptProfileSelector::kMIN) == kMin && number(nvinfer1::OptProfileSelector::kMAX) == kMax);
  CHECK(number(nvinfer1::TensorFormat::kLINEAR) == kLinear);
  CHECK(number(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED) == kUserManaged);
  CHECK(number(nvinfer1::ILogger::Severity::kERROR) == kError && number(nvinfer1::ILogger::Severity::kVERBOSE) == kVerbose);
  CHECK(sizeof(nvinfer1::Dims) == sizeof(Dims) && offsetof(nvinfer1::Dims, d) == offsetof(Dims, d));
  CHECK(sizeof(nvinfer1::InterfaceInfo) == sizeof(InterfaceInfo));
  CHECK(sizeof(nvinfer1::ICudaEngine) == sizeof(Object));  // {table, impl}
  CHECK(slot(&nvinfer1::ILogger::log) + 2 == 4 && slot(&nvinfer1::ILogger::getInterfaceInfo) + 2 == 1);
  std::printf("headers of %d.%d.%d\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH);
  return finish();
}
