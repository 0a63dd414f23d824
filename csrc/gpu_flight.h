// One tick between its launch and its landing: what it executes, for whom, and the memory its results come in.
#ifndef DDPM_RT_GPU_FLIGHT_H_
#define DDPM_RT_GPU_FLIGHT_H_

#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "request.h"

namespace ddpm_rt {

class GpuFlight {
 public:
  struct Executed {
    std::shared_ptr<Request> request;
    int64_t rows;
  };
  struct Result {
    std::shared_ptr<Request> request;
    int64_t image;
    const void* data;            // in results; null: the device writes the caller's memory
    size_t status;               // index
  };
  struct Preview {
    Request* request;            // held by `executed`
    size_t first, count;
  };

  void open(const DevicePtr& device, size_t slots);
  void clear();                  // keeps the memory
  void add_executed(const std::shared_ptr<Request>& request);
  // Delivers, in this order for each request: rows, its callback, its images. The events were reached.
  void land(size_t elements);
  // Nothing of it will be delivered; the stream has come to rest.
  void abandon(int code, const std::string& message);

  DeviceEvent done, previewed;
  std::vector<Executed> executed;
  std::vector<Result> results;
  std::vector<Preview> previews;
  std::vector<std::shared_ptr<const void>> kept;  // what the device reads until then
  PinnedBuffer staging, status;  // results; one status word each
  size_t staging_used = 0;
  DeviceBuffer preview_copy;     // [slots, N], packed: the registers are written again by the next tick
  PinnedBuffer preview_rows;
  int64_t evaluations = 0, images = 0;
  double network_seconds = 0, launched = 0;

 private:
  void leave_outputs();
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_GPU_FLIGHT_H_
