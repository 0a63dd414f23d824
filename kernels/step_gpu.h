// The step on a GPU: what lies in device memory, who writes it when, and the launchers. Plain C++: no CUDA header.
//
// Notation of step.h. A lane has slots (resident samples) and packed lists of evaluations; `place` is a row of a list.
// N = channels * pixels elements of a sample; canonical order is [C, H, W] flat. Registers of a slot (x, history, anchor,
// preview) are float32 in canonical order. Network inputs and outputs are float32, float16 or bfloat16, NCHW or NHWC.
//
// One tick, all on one stream, in this order:
//   launch_apply    only when the host has a packet: installs or changes slots, draws x_T, first inputs, zero padding
//   (networks)      read in, t, label, rows; write out (and grad)
//   launch_step     reductions where `needs` asks for them, then one pass: x', y', h, preview, next inputs
//   launch_advance  row and ring move on; t, t2, label, rows of the next places; places[] = next[]
//   launch_finish   only for samples whose LAST row this tick executed, before a packet gives their slot away
// networks, launch_step and launch_advance are one graph per (call list, needs): they read every scalar from device memory.
//
// Who writes what
//   GpuLane      the host, once; kernels get it by value. Its addresses never change, so graphs keep them.
//   GpuSlot      launch_apply (all of it), launch_advance (row, ring, flags, places). The host never reads it back: it
//                counts the same numbers itself, and a packet carries the whole slot as it must be from then on.
//   StepRow      the host: tables in device memory, alive while a slot points to them.
//   in           launch_apply (first inputs, padding), launch_step (at next[]).
//   t, label, .. launch_apply, launch_advance.
//   status       launch_apply clears it, launch_step sets bits.
// A change of places in steady state: the packet before tick k sets next[], the step of tick k writes there, the packet
// before tick k + 1 zeroes what fell free. Or the packet before tick k + 1 sets kApplyPlace: the input is made again from x.
//
// A thread moves 16 bytes at a time where it can: N, pixels of NHWC, rows and strides multiples of four elements, lists and
// registers aligned to 16 bytes (8 in 16 bits), all lists NCHW, or all NHWC with no more channels than the sample's three or
// a multiple of four. Rare rows (kNeedRare) do so with NCHW only. Everything else goes element by element, with the same bits.
//
// Bytes per element of launch_step with S per network output and I per network input element (4, or 2 in 16 bits):
//   plain 8 + S + I, guided 8 + 2 S + 2 I, +4 per history entry or anchor read, +4 each for PUSH, KEEP, preview; noise none;
//   +S learned variance, +S or 4 gradient, +8 known image and mask. fp16: 12 plain, 16 guided with two inputs.
//   Each reduction reads what its sums need once more (x 4, S per output); THRESHOLD one to three times.
//
// Launchers return a cudaError_t as int (0: launched; 1 also where this page is not kept: no scratch, too many components).
// They neither allocate nor synchronise, and are capturable. launch_apply copies, zeroes padding, then installs.
#ifndef DDPM_RT_KERNELS_STEP_GPU_H_
#define DDPM_RT_KERNELS_STEP_GPU_H_

#include "step.h"

#if defined(__CUDACC__)
#define DDPM_RT_HOST_DEVICE __host__ __device__
#else
#define DDPM_RT_HOST_DEVICE
#endif

