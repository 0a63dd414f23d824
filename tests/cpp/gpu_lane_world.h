// A lane on the device whose host sends packets as an engine would: samples come and go, places move, evaluations that a
// row does not need are left out. Each tick is compared with the samples as the CPU steps them (gpu_sample.h).
#ifndef DDPM_RT_TESTS_GPU_LANE_WORLD_H_
#define DDPM_RT_TESTS_GPU_LANE_WORLD_H_

#include <algorithm>

#include "check.h"
#include "gpu_sample.h"

namespace gpu_case {

class TickWorld {
 public:
  TickWorld(const Device& device, const LaneSetup& setup, uint64_t seed, void* stream)
      : setup_(setup), n_(setup.channels * setup.pixels), random_(seed), stream_(stream),
        arena_(device, (kSlots * (n_ + 64) * 8 + kCapacity * n_ * 4 + kSamples * (4 * n_ + 64 * Sample::kMostRows + 1000)) * 8 + 1000000) {
    make_lane();
    for (size_t k = 0; k < kSamples; ++k) samples_.emplace_back(&random_, setup, &arena_);
    arena_.upload();
  }

  // Runs all samples to their end. Returns whether everything was as on the CPU.
  bool run() {
    size_t arrived = 0, done = 0;
    std::vector<int> resident;
    for (int tick = 0; done < samples_.size(); ++tick) {
      CHECK(tick < 200);
      std::vector<GpuInstall> installs;
      for (int k : resident) assign(k, &installs);
      for (uint32_t s = 0; s < kSlots && arrived < samples_.size(); ++s) {
        if ((mirror_[s].flags & kSlotActive) || random_.below(3) == 0) continue;
        resident.push_back(static_cast<int>(arrived));
        admit(static_cast<int>(arrived++), s, &installs);
      }
      if (resident.empty()) continue;
      plan_next(resident, &installs);
      send(installs);
      arena_.pull();
      for (int k : resident) check_inputs(samples_[k]);
      check_padding();
      evaluate(resident);
      uint32_t needs = 0;
      for (int k : resident) needs |= needs_of(samples_[k]);
      CHECK(launch_step(lane_, needs, stream_) == 0);
      CHECK(launch_advance(lane_, stream_) == 0);
      for (int k : resident) step_on_cpu(&samples_[k]);
      std::vector<int> finished;
      for (int k : resident) {
        if (samples_[k].is_finished()) finished.push_back(k);
      }
      finish(finished);
      done += finished.size();
      resident.erase(std::remove_if(resident.begin(), resident.end(), [&](int k) { return samples_[k].is_finished(); }),
                     resident.end());
    }
    return same_;
  }

 private:
  static constexpr uint32_t kSlots = 4, kCapacity = 18;
  static constexpr size_t kSamples = 9;

  void make_lane() {
    lane_.slot_count = kSlots;
    lane_.channels = setup_.channels;
    lane_.pixels = setup_.pixels;
    lane_.stride = (n_ + 63) / 64 * 64;
    x_ = arena_.take<float>(kSlots * lane_.stride);
    lane_.x = x_.device;
    for (Array<float>& h : history_) h = arena_.take<float>(kSlots * lane_.stride);
    for (int k = 0; k < 3; ++k) lane_.history[k] = history_[k].device;
    anchor_ = arena_.take<float>(kSlots * lane_.stride);
    lane_.anchor = anchor_.device;
    preview_ = arena_.take<float>(kSlots * lane_.stride);
    lane_.preview = preview_.device;
    status_ = arena_.take<uint32_t>(kSlots);
    lane_.status = status_.device;
    slots_ = arena_.take<GpuSlot>(kSlots);
    lane_.slots = slots_.device;
    for (size_t s = 0; s < kSlots; ++s) slots_[s].flags = 0;
    in_ = List(&arena_, setup_.in_type, setup_.layout, setup_.channels, setup_.pixels, kCapacity, 0);
    out_ = List(&arena_, setup_.out_type, setup_.layout, setup_.channels, setup_.pixels, kCapacity, 0);
    t_ = arena_.take<float>(kCapacity);
    t2_ = arena_.take<float>(kCapacity);
    label_ = arena_.take<int64_t>(kCapacity);
    rows_ = arena_.take<uint8_t>(kCapacity * setup_.rows_bytes);
    GpuNetwork& network = lane_.network[0];
    network.in = in_.tensor;
    network.out = out_.tensor;
    network.t = t_.device;
    network.t2 = t2_.device;
    network.label = label_.device;
    network.rows = setup_.rows_bytes > 0 ? rows_.device : nullptr;
    network.rows_bytes = setup_.rows_bytes;
    lane_.network[1] = network;
    packet_ = arena_.take<uint8_t>(16384);
    results_ = arena_.take<float>(kSlots * n_);
    reported_ = arena_.take<uint32_t>(kSlots);
  }

