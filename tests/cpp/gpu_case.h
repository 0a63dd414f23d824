// Random rows of step_case.h laid out as a GPU lane, and what step_cpu makes of the same rows, byte for byte.
#ifndef DDPM_RT_TESTS_GPU_CASE_H_
#define DDPM_RT_TESTS_GPU_CASE_H_

#include <algorithm>
#include <functional>
#include <numeric>

#include "gpu_arena.h"
#include "step_case.h"

namespace gpu_case {

using namespace ddpm_rt;
using step_case::Case;
using step_case::Random;

struct Setup {
  uint32_t channels, pixels;
  GpuType in_type = kGpuF32, out_type = kGpuF32;
  GpuLayout layout = kGpuNchw;
  bool has_learned = false;     // out has a second half
  uint32_t extra_inputs = 0;    // channels of `in` beyond the sample's: the kernels leave them alone
  bool has_own_guide = false;   // network[1] is another network, with the other types
  size_t shift = 0;             // elements off alignment: element by element
  uint32_t samples = 3;
  bool is_rare = true;
};

// A lane with some active slots among idle ones whose memory is poison.
class World {
 public:
  // `alter` may change a row and its operands before they are laid out.
  World(const Device& device, const Setup& setup, Random* random, const std::function<void(Case*)>& alter = nullptr)
      : setup_(setup), n_(setup.channels * setup.pixels), slots_(setup.samples + 2), capacity_(3 * slots_ + 2),
        arena_(device, bytes_for(setup)) {
    make_lane();
    std::vector<int32_t> places(capacity_);
    std::iota(places.begin(), places.end(), 0);
    for (size_t i = places.size(); i > 1; --i) std::swap(places[i - 1], places[random->below(static_cast<uint32_t>(i))]);
    size_t next_place = 0;
    for (uint32_t s = 0; s < slots_; ++s) idle(s);
    for (uint32_t k = 0; k < setup.samples; ++k) {
      cases_.emplace_back(random, n_);
      Case& c = cases_.back();
      if (setup.is_rare) c.add_rare_flags(random);
      if (alter) alter(&c);
      place(&c, k + (k > 0 ? 1 : 0) + (k > 1 ? 1 : 0), &places, &next_place);  // slots 0, 2, 4, 5, ...
    }
  }

  GpuLane& lane() { return lane_; }
  uint32_t needs() const { return needs_; }
  Arena& arena() { return arena_; }
  Case& sample(size_t k) { return cases_[k]; }
  const Array<uint8_t>& scratch() const { return scratch_; }
  uint32_t status(uint32_t slot) const { return status_[slot]; }

  // Runs step_cpu on the same rows and writes what the device must have written into the twin. Before this, upload().
  void expect_step() {
    std::vector<StepSlot> steps;
    for (size_t k = 0; k < cases_.size(); ++k) steps.push_back(cpu_slot(k));
    std::vector<uint8_t> bad(cases_.size(), 0);
    step_cpu(steps.data(), steps.size(), n_, bad.data());
    for (size_t k = 0; k < cases_.size(); ++k) {
      const Case& c = cases_[k];
      const uint32_t s = slot_of_[k];
      const auto write = [&](const Array<float>& array, int from) {
        std::memcpy(array.host + s * lane_.stride, c.arrays[from].data(), n_ * sizeof(float));
      };
      write(x_, step_case::kStateX);
      for (int h = 0; h < 3; ++h) write(history_[h], step_case::kHistory0 + h);
      write(anchor_, step_case::kAnchor);
      if (c.has[step_case::kX0Out]) write(preview_, step_case::kX0Out);
      if (c.kl != Case::kUnwritten) kl_[2 * s] = c.kl;
      if (bad[k] != 0) status_[s] |= kStatusNonfinite;
      for (int role = 0; role < kRoles; ++role) {
        const int32_t at = table_slots_[s].next[role];
        if (at < 0 || (c.row.flags & kLast)) continue;
        const List& in = in_[role == kRoleGuide && setup_.has_own_guide];
        for (uint32_t i = 0; i < n_; ++i) {
          in.write(in.index(at, i / setup_.pixels, i % setup_.pixels, setup_.pixels),
                   c.arrays[step_case::kIn0 + role][i]);
        }
      }
    }
  }