namespace ddpm_rt {

enum GpuType : uint32_t { kGpuF32, kGpuF16, kGpuBF16 };
enum GpuLayout : uint32_t { kGpuNchw, kGpuNhwc };
enum GpuRole { kRoleCond, kRoleUncond, kRoleGuide, kRoles };
constexpr int32_t kNoPlace = -1;

// A packed list [capacity, row]. Element (c, pixel) of a place is at place * row + c * pixels + pixel (NCHW), or at
// place * row + pixel * channels + c (NHWC): `channels` may exceed the sample's, for what is concatenated or learned.
struct GpuTensor {
  void* data;
  GpuType type;
  GpuLayout layout;
  uint32_t channels;
  uint64_t row;
};

// One network's packed evaluations. Null data: the network has no such port.
struct GpuNetwork {
  GpuTensor in, out;
  GpuTensor variance;    // raw second half: out moved on by the sample's channels
  GpuTensor grad;        // classifier's gradient, an output at the place of cond (of the lone evaluation without one)
  float* t;              // [capacity]
  float* t2;             // [capacity]
  int64_t* label;        // [capacity]
  void* rows;            // [capacity, rows_bytes]: precomputed embedding, 16-byte aligned
  uint64_t rows_bytes;
};

enum GpuSlotFlag : uint32_t {
  kSlotActive = 1u << 0,   // cleared by launch_advance after the table's last row
  kSlotPreview = 1u << 1,  // the step also writes x0 into the preview register
};

struct GpuSlot {
  const StepRow* table;          // device memory, row_count rows
  uint32_t row, row_count;       // the row that the next step executes
  uint32_t ring;                 // history[(ring + k) % 3] is h(k+1)
  uint32_t flags;                // GpuSlotFlag
  uint64_t seed;
  float scale, scale2;
  int32_t places[kRoles];        // this tick's outputs; exactly those evaluated are >= 0
  int32_t next[kRoles];          // where the step writes the next input
  int64_t label[kRoles];
  const void* rows[kRoles];      // [row_count, rows_bytes] of (table, label), or null
  const float* known;            // [N] canonical, 16-byte aligned as the next two: BLEND
  const float* mask;             // [N]
  const float* x0_true;          // [N]: VLB
  double* kl;                    // [row_count]: a VLB row writes its own entry, nats per element
};

enum GpuStatus : uint32_t {
  kStatusNonfinite = 1u << 0,    // as step_cpu's slot_bad
  kStatusNeeds = 1u << 1,        // a row needed more than launch_step was told: its sample is not to be used
};

// Constant for a lane's life. `stride`: floats from slot to slot of a register, a multiple of 64.
// Cond and uncond are evaluations of network[0], guide of network[1] (a copy of network[0] where it is the same one).
struct GpuLane {
  GpuSlot* slots;
  uint32_t slot_count;           // at most 65535
  uint32_t channels, pixels;     // of the sample; N below 2^31
  uint64_t stride;
  float* x;                      // [slot_count, stride]
  float* history[3];             // null where no table pushes
  float* anchor;                 // null where no table keeps
  float* preview;
  uint32_t* status;              // [slot_count]
  GpuNetwork network[2];
  void* scratch;                 // gpu_scratch_bytes, zeroed once; null where no table reduces
};

// ---- What a row asks of launch_step

enum GpuNeed : uint32_t {
  kNeedPair = 1u << 0,           // cond and uncond both
  kNeedNoise = 1u << 1,          // z
  kNeedRegisters = 1u << 2,      // history or anchor, read or written; preview
  kNeedRare = 1u << 3,           // the guide's output, learned variance, gradient, known image, THRESHOLD, and all below
  kNeedRescale = 1u << 4,
  kNeedNorm = 1u << 5,
  kNeedThreshold = 1u << 6,
  kNeedVlb = 1u << 7,
  kNeedReductions = kNeedRescale | kNeedNorm | kNeedThreshold | kNeedVlb,
};

// The union over the resident slots' rows is launch_step's `needs`. More than is needed changes no bit.
DDPM_RT_HOST_DEVICE inline uint32_t gpu_needs(const StepRow& row, bool is_pair, bool has_guide, bool has_preview) {
  uint32_t needs = 0;
  if (is_pair && !(row.flags & kNoEval)) needs |= kNeedPair;
  if (row.wx[kZ] != 0.0f) needs |= kNeedNoise;
  bool uses_registers = has_preview || (row.flags & (kPush | kKeep)) != 0;
  for (int k = kH1; k <= kY; ++k) uses_registers = uses_registers || row.wx[k] != 0.0f;
  if (uses_registers) needs |= kNeedRegisters;
  if ((row.flags & kRareFlags) || (has_guide && !(row.flags & kNoEval))) needs |= kNeedRare;
  if (row.flags & kRescale) needs |= kNeedRescale;
  if (row.flags & kNorm) needs |= kNeedNorm;
  if (row.flags & kThreshold) needs |= kNeedThreshold;
  if (row.flags & kVlb) needs |= kNeedVlb;
  return needs;
}

uint64_t gpu_scratch_bytes(uint32_t slot_count, uint64_t elements);

// Executes the current row of every active slot. `needs`: the union of gpu_needs.
int launch_step(const GpuLane& lane, uint32_t needs, void* stream);

// Moves every active slot to its next row and writes t, t2, label and rows of its next places.
int launch_advance(const GpuLane& lane, void* stream);

// ---- Changes of membership

enum GpuApply : uint32_t {
  kApplyBegin = 1u << 0,         // x = sigma * (start or, if null, the normals of stream 0); registers zero, status 0
  kApplyPlace = 1u << 1,         // input c_in * x, t, t2, label and rows at places[], for the slot's current row
};

struct GpuInstall {
  uint32_t slot, apply;          // apply: bits of GpuApply; 0 only replaces the slot
  const float* start;            // [N] canonical, device memory, 16-byte aligned, or null
  float sigma;
  GpuSlot value;
};

struct GpuPadding {              // a place that nobody holds any more: in, t, t2, label and rows become zero
  uint32_t network;
  int32_t place;
};

struct GpuCopy {                 // named conditions that moved; from null: zeros. Disjoint from all else in the packet.
  const void* from;
  void* to;
  uint64_t bytes;
};

// The arrays are in device memory and stay until the launch has run.
struct GpuPacket {
  const GpuInstall* installs;
  const GpuPadding* padding;
  const GpuCopy* copies;
  uint32_t install_count, padding_count, copy_count;
};

int launch_apply(const GpuLane& lane, const GpuPacket& packet, void* stream);

// ---- Results

enum GpuFormat : uint32_t {
  kFinishFloat,                  // float32 [C, H, W]
  kFinishRounded,                // uint8 [H, W, C], half to even
  kFinishTruncated,              // uint8 [H, W, C], towards zero
};

struct GpuFinish {
  uint32_t slot;
  GpuFormat format;
  float lo, hi;                  // data range that maps to 0 .. 255
  void* out;                     // device memory, or pinned host memory that the device can write
  uint32_t* status;              // takes the slot's status, with kStatusNonfinite if x is not finite; may be null
};

// `items` in device memory.
int launch_finish(const GpuLane& lane, const GpuFinish* items, uint32_t count, void* stream);

// ---- The pieces, as in step.h

int launch_normals(uint64_t seed, uint32_t noise_index, uint32_t noise_stream, uint64_t first, uint64_t count, float* out,
                   void* stream);

// [count, elements] each, of one type, as cfg_combine_cpu; out may be cond or uncond. scale [count] in device memory.
// scratch: gpu_scratch_bytes(count, elements), zeroed once; null with phi 0.
int launch_cfg_combine(const void* cond, const void* uncond, const float* scale, float phi, GpuType type, uint32_t count,
                       uint64_t elements, void* out, void* scratch, void* stream);

// ---- A network without a network: the exact denoiser of a Gaussian mixture (csrc/denoisers/gaussian_mixture.cpp).
// Arrays are float64 in device memory; in and out of `network` are float32 NCHW.
struct GpuMixture {
  const double* means;           // [components, N]
  const double* stds;            // [components]
  const double* weights;         // [components]
  const double* alpha_bar;       // [T]
  uint32_t components, T;
  uint32_t prediction;           // 0 eps, 1 x0, 2 v
  uint32_t num_classes;          // > 0: a label below it picks one component
  double time_scale;             // t = index * time_scale
};

int launch_gaussian_mixture(const GpuMixture& mixture, const GpuNetwork& network, uint64_t elements, int32_t first,
                            uint32_t count, void* stream);

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_STEP_GPU_H_