  uint32_t needs_of(const Sample& s) const {
    return gpu_needs(s.table[s.row], s.needs(s.row, kRoleCond) && s.needs(s.row, kRoleUncond), false, s.is_previewed);
  }

  int hole(const std::vector<int32_t>& taken) const {
    for (int32_t at = 0;; ++at) {
      if (std::find(taken.begin(), taken.end(), at) == taken.end()) return at;
    }
  }

  // The host's mirror says which places a sample has for its current row; who lacks one gets it by a packet now.
  void assign(int k, std::vector<GpuInstall>* installs) {
    Sample& s = samples_[k];
    GpuSlot& mirror = mirror_[s.slot];
    bool is_changed = false;
    for (int role = 0; role < kRoles; ++role) {
      const bool has = mirror.places[role] >= 0, needs = s.needs(s.row, role);
      if (has == needs) continue;
      is_changed = true;
      mirror.places[role] = needs ? hole(taken_) : kNoPlace;
      if (needs) taken_.push_back(mirror.places[role]);
    }
    if (is_changed) install(k, kApplyPlace, installs);
  }

  void install(int k, uint32_t apply, std::vector<GpuInstall>* installs) {
    const Sample& s = samples_[k];
    installs->erase(std::remove_if(installs->begin(), installs->end(),
                                   [&](const GpuInstall& i) {
                                     if (i.slot != static_cast<uint32_t>(s.slot)) return false;
                                     apply |= i.apply;
                                     return true;
                                   }),
                    installs->end());
    installs->push_back({static_cast<uint32_t>(s.slot), apply, s.device_start.device, s.sigma,
                         mirror_[s.slot]});
  }

  void admit(int k, uint32_t slot, std::vector<GpuInstall>* installs) {
    Sample& s = samples_[k];
    s.slot = static_cast<int>(slot);
    GpuSlot& mirror = mirror_[slot];
    mirror = GpuSlot{};
    mirror.table = s.device_table.device;
    mirror.row_count = static_cast<uint32_t>(s.table.size());
    mirror.flags = kSlotActive | (s.is_previewed ? uint32_t{kSlotPreview} : 0u);
    mirror.seed = s.seed;
    mirror.scale = s.scale;
    for (int role = 0; role < kRoles; ++role) {
      mirror.places[role] = s.needs(0, role) ? hole(taken_) : kNoPlace;
      if (mirror.places[role] >= 0) taken_.push_back(mirror.places[role]);
      mirror.next[role] = mirror.places[role];
      mirror.label[role] = s.label[role];
      mirror.rows[role] = setup_.rows_bytes > 0 ? s.device_embedding[role].device : nullptr;
    }
    install(k, kApplyBegin | kApplyPlace, installs);
    s.begin_on_cpu(n_, setup_.in_type);
  }

