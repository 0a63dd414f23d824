// The sample's reductions before the step: reduce.h's tree and selection, one block per chunk of a sample.
//
// The block that finishes a sample last (a ticket counts them) puts the chunks together in order: which one that is
// changes no bit. Scratch is left as it was found: tickets and bins zero.
#ifndef DDPM_RT_KERNELS_CUDA_REDUCE_CUH_
#define DDPM_RT_KERNELS_CUDA_REDUCE_CUH_

#include "cuda_slot.cuh"

namespace ddpm_rt {

struct Scratch {
  SlotScratch* slots;
  double* sums;      // [slot, chunk, kSums]
  uint32_t chunks;

  DDPM_RT_DEVICE double* of_slot(uint32_t slot) const { return sums + static_cast<uint64_t>(slot) * chunks * kSums; }
};

inline Scratch scratch_of(void* memory, uint32_t slot_count, uint64_t elements) {
  SlotScratch* const slots = static_cast<SlotScratch*>(memory);
  return {slots, reinterpret_cast<double*>(slots + slot_count), static_cast<uint32_t>(chunks_of(elements))};
}
static_assert(sizeof(SlotScratch) % alignof(double) == 0, "the chunk sums follow the last slot's");

// Whether this block is the sample's last; then what the others wrote to memory is visible. Of the whole block.
DDPM_RT_DEVICE bool is_last_block(uint32_t* ticket, uint32_t blocks) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(ticket, 1u) == blocks - 1;
    if (is_last) *ticket = 0;
  }
  __syncthreads();
  __threadfence();
  return is_last;
}

// The sum over one chunk of kCount terms each: `terms(i, values)` gives those of element i. Afterwards thread 0 has them.
template <int kCount, typename Terms>
DDPM_RT_DEVICE void sum_chunk(uint32_t chunk, uint32_t n, Terms terms, double (&sums)[kCount]) {
  __shared__ double lanes[kCount][kSumLanes];
  static_assert(kBlock == kSumLanes, "a thread is a lane");
  const uint32_t lane = threadIdx.x;
  for (int q = 0; q < kCount; ++q) sums[q] = 0.0;
  for (uint32_t j = 0; j < kSumTerms; ++j) {
    const uint32_t i = chunk * static_cast<uint32_t>(kSumChunk) + j * static_cast<uint32_t>(kSumLanes) + lane;
    if (i >= n) break;
    double values[kCount];
    terms(i, values);
    for (int q = 0; q < kCount; ++q) sums[q] += values[q];
  }
  for (int q = 0; q < kCount; ++q) lanes[q][lane] = sums[q];
  for (uint32_t width = kSumLanes / 2; width > 0; width /= 2) {
    __syncthreads();
    if (lane < width) {
      for (int q = 0; q < kCount; ++q) lanes[q][lane] += lanes[q][lane + width];
    }
  }
  if (lane != 0) return;
  for (int q = 0; q < kCount; ++q) sums[q] = lanes[q][0];
}

// Sums over the sample of this block's slot. Returns whether this thread has them: one thread of the last block.
template <int kCount, typename Terms>
DDPM_RT_DEVICE bool sum_sample(const Scratch& scratch, uint32_t slot, uint32_t n, Terms terms, double (&sums)[kCount]) {
  static_assert(kCount <= kSums, "scratch holds kSums per chunk");
  sum_chunk<kCount>(blockIdx.x, n, terms, sums);
  double* const chunks = scratch.of_slot(slot);
  if (threadIdx.x == 0) {
    for (int q = 0; q < kCount; ++q) chunks[blockIdx.x * kSums + q] = sums[q];
  }
  if (!is_last_block(&scratch.slots[slot].ticket, scratch.chunks) || threadIdx.x != 0) return false;
  for (int q = 0; q < kCount; ++q) sums[q] = 0.0;
  for (uint32_t chunk = 0; chunk < scratch.chunks; ++chunk) {
    for (int q = 0; q < kCount; ++q) sums[q] += __ldcg(&chunks[chunk * kSums + q]);
  }
  return true;
}

