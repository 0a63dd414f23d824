// Tables and embeddings in device memory: each is sent or computed once and kept while it is used, and after that as long
// as there is room.
#ifndef DDPM_RT_GPU_TABLES_H_
#define DDPM_RT_GPU_TABLES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "device.h"
#include "device_denoiser.h"
#include "solver.h"

namespace ddpm_rt {

struct DeviceTable {
  std::shared_ptr<const Table> table;
  PinnedBuffer staging;    // the copy below reads it in the stream's order
  DeviceBuffer rows;       // StepRow [row_count]
  uint32_t needs;          // union of gpu_needs over the rows, of lone evaluations without preview
  uint32_t row_count() const { return static_cast<uint32_t>(table->rows.size()); }
};

// Who uses an entry holds its pointer until the device is done with it; what nobody holds may be released.
class GpuTables {
 public:
  static constexpr size_t kMostTables = 64;

  GpuTables(const DevicePtr& device, const DeviceStream& stream, uint64_t most_bytes)
      : device_(device), stream_(stream), most_bytes_(most_bytes) {}

  // Both allocate for what is new, and throw Error(kDevice) where that fails; embeddings also what the network throws.
  std::shared_ptr<const DeviceTable> table(const std::shared_ptr<const Table>& table);
  // [row_count, rows_bytes] of every row's t with this label.
  std::shared_ptr<const DeviceBuffer> embeddings(const std::shared_ptr<const DeviceTable>& table, int64_t label,
                                                 DeviceDenoiser& denoiser);

 private:
  struct Kept {
    std::shared_ptr<const DeviceTable> table;
    uint64_t used;
  };
  struct KeptRows {
    const DeviceTable* table;  // leaves together with it
    int64_t label;
    std::shared_ptr<const DeviceBuffer> rows;
    uint64_t used;
  };
  void drop_a_table();
  void make_room(uint64_t bytes);

  DevicePtr device_;
  const DeviceStream& stream_;
  const uint64_t most_bytes_;
  uint64_t clock_ = 0, bytes_ = 0;  // bytes_: of the embeddings
  std::vector<Kept> tables_;
  std::vector<KeptRows> rows_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_GPU_TABLES_H_
