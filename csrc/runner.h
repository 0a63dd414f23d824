// A network and the packed list it reads: chooses, prepares and times the calls that cover a tick. One thread.
#ifndef DDPM_RT_RUNNER_H_
#define DDPM_RT_RUNNER_H_

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "conditions.h"
#include "denoiser.h"
#include "embedding_cache.h"
#include "error.h"
#include "qualify.h"
#include "tick_plan.h"

namespace ddpm_rt {

using LogFn = std::function<void(int level, const std::string& message)>;

// One way to run the network. The first whose self-test passes is kept.
struct Candidate {
  std::string precision;                               // what it is called in tolerances and info()
  std::function<std::unique_ptr<Denoiser>()> make;
};

// Which variants are worth having. The defaults are the CPU's.
struct VariantPolicy {
  int largest_bucket = 32;
  int first_of_many = 16;      // the first variant for more rows than this, where nothing is known
  size_t most_variants = 6;    // compiled variants do not share their weights
  bool times_first = false;    // the first variant is timed when it is prepared, not by the ticks it runs
  size_t host_rows = 0;        // rows of `evaluations`; 0: enough for a tick
};

struct RunnerOptions {
  int max_batch = 32;
  int threads = 1;
  bool batch_invariant = true;
  std::string cache_dir;     // empty: costs are not kept
  std::string digest;        // of the network's section
  LogFn log;
  VariantPolicy variants;
};

class Runner {
 public:
  // `plan` null: no self-test. Throws what the first candidate throws.
  Runner(const ModelSpec& spec, const Plan* plan, std::vector<Candidate> candidates, RunnerOptions options);
  ~Runner();

  const Limits& limits() const { return denoiser_->limits(); }
  const Evaluations& evaluations() const { return evaluations_; }

  // Makes m evaluations runnable; prepares further variants where `ticks` more of these repay it. Throws Error(kBackend).
  void expect(int m, double ticks);
  // The calls that cover evaluations [0, m), by today's costs.
  const std::vector<Phase>& phases(int m);
  double phase_seconds(const Phase& phase) const { return costs_.seconds(phase.variant); }
  void count_tick(int m) { ticks_seen_[static_cast<size_t>(m)] += 1; }
  void embed(size_t e, int64_t label, const StepRow* row, const StepRow* end);
  void set_conditions(size_t e, const ConditionRows& rows, size_t image) { conditions_->put(evaluations_, e, rows, image); }
  void zero_padding(int first, int last);

  struct Failure {
    int first, count;
    Code code;
    std::string message;
  };
  // Runs evaluations [0, m). A call that fails is reported with its stretch; the others' outputs are valid. Where batch
  // sizes are free, a failed call is tried again owner by owner, so that one owner's fault stays its own.
  void run(int m, const void* const* owner, std::vector<Failure>* failures);

  void save_costs();
  double run_seconds() const { return run_seconds_; }      // inside Denoiser::run, ticks only
  double embed_seconds() const { return embed_seconds_; }  // inside Denoiser::embed and the cache around it
  // JSON object text: what info() shows of the backend. Any thread.
  std::string report() const;

 private:
  struct Prepared {
    Variant variant;
    bool is_usable;
    std::string probe;  // "reference", "passed", "failed", "error"
  };

  void allocate(const Limits& limits);
  void adopt_candidate();  // candidates_[current_]: make, bind, read its self-test and recorded costs
  void open_first(int m);
  Variant first_variant(int m) const;
  void prepare(Variant variant);
  void check_self_test(Variant variant);
  void use_single_rows();
  bool is_prepared(Variant variant) const;
  std::vector<Variant> possible() const;
  CostTable usable() const;
  void run_any_batch(int m, const void* const* owner, std::vector<Failure>* failures);
  bool try_calls(const Call* calls, size_t count, Failure* failure);
  void publish();
  void log(int level, const std::string& message) const;

  const ModelSpec& spec_;
  const Plan* plan_;
  std::vector<Candidate> candidates_;
  size_t current_ = 0;
  const RunnerOptions options_;
  std::unique_ptr<Denoiser> denoiser_;
  struct AlignedDelete {
    void operator()(char* p) const;
  };
  std::unique_ptr<char[], AlignedDelete> memory_;
  Evaluations evaluations_;
  std::unique_ptr<EmbeddingCache> embeddings_;
  std::unique_ptr<PlacedConditions> conditions_;

  SelfTestCase self_test_;
  double self_test_error_ = -1;         // not run yet
  std::string refused_;                 // why no candidate can be used; permanent
  std::string cost_path_;
  CostModel costs_;
  bool costs_changed_ = false;  // since they were saved
  bool is_open_ = false;        // a first variant has passed its self-test
  std::vector<Prepared> prepared_;
  bool single_rows_only_ = false;
  std::vector<float> reference_;        // the probe's answer of the first variant
  double run_seconds_ = 0, embed_seconds_ = 0;
  std::vector<double> ticks_seen_;      // by m
  std::vector<std::vector<Phase>> plans_;  // by m; empty: not planned with today's costs

  mutable std::mutex report_mutex_;
  std::string report_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_RUNNER_H_
