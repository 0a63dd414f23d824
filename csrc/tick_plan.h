// Which calls cover the evaluations of one tick: pure functions of measured costs.
#ifndef DDPM_RT_TICK_PLAN_H_
#define DDPM_RT_TICK_PLAN_H_

#include <string>
#include <vector>

namespace ddpm_rt {

// A network compiled for `bucket` rows, run `streams` times side by side.
struct Variant {
  int bucket = 1, streams = 1;
  int capacity() const { return bucket * streams; }
};
inline bool operator==(const Variant& a, const Variant& b) { return a.bucket == b.bucket && a.streams == b.streams; }

struct VariantCost {
  Variant variant;
  double seconds;  // of one phase: all `streams` calls side by side
};
using CostTable = std::vector<VariantCost>;

struct Phase {
  Variant variant;
  int first, count;  // evaluations [first, first + count); only the last phase of a tick may be less than full
};

// The cheapest phases that cover [0, m), widest first; of equal plans the one with fewer phases. Empty for m = 0 or an
// empty table.
std::vector<Phase> plan_tick(int m, const CostTable& costs);
double plan_seconds(const std::vector<Phase>& phases, const CostTable& costs);

// Costs of every variant: measured here, recorded by an earlier process, or estimated as a + c * rows.
class CostModel {
 public:
  static constexpr size_t kSamples = 5;  // per variant; later runs change nothing, so plans settle

  // A variant's first samples; the least is its cost, since a busy machine only ever adds. True where one was taken.
  bool add_sample(Variant variant, double seconds);
  void add_compile(double seconds);

  bool is_known(Variant variant) const;  // measured or recorded
  bool is_blank() const { return measured_count() == 0; }
  size_t measured_count() const;
  double seconds(Variant variant) const;
  double compile_seconds() const;

  void load(const std::string& path);        // tolerant: a missing or odd file leaves the model as it is
  void save(const std::string& path) const;  // tolerant too: the folder may be read-only

 private:
  struct Entry {
    Variant variant;
    double recorded = 0;
    std::vector<double> samples;
  };
  double entry_seconds(const Entry& entry) const;
  double drift() const;  // how much slower this process runs than the one that recorded
  Entry& entry(Variant variant);
  const Entry* find(Variant variant) const;

  std::vector<Entry> entries_;
  double compile_total_ = 0, compile_recorded_ = 0;
  int compiles_ = 0;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_TICK_PLAN_H_