// The four sums of two standard deviations, shifted by the sample's first elements.
template <typename Cond, typename Guided>
DDPM_RT_DEVICE bool sum_spreads(const Scratch& scratch, uint32_t slot, uint32_t n, Cond cond, Guided guided, float phi,
                                float* factor) {
  const double first_c = static_cast<double>(cond(0)), first_e = static_cast<double>(guided(0));
  double sums[4];
  const auto terms = [&](uint32_t i, double (&values)[4]) {
    const double c = static_cast<double>(cond(i)) - first_c, e = static_cast<double>(guided(i)) - first_e;
    values[0] = c;
    values[1] = c * c;
    values[2] = e;
    values[3] = e * e;
  };
  if (!sum_sample<4>(scratch, slot, n, terms, sums)) return false;
  const double count = static_cast<double>(n);
  *factor = rescale_factor(static_cast<double>(phi), std_of_sums(sums[0], sums[1], count), std_of_sums(sums[2], sums[3], count));
  return true;
}

__global__ void __launch_bounds__(kBlock) rescale_kernel(const __grid_constant__ GpuLane lane, const Scratch scratch) {
  __shared__ SlotBlock block;
  const uint32_t slot = blockIdx.y;
  if (!load_slot(lane, slot, &block) || !rescales(block)) return;
  const Element element{lane, block, slot};
  sum_spreads(scratch, slot, lane.channels * lane.pixels, [&](uint32_t i) { return element.cond(i); },
              [&](uint32_t i) { return element.guided(i); }, block.row.phi, &scratch.slots[slot].factor);
}

__global__ void __launch_bounds__(kBlock) norm_kernel(const __grid_constant__ GpuLane lane, const Scratch scratch) {
  __shared__ SlotBlock block;
  const uint32_t slot = blockIdx.y;
  if (!load_slot(lane, slot, &block) || !is_normed(block)) return;
  const Element element{lane, block, slot};
  double sums[2];
  const auto terms = [&](uint32_t i, double (&values)[2]) {
    const double e = static_cast<double>(element.e(i)), z = static_cast<double>(element.z(i));
    values[0] = e * e;
    values[1] = z * z;
  };
  if (!sum_sample<2>(scratch, slot, lane.channels * lane.pixels, terms, sums)) return;
  scratch.slots[slot].norm = norm_weights(block.row.wx[kE], block.row.wx[kZ], block.row.snr, sums[0], sums[1]);
}

__global__ void __launch_bounds__(kBlock) vlb_kernel(const __grid_constant__ GpuLane lane, const Scratch scratch) {
  __shared__ SlotBlock block;
  const uint32_t slot = blockIdx.y;
  if (!load_slot(lane, slot, &block) || !has_flag(block, kVlb)) return;
  if (block.slot.x0_true == nullptr || block.slot.kl == nullptr) return;
  const Element element{lane, block, slot};
  double sum[1];
  const auto terms = [&](uint32_t i, double (&values)[1]) {
    values[0] = kl_term(block.row.v0, static_cast<double>(block.row.lq), element.log_variance(i), block.slot.x0_true[i],
                        element.x0(i));
  };
  const uint32_t n = lane.channels * lane.pixels;
  if (!sum_sample<1>(scratch, slot, n, terms, sum)) return;
  block.slot.kl[block.slot.row] = sum[0] / static_cast<double>(n);
}

// ---- THRESHOLD

constexpr uint32_t kSelectElements = 16384;  // of a sample per block; a sample up to this takes one launch

struct SharedHistogram {
  uint32_t bins[kSelectBins];
  uint32_t below, greatest_below, next_above;
  uint32_t partial[kBlock];     // candidates in each thread's bins, then before them
  uint32_t digit, before, next_digit;
};

// The digit whose bin holds the wanted rank, how many candidates have smaller ones, the next digit that occurs.
DDPM_RT_DEVICE void find_digit(SharedHistogram* h, uint32_t rank) {
  constexpr uint32_t kOwn = kSelectBins / kBlock;
  const uint32_t thread = threadIdx.x, first = thread * kOwn;
  uint32_t own = 0;
  for (uint32_t b = first; b < first + kOwn; ++b) own += h->bins[b];
  h->partial[thread] = own;
  if (thread == 0) h->next_digit = kNoBits;
  for (uint32_t reach = 1; reach < kBlock; reach *= 2) {  // inclusive prefix sums
    __syncthreads();
    const uint32_t other = thread >= reach ? h->partial[thread - reach] : 0;
    __syncthreads();
    h->partial[thread] += other;
  }
  uint32_t before = h->partial[thread] - own;
  if (before <= rank && rank < h->partial[thread]) {
    uint32_t digit = first;
    while (before + h->bins[digit] <= rank) before += h->bins[digit++];
    h->digit = digit;
    h->before = before;
  }
  __syncthreads();
  for (uint32_t b = first; b < first + kOwn; ++b) {
    if (b > h->digit && h->bins[b] != 0) atomicMin(&h->next_digit, b);
  }
  __syncthreads();
}