  // Bytes that differ between device and twin, scratch aside.
  size_t differing() const {
    const std::vector<uint8_t> got = arena_.download();
    const size_t from = arena_.offset(scratch_), to = from + scratch_.size;
    size_t count = 0;
    for (size_t i = 0; i < got.size(); ++i) count += (i < from || i >= to) && got[i] != arena_.twin()[i];
    return count;
  }

 private:
  static size_t bytes_for(const Setup& setup) {
    const size_t n = static_cast<size_t>(setup.channels) * setup.pixels, slots = setup.samples + 2;
    const size_t lists = (3 * slots + 2) * (n * 5 + setup.extra_inputs * setup.pixels) * 2;
    return (slots * (n + 128) * 12 + lists) * 4 + slots * (40000 + n / 32) + 65536;
  }

  void make_lane() {
    const uint32_t in_channels = setup_.channels + setup_.extra_inputs;
    const uint32_t out_channels = setup_.channels * (setup_.has_learned ? 2 : 1);
    lane_ = GpuLane{};
    lane_.slot_count = slots_;
    lane_.channels = setup_.channels;
    lane_.pixels = setup_.pixels;
    lane_.stride = (n_ + 63) / 64 * 64;
    const auto registers = [&](Array<float>* array) {
      *array = arena_.take<float>(slots_ * lane_.stride, setup_.shift);
      return array->device;
    };
    lane_.x = registers(&x_);
    for (int h = 0; h < 3; ++h) lane_.history[h] = registers(&history_[h]);
    lane_.anchor = registers(&anchor_);
    lane_.preview = registers(&preview_);
    for (int network = 0; network < 2; ++network) {
      const bool is_other = network == 1 && setup_.has_own_guide;
      if (network == 1 && !is_other) {
        lane_.network[1] = lane_.network[0];
        in_[1] = in_[0], out_[1] = out_[0];
        break;
      }
      const GpuType in_type = is_other ? setup_.out_type : setup_.in_type;
      const GpuType out_type = is_other ? setup_.in_type : setup_.out_type;
      in_[network] = List(&arena_, in_type, setup_.layout, in_channels, setup_.pixels, capacity_, setup_.shift);
      out_[network] = List(&arena_, out_type, setup_.layout, out_channels, setup_.pixels, capacity_, setup_.shift);
      lane_.network[network].in = in_[network].tensor;
      lane_.network[network].out = out_[network].tensor;
    }
    grad_ = List(&arena_, setup_.out_type, setup_.layout, setup_.channels, setup_.pixels, capacity_, setup_.shift);
    if (setup_.is_rare) lane_.network[0].grad = grad_.tensor;
    variance_ = out_[0].from_channel(setup_.channels, setup_.pixels);
    if (setup_.has_learned) lane_.network[0].variance = variance_.tensor;
    slots_array_ = arena_.take<GpuSlot>(slots_);
    rows_ = arena_.take<StepRow>(2 * slots_);
    status_ = arena_.take<uint32_t>(slots_);
    kl_ = arena_.take<double>(2 * slots_);
    for (int k = 0; k < 3; ++k) operands_[k] = arena_.take<float>(slots_ * lane_.stride, setup_.shift);
    scratch_ = arena_.take<uint8_t>(gpu_scratch_bytes(slots_, n_));
    std::memset(scratch_.host, 0, scratch_.size);
    lane_.slots = slots_array_.device;
    lane_.status = status_.device;
    lane_.scratch = scratch_.device;
    table_slots_ = slots_array_.host;
  }

  void idle(uint32_t s) {
    table_slots_[s].flags = 0;  // all else stays poison: a table at no address, a row of no table
    status_[s] = 0;
  }

