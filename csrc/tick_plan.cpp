#include "tick_plan.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include <nlohmann/json.hpp>

#include "file_io.h"

namespace ddpm_rt {
namespace {

constexpr double kFirstCompile = 0.3;   // seconds, until one was measured
constexpr double kFixedShare = 0.3;     // a / c of a + c * rows, until two sizes were measured
constexpr double kNarrowStreams = 0.9;  // two streams of up to 4 rows against one of twice the rows, until measured

// A stand-in for "two streams of b rows" in terms of one stream of 2 b.
double streams_factor(Variant v) { return v.streams > 1 && v.bucket <= 4 ? kNarrowStreams : 1.0; }

double least(const std::vector<double>& v) { return *std::min_element(v.begin(), v.end()); }

}  // namespace

std::vector<Phase> plan_tick(int m, const CostTable& costs) {
  std::vector<Phase> phases;
  if (m <= 0 || costs.empty()) return phases;
  struct Best {
    double seconds = 0;
    int phases = 0, choice = -1;
  };
  std::vector<Best> best(static_cast<size_t>(m) + 1);
  for (int covered = 1; covered <= m; ++covered) {
    Best& b = best[static_cast<size_t>(covered)];
    b.seconds = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < costs.size(); ++i) {
      const Best& rest = best[static_cast<size_t>(std::max(0, covered - costs[i].variant.capacity()))];
      const double seconds = rest.seconds + costs[i].seconds;
      const bool fewer = seconds == b.seconds && rest.phases + 1 < b.phases;
      if (seconds < b.seconds || fewer || b.choice < 0) b = {seconds, rest.phases + 1, static_cast<int>(i)};
    }
  }
  for (int left = m; left > 0;) {
    const Variant v = costs[static_cast<size_t>(best[static_cast<size_t>(left)].choice)].variant;
    phases.push_back({v, 0, 0});
    left -= v.capacity();
  }
  std::stable_sort(phases.begin(), phases.end(),
                   [](const Phase& a, const Phase& b) { return a.variant.capacity() > b.variant.capacity(); });
  int first = 0;
  for (Phase& p : phases) {
    p.first = first;
    p.count = std::min(p.variant.capacity(), m - first);
    first += p.count;
  }
  // A plan with a phase to spare cannot be the cheapest, unless some cost is 0 or less: drop it.
  while (!phases.empty() && phases.back().count <= 0) phases.pop_back();
  return phases;
}

double plan_seconds(const std::vector<Phase>& phases, const CostTable& costs) {
  double total = 0;
  for (const Phase& p : phases) {
    for (const VariantCost& c : costs) {
      if (c.variant == p.variant) total += c.seconds;
    }
  }
  return total;
}

double CostModel::drift() const {
  std::vector<double> ratios;
  for (const Entry& e : entries_) {
    if (e.recorded > 0 && !e.samples.empty()) ratios.push_back(least(e.samples) / e.recorded);
  }
  return ratios.empty() ? 1.0 : least(ratios);
}

double CostModel::entry_seconds(const Entry& entry) const {
  return entry.samples.empty() ? entry.recorded * drift() : least(entry.samples);
}

CostModel::Entry& CostModel::entry(Variant variant) {
  for (Entry& e : entries_) {
    if (e.variant == variant) return e;
  }
  entries_.push_back({variant, 0, {}});
  return entries_.back();
}

const CostModel::Entry* CostModel::find(Variant variant) const {
  for (const Entry& e : entries_) {
    if (e.variant == variant) return &e;
  }
  return nullptr;
}

bool CostModel::add_sample(Variant variant, double seconds) {
  Entry& e = entry(variant);
  if (e.samples.size() >= kSamples || !(seconds > 0)) return false;
  e.samples.push_back(seconds);
  return true;
}

void CostModel::add_compile(double seconds) {
  compile_total_ += seconds;
  ++compiles_;
}

bool CostModel::is_known(Variant variant) const {
  const Entry* e = find(variant);
  return e != nullptr && entry_seconds(*e) > 0;
}

size_t CostModel::measured_count() const {
  return static_cast<size_t>(std::count_if(entries_.begin(), entries_.end(), [this](const Entry& e) { return entry_seconds(e) > 0; }));
}

double CostModel::compile_seconds() const {
  if (compiles_ > 0) return compile_total_ / compiles_;
  return compile_recorded_ > 0 ? compile_recorded_ : kFirstCompile;
}

double CostModel::seconds(Variant variant) const {
  const Entry* own = find(variant);
  if (own != nullptr && entry_seconds(*own) > 0) return entry_seconds(*own);
  // Least squares of seconds = a + c rows over what is known, two streams counted as one of twice the rows.
  double n = 0, sb = 0, ss = 0, sbb = 0, sbs = 0;
  for (const Entry& e : entries_) {
    if (!(entry_seconds(e) > 0)) continue;
    const double rows = e.variant.capacity(), took = entry_seconds(e) / streams_factor(e.variant);
    n += 1;
    sb += rows;
    ss += took;
    sbb += rows * rows;
    sbs += rows * took;
  }
  if (n == 0) return 1e-3 * (kFixedShare + variant.capacity());
  const double spread = n * sbb - sb * sb;
  double c = spread > 0 ? (n * sbs - sb * ss) / spread : 0, a = (ss - c * sb) / n;
  if (!(c > 0) || a < 0) {  // one size only, or noise: keep the first guess of a / c
    c = ss / (sb + n * kFixedShare);
    a = kFixedShare * c;
  }
  return streams_factor(variant) * (a + c * variant.capacity());
}

void CostModel::load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return;
  std::string text(1 << 16, '\0');
  file.read(&text[0], static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("variants") || !json["variants"].is_array()) return;
  const auto positive = [](const nlohmann::json& object, const char* key) {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_number()) return 0.0;
    const double value = found->get<double>();
    return std::isfinite(value) && value > 0 && value < 1e4 ? value : 0.0;
  };
  compile_recorded_ = positive(json, "compile_seconds");
  for (const auto& v : json["variants"]) {
    if (!v.is_object()) continue;
    const Variant variant{static_cast<int>(positive(v, "bucket")), static_cast<int>(positive(v, "streams"))};
    const double seconds = positive(v, "seconds");
    if (variant.bucket >= 1 && variant.streams >= 1 && seconds > 0) entry(variant).recorded = seconds;
  }
}

void CostModel::save(const std::string& path) const {
  nlohmann::json json = {{"version", 1}, {"compile_seconds", compile_seconds()}, {"variants", nlohmann::json::array()}};
  for (const Entry& e : entries_) {
    if (!(entry_seconds(e) > 0)) continue;
    json["variants"].push_back({{"bucket", e.variant.bucket}, {"streams", e.variant.streams}, {"seconds", entry_seconds(e)}});
  }
  const std::string text = json.dump(1);
  std::string why;
  TemporaryFile file(path);
  if (file.open(&why) && file.write(text.data(), text.size(), &why)) file.commit(&why);
}

}  // namespace ddpm_rt