  // Where the step of this tick writes: known ahead for some samples (next differs from places), the others are given
  // their places by the packet before the next tick.
  void plan_next(const std::vector<int>& resident, std::vector<GpuInstall>* installs) {
    for (int k : resident) {
      const Sample& s = samples_[k];
      GpuSlot& mirror = mirror_[s.slot];
      const bool is_planned = random_.coin();
      int32_t next[kRoles];
      for (int role = 0; role < kRoles; ++role) {
        next[role] = mirror.places[role];
        if (!is_planned) continue;
        const bool needs = s.needs(s.row + 1, role);
        if (!needs) next[role] = kNoPlace;
        if (needs && (next[role] < 0 || random_.below(4) == 0)) {  // a place of its own accord, or another one
          next[role] = hole(taken_);
          taken_.push_back(next[role]);
        }
      }
      if (std::equal(next, next + kRoles, mirror.next)) continue;
      std::copy(next, next + kRoles, mirror.next);
      install(k, 0, installs);
    }
  }

  // Copies arrays into the packet's memory behind each other.
  template <typename T>
  const T* put(const std::vector<T>& values, size_t* at) {
    const size_t from = (*at + 15) / 16 * 16;
    if (!values.empty()) std::memcpy(packet_.host + from, values.data(), values.size() * sizeof(T));
    *at = from + values.size() * sizeof(T);
    CHECK(*at <= packet_.size);
    return reinterpret_cast<const T*>(packet_.device + from);
  }

  void send(const std::vector<GpuInstall>& installs) {
    std::vector<GpuPadding> padding;
    std::vector<int32_t> held;
    for (const GpuSlot& mirror : mirror_) {
      if (!(mirror.flags & kSlotActive)) continue;
      for (int role = 0; role < kRoles; ++role) {
        if (mirror.places[role] >= 0) held.push_back(mirror.places[role]);
        if (mirror.next[role] >= 0) held.push_back(mirror.next[role]);
      }
    }
    for (int32_t at = 0; at < static_cast<int32_t>(kCapacity); ++at) {
      if (std::find(held.begin(), held.end(), at) == held.end()) padding.push_back({0, at});
    }
    taken_ = held;
    arena_.pull();
    size_t at = 0;
    GpuPacket packet{};
    packet.installs = put(installs, &at);
    packet.install_count = static_cast<uint32_t>(installs.size());
    packet.padding = put(padding, &at);
    packet.padding_count = static_cast<uint32_t>(padding.size());
    arena_.upload();
    CHECK(launch_apply(lane_, packet, stream_) == 0);
  }

  void expect(bool is_same, const char* what) {
    if (!is_same && same_) std::printf("tick: %s differs; %u x %u\n", what, setup_.channels, setup_.pixels);
    same_ = same_ && is_same;
  }

  size_t index(const List& list, int32_t place, size_t i) const {
    const uint32_t at = static_cast<uint32_t>(i);
    return list.index(place, at / setup_.pixels, at % setup_.pixels, setup_.pixels);
  }

  void check_inputs(const Sample& s) {
    for (int role = 0; role < kRoles; ++role) {
      const int32_t at = mirror_[s.slot].places[role];
      expect((at >= 0) == s.needs(s.row, role), "which evaluations");
      if (at < 0) continue;
      bool same = true;
      for (size_t i = 0; i < n_; ++i) same = same && float_bits(in_.read(index(in_, at, i))) == float_bits(s.in[role][i]);
      expect(same, "input");
      expect(t_[at] == s.table[s.row].t && t2_[at] == s.table[s.row].t2 && label_[at] == s.label[role], "t or label");
      const size_t bytes = setup_.rows_bytes;
      expect(bytes == 0 || std::memcmp(rows_.host + at * bytes, s.embedding[role].data() + s.row * bytes, bytes) == 0,
             "embedding");
    }
    expect(std::memcmp(x_.host + s.slot * lane_.stride, s.x.data(), n_ * sizeof(float)) == 0, "state");
    expect(status_[s.slot] == 0, "status");
    for (size_t i = s.slot * lane_.stride; s.row == 0 && i < s.slot * lane_.stride + n_; ++i) {
      const float registers[5] = {history_[0][i], history_[1][i], history_[2][i], anchor_[i], preview_[i]};
      for (float r : registers) expect(float_bits(r) == 0, "register of a new slot");
    }
  }