  // A slot, its operands in the registers, its network outputs in places of the lists.
  void place(Case* c, uint32_t s, std::vector<int32_t>* places, size_t* next_place) {
    using namespace step_case;
    slot_of_.push_back(s);
    GpuSlot& slot = table_slots_[s];
    slot = GpuSlot{};
    rows_[2 * s] = c->row;
    rows_[2 * s + 1] = c->next;
    slot.table = rows_.device + 2 * s;
    slot.row_count = (c->row.flags & kLast) ? 1 : 2;
    slot.ring = c->ring;
    slot.flags = kSlotActive | (c->has[kX0Out] ? uint32_t{kSlotPreview} : 0u);
    slot.seed = c->seed;
    slot.scale = c->scale;
    slot.scale2 = c->scale2;
    slot.kl = kl_.device + 2 * s;
    const auto take = [&] { return (*places)[(*next_place)++]; };
    const bool has_e = !(c->row.flags & kNoEval);
    const int roles[kRoles] = {kCond, kUncond, kGuide};
    for (int role = 0; role < kRoles; ++role) {
      slot.places[role] = has_e && c->has[roles[role]] ? take() : kNoPlace;
      slot.next[role] = c->has[kIn0 + role] ? (slot.places[role] >= 0 ? slot.places[role] : take()) : kNoPlace;
      if (slot.places[role] < 0) continue;
      const List& out = out_[role == kRoleGuide && setup_.has_own_guide];
      fill(out, slot.places[role], &c->arrays[roles[role]]);
    }
    const int32_t first = slot.places[kRoleCond] >= 0 ? slot.places[kRoleCond] : slot.places[kRoleUncond];
    if (setup_.is_rare && first >= 0) {
      fill(grad_, first, &c->rare[kGradient]);
      if (setup_.has_learned) fill(variance_, first, &c->rare[kVariance]);
    }
    if (first < 0) c->rare[kGradient].clear();
    if (first < 0 || !setup_.has_learned) c->rare[kVariance].clear();
    const auto store = [&](const Array<float>& array, const std::vector<float>& values) -> const float* {
      if (values.empty()) return nullptr;
      std::memcpy(array.host + s * lane_.stride, values.data(), n_ * sizeof(float));
      return array.device + s * lane_.stride;
    };
    store(x_, c->arrays[kStateX]);
    for (int h = 0; h < 3; ++h) store(history_[h], c->arrays[kHistory0 + h]);
    store(anchor_, c->arrays[kAnchor]);
    slot.known = store(operands_[0], c->rare[kKnown]);
    slot.mask = store(operands_[1], c->rare[kMask]);
    slot.x0_true = store(operands_[2], c->rare[kTruth]);
    needs_ |= gpu_needs(c->row, has_e && c->has[kCond] && c->has[kUncond], has_e && c->has[kGuide], c->has[kX0Out]);
  }

  // Writes the values into a place, and gives back what the list's type made of them.
  void fill(const List& list, int32_t at, std::vector<float>* values) const {
    for (uint32_t i = 0; i < n_; ++i) {
      const size_t index = list.index(at, i / setup_.pixels, i % setup_.pixels, setup_.pixels);
      list.write(index, (*values)[i]);
      (*values)[i] = list.read(index);
    }
  }

  StepSlot cpu_slot(size_t k) {
    StepSlot slot = cases_[k].slot();
    if (cases_[k].row.flags & kNoEval) slot.cond = slot.uncond = slot.guide = nullptr;
    return slot;
  }

  const Setup setup_;
  const uint32_t n_, slots_;
  const size_t capacity_;
  Arena arena_;
  GpuLane lane_;
  uint32_t needs_ = 0;
  std::vector<Case> cases_;
  std::vector<uint32_t> slot_of_;
  Array<float> x_, history_[3], anchor_, preview_, operands_[3];
  List in_[2], out_[2], grad_, variance_;
  Array<GpuSlot> slots_array_;
  GpuSlot* table_slots_ = nullptr;
  Array<StepRow> rows_;
  Array<uint32_t> status_;
  Array<double> kl_;
  Array<uint8_t> scratch_;
};

}  // namespace gpu_case

#endif  // DDPM_RT_TESTS_GPU_CASE_H_
