// Normals for a run of consecutive blocks: the inner loop of the step's noise and of fill_normals, CPU only.
//
// normal_pair (philox.h), cut into short loops over arrays: a processor's window then holds enough iterations to hide
// their latency, which the whole function in one loop does not allow (0.6 against 0.9 ns a number on Zen 3).
#ifndef DDPM_RT_KERNELS_NOISE_TILE_H_
#define DDPM_RT_KERNELS_NOISE_TILE_H_

#include "philox.h"

// Without clones the instruction set is the compiler's, with them it is chosen at run time: here too.
#if defined(__x86_64__) && defined(__GNUC__) && (defined(__AVX2__) || !defined(DDPM_RT_NO_CLONES))
#define DDPM_RT_PHILOX_AVX2 1
#include <immintrin.h>
#endif

namespace ddpm_rt {

constexpr size_t kBlocksAtOnce = 16;                    // counters in flight in the hand-written form
constexpr size_t kNormalsAtOnce = 4 * kBlocksAtOnce;    // output of tile_normals is rounded up to this
constexpr size_t kChunkBlocks = 64;
constexpr size_t kChunkPairs = 2 * kChunkBlocks;

struct NoiseKey {
  uint64_t seed;
  uint32_t noise_index, stream;
};

// Words of a chunk by pair: pair 2i of block i is (w0, w1), pair 2i + 1 is (w2, w3).
struct PairWords {
  alignas(32) uint32_t a[kChunkPairs], b[kChunkPairs];
};

DDPM_RT_HD void chunk_words_portable(const NoiseKey& key, uint32_t block, size_t blocks, PairWords* __restrict out) {
  for (size_t i = 0; i < blocks; ++i) {
    const Words words = noise_words(key.seed, block + static_cast<uint32_t>(i), key.noise_index, key.stream);
    out->a[2 * i] = words.w0;
    out->b[2 * i] = words.w1;
    out->a[2 * i + 1] = words.w2;
    out->b[2 * i + 1] = words.w3;
  }
}

#if defined(DDPM_RT_PHILOX_AVX2)
// By hand, because gcc spends more on shuffles than on products (2.0 against 0.6 ns a number). One counter per 64-bit
// lane: the upper half of a lane holds left-overs, which the multiplication ignores.
__attribute__((target("avx2"), noinline)) inline void chunk_words_avx2(const NoiseKey& key, uint32_t block,
                                                                       size_t blocks, PairWords* out) {
  constexpr int kSets = kBlocksAtOnce / 4;  // independent vectors hide the multiplier's latency
  const __m256i m0 = _mm256_set1_epi64x(0xD2511F53u);
  const __m256i m1 = _mm256_set1_epi64x(0xCD9E8D57u);
  for (size_t i = 0; i < blocks; i += kBlocksAtOnce) {
    __m256i c0[kSets], c1[kSets], c2[kSets], c3[kSets];
    for (int v = 0; v < kSets; ++v) {
      const uint32_t first = block + static_cast<uint32_t>(i) + 4u * v;
      c0[v] = _mm256_add_epi32(_mm256_set1_epi64x(first), _mm256_setr_epi64x(0, 1, 2, 3));
      c1[v] = _mm256_set1_epi64x(key.noise_index);
      c2[v] = _mm256_set1_epi64x(key.stream);
      c3[v] = _mm256_setzero_si256();
    }
    uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const __m256i key0 = _mm256_set1_epi64x(k0), key1 = _mm256_set1_epi64x(k1);
      for (int v = 0; v < kSets; ++v) {
        const __m256i p0 = _mm256_mul_epu32(c0[v], m0), p1 = _mm256_mul_epu32(c2[v], m1);
        c0[v] = _mm256_xor_si256(_mm256_srli_epi64(p1, 32), _mm256_xor_si256(c1[v], key0));
        c1[v] = p1;
        c2[v] = _mm256_xor_si256(_mm256_srli_epi64(p0, 32), _mm256_xor_si256(c3[v], key1));
        c3[v] = p0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int v = 0; v < kSets; ++v) {
      const size_t pair = 2 * i + 8 * static_cast<size_t>(v);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out->a + pair),
                         _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c2[v], 32), 0xAA));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out->b + pair),
                         _mm256_blend_epi32(c1[v], _mm256_slli_epi64(c3[v], 32), 0xAA));
    }
  }
}
#endif

DDPM_RT_HD void chunk_words(const NoiseKey& key, uint32_t block, size_t blocks, PairWords* out) {
#if defined(DDPM_RT_PHILOX_AVX2)
#if !defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2")) return chunk_words_portable(key, block, blocks, out);
#endif
  chunk_words_avx2(key, block, blocks, out);
#else
  chunk_words_portable(key, block, blocks, out);
#endif
}

// out[2p], out[2p + 1] = the pair of words a[p], b[p].
DDPM_RT_HD void chunk_normals(const PairWords& words, size_t pairs, float* __restrict out) {
  alignas(64) float f[kChunkPairs], k[kChunkPairs], poly[kChunkPairs], sine[kChunkPairs], cosine[kChunkPairs];
  float* const r = poly;  // the polynomial's place is free once it has been read
  float* const x = k;
  for (size_t p = 0; p < pairs; ++p) log_split(unit_float(words.a[p]), &f[p], &k[p]);
  for (size_t p = 0; p < pairs; ++p) poly[p] = log_poly(f[p]);
  for (size_t p = 0; p < pairs; ++p) r[p] = radius(log_join(f[p], k[p], poly[p]));
  for (size_t p = 0; p < pairs; ++p) x[p] = half_turns(words.b[p]);
  for (size_t p = 0; p < pairs; ++p) {
    sine[p] = sinpi_f32(x[p]);
    cosine[p] = cospi_f32(x[p]);
  }
  for (size_t p = 0; p < pairs; ++p) turn(words.b[p], r[p], sine[p], cosine[p], &out[2 * p], &out[2 * p + 1]);
}

// out[0 .. count) = the normals of block, block + 1, ...; up to the next multiple of kNormalsAtOnce is written.
DDPM_RT_HD void tile_normals(const NoiseKey& key, uint32_t block, size_t count, float* __restrict out) {
  PairWords words;
  size_t blocks = (count + kNormalsAtOnce - 1) / kNormalsAtOnce * kBlocksAtOnce;
  while (blocks > 0) {
    const size_t chunk = blocks < kChunkBlocks ? blocks : kChunkBlocks;
    chunk_words(key, block, chunk, &words);
    chunk_normals(words, 2 * chunk, out);
    blocks -= chunk;
    block += static_cast<uint32_t>(chunk);
    out += 4 * chunk;
  }
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_KERNELS_NOISE_TILE_H_