// Of the whole block, on a histogram of the whole sample.
DDPM_RT_DEVICE void select_in_block(const StepRow& row, uint32_t n, int pass, SharedHistogram* h, Selection* selection) {
  if (pass == 0 && threadIdx.x == 0) {
    *selection = select_begin(row.threshold_p, row.threshold_cap, n, h->below, h->greatest_below);
  }
  __syncthreads();
  if (selection->is_done) return;
  find_digit(h, selection->rank);
  if (threadIdx.x == 0) {
    select_advance(selection, pass, h->digit, h->before);
    if (pass == 2) {
      const uint32_t next = h->next_digit < 1024 ? (selection->prefix & ~1023u) | h->next_digit : h->next_above;
      select_finish(selection, row.threshold_cap, h->bins[h->digit], next);
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kBlock) select_kernel(const __grid_constant__ GpuLane lane, const Scratch scratch,
                                                        int first_pass, int last_pass) {
  __shared__ SlotBlock block;
  __shared__ SharedHistogram histogram;
  __shared__ Selection selection;
  const uint32_t slot = blockIdx.y, n = lane.channels * lane.pixels;
  if (!load_slot(lane, slot, &block) || !has_flag(block, kThreshold)) return;
  SlotScratch* const kept = &scratch.slots[slot];
  if (threadIdx.x == 0 && first_pass > 0) selection = kept->selection;
  __syncthreads();
  const Element element{lane, block, slot};
  for (int pass = first_pass; pass <= last_pass; ++pass) {
    if (pass > 0 && selection.is_done) return;
    for (uint32_t b = threadIdx.x; b < kSelectBins; b += kBlock) histogram.bins[b] = 0;
    if (threadIdx.x == 0) {
      histogram.below = histogram.greatest_below = 0;
      histogram.next_above = kNoBits;
    }
    __syncthreads();
    const Candidates range = candidates_of(pass > 0 ? selection.prefix : 0, pass);
    uint32_t below = 0, greatest_below = 0, next_above = kNoBits;
    for (uint32_t i = blockIdx.x * kBlock + threadIdx.x; i < n; i += gridDim.x * kBlock) {
      const uint32_t bits = magnitude_bits(element.raw_x0(i));
      if (static_cast<int32_t>(bits) < range.first) {
        ++below;
        greatest_below = greatest_below < bits ? bits : greatest_below;
      } else if (static_cast<int32_t>(bits) <= range.last) {
        atomicAdd(&histogram.bins[select_digit(pass, bits)], 1u);
      } else if (bits < next_above) {
        next_above = bits;
      }
    }
    if (below != 0) {
      atomicAdd(&histogram.below, below);
      atomicMax(&histogram.greatest_below, greatest_below);
    }
    if (next_above != kNoBits) atomicMin(&histogram.next_above, next_above);
    __syncthreads();
    if (gridDim.x > 1) {
      for (uint32_t b = threadIdx.x; b < kSelectBins; b += kBlock) {
        if (histogram.bins[b] != 0) atomicAdd(&kept->bins[b], histogram.bins[b]);
      }
      if (threadIdx.x == 0) {
        atomicAdd(&kept->below, histogram.below);
        atomicMax(&kept->greatest_below, histogram.greatest_below);
        atomicMax(&kept->next_above, kNoBits - histogram.next_above);
      }
      if (!is_last_block(&kept->ticket, gridDim.x)) return;
      for (uint32_t b = threadIdx.x; b < kSelectBins; b += kBlock) {
        histogram.bins[b] = __ldcg(&kept->bins[b]);
        kept->bins[b] = 0;
      }
      if (threadIdx.x == 0) {
        histogram.below = __ldcg(&kept->below);
        histogram.greatest_below = __ldcg(&kept->greatest_below);
        histogram.next_above = kNoBits - __ldcg(&kept->next_above);
        kept->below = kept->greatest_below = kept->next_above = 0;
      }
    }
    select_in_block(block.row, n, pass, &histogram, &selection);
    if (threadIdx.x == 0) kept->selection = selection;
  }
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_CUDA_REDUCE_CUH_
