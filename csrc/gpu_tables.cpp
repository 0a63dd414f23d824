#include "gpu_tables.h"

#include <algorithm>
#include <cstring>

namespace ddpm_rt {
namespace {

constexpr size_t kEmbedAtOnce = 64;

bool same_rows(const Table& a, const Table& b) {
  return a.rows.size() == b.rows.size() && std::memcmp(a.rows.data(), b.rows.data(), a.rows.size() * sizeof(StepRow)) == 0;
}

// Drops the entry that nobody else holds and that was used the longest ago; false: there is none.
template <typename Entry, typename Pointer>
bool drop_oldest(std::vector<Entry>* entries, Pointer Entry::* held, Entry* dropped) {
  auto oldest = entries->end();
  for (auto it = entries->begin(); it != entries->end(); ++it) {
    if ((*it.*held).use_count() == 1 && (oldest == entries->end() || it->used < oldest->used)) oldest = it;
  }
  if (oldest == entries->end()) return false;
  *dropped = std::move(*oldest);
  entries->erase(oldest);
  return true;
}

}  // namespace

std::shared_ptr<const DeviceTable> GpuTables::table(const std::shared_ptr<const Table>& table) {
  ++clock_;
  for (int by_content = 0; by_content < 2; ++by_content) {
    for (Kept& kept : tables_) {
      const std::shared_ptr<const Table>& known = kept.table->table;
      if (by_content ? !same_rows(*known, *table) : known != table) continue;
      kept.used = clock_;
      return kept.table;
    }
  }
  if (tables_.size() >= kMostTables) drop_a_table();
  auto made = std::make_shared<DeviceTable>();
  const size_t bytes = table->rows.size() * sizeof(StepRow);
  made->table = table;
  made->staging = PinnedBuffer(device_, bytes, "table");
  made->rows = DeviceBuffer(device_, bytes, "table");
  made->needs = 0;
  for (const StepRow& row : table->rows) made->needs |= gpu_needs(row, false, false, false);
  std::memcpy(made->staging.as<char>(), table->rows.data(), bytes);
  stream_.copy(made->rows.as<void>(), made->staging.as<void>(), bytes, DeviceCopy::kToDevice);
  tables_.push_back({made, clock_});
  return made;
}

void GpuTables::drop_a_table() {
  Kept dropped;
  if (!drop_oldest(&tables_, &Kept::table, &dropped)) return;
  const auto is_its = [&](const KeptRows& kept) { return kept.table == dropped.table.get(); };
  for (const KeptRows& kept : rows_) bytes_ -= is_its(kept) ? kept.rows->bytes() : 0;
  rows_.erase(std::remove_if(rows_.begin(), rows_.end(), is_its), rows_.end());
}

void GpuTables::make_room(uint64_t bytes) {
  KeptRows dropped;
  while (bytes_ + bytes > most_bytes_ && drop_oldest(&rows_, &KeptRows::rows, &dropped)) bytes_ -= dropped.rows->bytes();
}

std::shared_ptr<const DeviceBuffer> GpuTables::embeddings(const std::shared_ptr<const DeviceTable>& table, int64_t label,
                                                          DeviceDenoiser& denoiser) {
  ++clock_;
  for (KeptRows& kept : rows_) {
    if (kept.table != table.get() || kept.label != label) continue;
    kept.used = clock_;
    return kept.rows;
  }
  const size_t each = denoiser.limits().rows_bytes, count = table->row_count();
  make_room(each * count);
  auto rows = std::make_shared<DeviceBuffer>(device_, each * count, "embeddings");
  float t[kEmbedAtOnce];
  int64_t labels[kEmbedAtOnce];
  std::fill_n(labels, kEmbedAtOnce, label);
  for (size_t first = 0; first < count; first += kEmbedAtOnce) {
    const size_t n = std::min(kEmbedAtOnce, count - first);
    for (size_t i = 0; i < n; ++i) t[i] = table->table->rows[first + i].t;
    denoiser.embed(t, labels, n, rows->as<char>() + first * each, stream_);
  }
  bytes_ += rows->bytes();
  rows_.push_back({table.get(), label, rows, clock_});
  return rows;
}

}  // namespace ddpm_rt