  void check_padding() {
    for (int32_t at = 0; at < static_cast<int32_t>(kCapacity); ++at) {
      if (std::find(taken_.begin(), taken_.end(), at) != taken_.end()) continue;
      bool is_zero = t_[at] == 0.0f && t2_[at] == 0.0f && label_[at] == 0;
      for (size_t i = 0; i < n_; ++i) is_zero = is_zero && float_bits(in_.read(index(in_, at, i))) == 0;
      for (size_t b = 0; b < setup_.rows_bytes; ++b) is_zero = is_zero && rows_[at * setup_.rows_bytes + b] == 0;
      expect(is_zero, "padding");
    }
  }

  void evaluate(const std::vector<int>& resident) {
    for (int k : resident) {
      for (int32_t at : mirror_[samples_[k].slot].places) {
        if (at < 0) continue;
        for (uint32_t i = 0; i < n_; ++i) {
          out_.write(index(out_, at, i), network(in_.read(index(in_, at, i)), t_[at], label_[at], i));
        }
      }
    }
    arena_.upload();
  }

  void step_on_cpu(Sample* s) {
    s->step_on_cpu(setup_.in_type, setup_.out_type);
    GpuSlot& mirror = mirror_[s->slot];
    mirror.row = static_cast<uint32_t>(s->row);
    mirror.ring = s->ring;
    std::copy(mirror.next, mirror.next + kRoles, mirror.places);
    if (s->is_finished()) mirror.flags = 0;
  }

  void finish(const std::vector<int>& finished) {
    if (finished.empty()) return;
    std::vector<GpuFinish> items;
    for (int k : finished) {
      const Sample& s = samples_[k];
      items.push_back({static_cast<uint32_t>(s.slot), s.format, -1.0f, 1.0f, results_.device + s.slot * n_,
                       reported_.device + s.slot});
    }
    arena_.pull();
    size_t at = 0;
    const GpuFinish* device_items = put(items, &at);
    arena_.upload();
    CHECK(launch_finish(lane_, device_items, static_cast<uint32_t>(items.size()), stream_) == 0);
    arena_.pull();
    for (int k : finished) {
      const Sample& s = samples_[k];
      const uint8_t* got = reinterpret_cast<const uint8_t*>(results_.host + s.slot * n_);
      std::vector<uint8_t> want(n_ * sizeof(float));
      if (s.format == kFinishFloat) {
        std::memcpy(want.data(), s.x.data(), want.size());
      } else {
        want.resize(n_);
        to_uint8_nhwc(s.x.data(), setup_.channels, setup_.pixels, -1.0f, 1.0f, s.format == kFinishTruncated, want.data());
      }
      expect(std::memcmp(got, want.data(), want.size()) == 0, "result");
      expect(reported_[s.slot] == 0 && s.bad == 0, "reported status");
      if (s.is_previewed) {
        expect(std::memcmp(preview_.host + s.slot * lane_.stride, s.preview.data(), n_ * sizeof(float)) == 0, "preview");
      }
      expect(!(slots_[s.slot].flags & kSlotActive), "activity");
    }
  }

  const LaneSetup setup_;
  const uint32_t n_;
  Random random_;
  void* const stream_;
  Arena arena_;
  GpuLane lane_{};
  Array<float> x_, history_[3], anchor_, preview_, t_, t2_, results_;
  Array<uint32_t> status_, reported_;
  Array<GpuSlot> slots_;
  Array<int64_t> label_;
  Array<uint8_t> rows_, packet_;
  List in_, out_;
  std::vector<Sample> samples_;
  GpuSlot mirror_[kSlots] = {};
  std::vector<int32_t> taken_;
  bool same_ = true;
};

}  // namespace gpu_case

#endif  // DDPM_RT_TESTS_GPU_LANE_WORLD_H_
