// Which dates a pixel's model reads (csrc/pack/sequence.h has the rules), how often, and their
// bands gathered: bands [T, P, C], masks [T, P] -> tokens [N, C], pixel after pixel, dates
// ascending.
//
// count: a thread owns a pixel, so that a warp reads 32 neighbours of one date at once, and several
// dates are in flight. It leaves one bit per date; masks and Sentinel-1 bands are not searched
// again. fill: a warp owns a pixel. 32 dates at a time, a lane per date finds rank and
// multiplicity; then the lanes share the kept bands as one run of words, contiguous where they are
// written. The eight pixels of a block are neighbours, 160 bytes of uint16 per date: whole sectors
// are read.
//
// Bytes of a pixel, T dates of Sentinel-2 of which n are read, U and m of Sentinel-1, uint16 and
// int16: read T + 4 U + 20 n + 4 m + T / 2, written 25 n + 9 m; T = 100, n = 50, U = m = 60: 3.4
// KB, at 3.0 TB/s 1.1 ns. No arithmetic to speak of.
#include <algorithm>
#include <stdexcept>

#include "launch.h"
#include "pack.cuh"

namespace tessera::cuda {
namespace {

using pack::kBin;
using pack::kDraws;
using pack::kMaxSequence;

constexpr unsigned kAllLanes = 0xffffffffu;
// Days are checked before they come here, in memory that the caller may have written since; they
// choose a row of a table.
constexpr int kMaxDoy = 366;
constexpr int kThreads = 256, kWarps = kThreads / 32;

// Words of 4 bytes of a date at a pixel: 5 and 10 of Sentinel-2, 1 and 2 of Sentinel-1.
template <int kWords>
constexpr bool kIsFloat = kWords % 2 == 0;

// ---- the rules

__device__ int chunk_middle(int n, int chunks, int c) {
  const int size = n / chunks, longer = n % chunks;
  return c * size + min(c, longer) + (size + (c < longer ? 1 : 0)) / 2;
}

__device__ int padded_length(int n) {
  return min((n + kBin - 1) / kBin * kBin, kMaxSequence);
}

// Rank k of the padded sequence of v2 and v1.1. Products are in float64 and rounded on their own,
// as numpy does it.
__device__ int padded_rank(Sampling sampling, int n, int k) {
  if (n > kMaxSequence) {
    if (sampling == Sampling::kV1_1) return chunk_middle(n, kMaxSequence, k);
    if (k == kMaxSequence - 1) return n - 1;
    return static_cast<int>(__dmul_rn(k, __ddiv_rn(n - 1, kMaxSequence - 1)));
  }
  if (k < n) return k;
  const int fillers = padded_length(n) - n;
  k -= n;
  if (sampling == Sampling::kV1_1)
    return __double2int_rn(__dmul_rn(k + 1, __ddiv_rn(n - 1, fillers + 1)));
  return fillers <= n ? chunk_middle(n, fillers, k) : k % n;
}

__device__ uint64_t mix(uint64_t z) {  // SplitMix64
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

__device__ uint64_t draw_state(const PackInput& in, int p) {
  const uint64_t row = in.row0 + p / in.columns, column = p % in.columns;
  return mix(mix(mix(mix(in.seed) ^ row) ^ column) ^ static_cast<uint64_t>(in.stream));
}

// Word k of a pixel as an integer below `bound`.
__device__ int drawn(uint64_t state, int k, int bound) {
  const uint64_t word = mix(state + k * uint64_t{0x9E3779B97F4A7C15u});
  return static_cast<int>(__umul64hi(word, static_cast<uint64_t>(bound)));
}

// ---- count

// Not 0 where a date is observed.
template <bool kRadar, int kWords>
__device__ unsigned evidence(const Series& s, int64_t at) {
  if (!kRadar) return s.mask ? s.mask[at] : 1;
  unsigned any = 0;
#pragma unroll
  for (int w = 0; w < kWords; ++w) any |= s.bands[at * kWords + w];
  return kIsFloat<kWords> ? any & 0x7fffffffu : any;  // -0.0 is 0
}

__device__ void report_mask(const PackInput& in, int p, int t) {
  const Series& s = in.series[0];
  unsigned value = 0;
  for (; t < s.dates; ++t) {  // to the end, should another stream have changed the mask
    value = s.mask[static_cast<int64_t>(t) * in.pixels + p];
    if (value > 1) break;
  }
  if (value <= 1) return;
  const unsigned long long date = static_cast<int64_t>(p / in.columns) * s.dates + t;
  atomicMin(&in.errors[0], (date * in.columns + p % in.columns) * 256 + value);
}

// Distinct dates of v1.0's draws of n.
__device__ int distinct_draws(const PackInput& in, int p, int n) {
  if (n >= kDraws) return kDraws;
  const uint64_t state = draw_state(in, p);
  uint64_t seen = 0;
  for (int k = 0; n > 0 && k < kDraws; ++k) seen |= uint64_t{1} << drawn(state, k, n);
  return __popcll(seen);
}

template <bool kRadar, int kWords>
__global__ void __launch_bounds__(kThreads)
    count_kernel(const __grid_constant__ PackInput in, int32_t* tokens, int32_t* steps) {
  const int p = blockIdx.x * kThreads + threadIdx.x;
  if (p >= in.pixels) return;
  int n = 0;
  uint32_t* word = in.bits + p;
  for (int i = 0; i < in.series_count; ++i) {
    const Series& s = in.series[i];
    int seen = 0;
    for (int first = 0; first < s.dates; first += 32, word += in.pixels) {
      uint32_t bits = 0;
      unsigned largest = 0;
#pragma unroll
      for (int t = 0; t < 32; ++t) {
        const int64_t at = static_cast<int64_t>(first + t) * in.pixels + p;
        const unsigned value = first + t < s.dates ? evidence<kRadar, kWords>(s, at) : 0;
        bits |= static_cast<uint32_t>(value != 0) << t;
        largest = max(largest, value);
      }
      if (!kRadar && in.binary_masks && largest > 1) report_mask(in, p, first);
      *word = bits;
      seen += __popc(bits);
    }
    in.counts[int64_t{3} * p + s.column] = static_cast<uint16_t>(seen);
    n += seen;
  }
  const bool skip = in.skip && in.skip[p];
  if (in.sampling == Sampling::kV1_0) {
    if (n == 0) n = in.dates;  // v1.0 then draws from all dates
    tokens[p] = skip ? 0 : distinct_draws(in, p, n);
    steps[p] = skip || n == 0 ? 0 : kDraws;
  } else {
    tokens[p] = min(n, kMaxSequence);
    steps[p] = padded_length(n);
  }
}

template <int kWords>
__global__ void __launch_bounds__(kThreads) all_zero_kernel(const __grid_constant__ PackInput in) {
  const int p = blockIdx.x * kThreads + threadIdx.x;
  if (p >= in.pixels) return;
  const Series& s = in.series[0];
  uint32_t any = 0;
  for (int t = 0; t < s.dates && any == 0; ++t)  // the first date ends it almost everywhere
    any = evidence<true, kWords>(s, static_cast<int64_t>(t) * in.pixels + p);
  in.skip[p] = any == 0;
}

// ---- fill

// v1.0's ranks, ascending, to list[kDraws]; a whole warp.
__device__ void draw_ranks(const PackInput& in, int p, int n, int lane, uint16_t* list) {
  const uint64_t state = draw_state(in, p);
#pragma unroll 1
  for (int k = lane; k < kDraws; k += 32)
    list[k] = static_cast<uint16_t>(drawn(state, k, n < kDraws ? n : n - kDraws + k + 1));
  __syncwarp();
#pragma unroll 1
  for (int i = 1; n >= kDraws && i < kDraws; ++i) {  // Floyd's sample: a rank that is taken
    bool taken = false;                              // becomes the largest that may come
#pragma unroll 1
    for (int k = lane; k < i; k += 32) taken |= list[k] == list[i];
    taken = __any_sync(kAllLanes, taken);
    __syncwarp();  // all have read: a vote orders no memory
    if (taken && lane == 0) list[i] = static_cast<uint16_t>(n - kDraws + i);
    __syncwarp();
  }
  int place[2];  // a rank's place is the number of those before it
  uint16_t rank[2];
  static_assert(kDraws <= 64);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int k = lane + 32 * h;
    rank[h] = k < kDraws ? list[k] : 0;
    place[h] = 0;
#pragma unroll 1
    for (int i = 0; i < kDraws; ++i) place[h] += list[i] < rank[h] || (list[i] == rank[h] && i < k);
  }
  __syncwarp();
#pragma unroll
  for (int h = 0; h < 2; ++h)
    if (lane + 32 * h < kDraws) list[place[h]] = rank[h];
  __syncwarp();
}

// The warp's ranks that add to a date's multiplicity: fillers, beside one of every date, where all
// dates are read; else the whole sequence, ascending. Returns how many.
__device__ int list_ranks(const PackInput& in, int p, int n, bool reads_all, int lane,
                          uint16_t* list) {
  if (in.sampling == Sampling::kV1_0) {
    draw_ranks(in, p, n, lane, list);
    return kDraws;
  }
  const int first = reads_all ? n : 0, listed = padded_length(n) - first;
#pragma unroll 1
  for (int k = lane; k < listed; k += 32)
    list[k] = static_cast<uint16_t>(padded_rank(in.sampling, n, first + k));
  __syncwarp();
  return listed;
}

// `count` kept dates of 32 from `first` on, by their lanes; the position of the series' first date
// is for the error. A whole warp.
template <int kWords>
__device__ void copy_bands(const PackInput& in, const Series& s, int p, int first, int position,
                           const uint8_t* kept, int count, int lane, uint32_t* out) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const int j = 32 * i + lane, slot = j / kWords, part = j % kWords;
    if (slot >= count) continue;
    const int t = first + kept[slot];
    const uint32_t value = s.bands[(static_cast<int64_t>(t) * in.pixels + p) * kWords + part];
    out[j] = value;
    if (kIsFloat<kWords> && (value & 0x7f800000u) == 0x7f800000u)
      atomicMin(&in.errors[1 + in.stream],
                (static_cast<unsigned long long>(p) * 65536 + position + t) * 16 + part);
  }
}

template <int kWords>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(const __grid_constant__ PackInput in, const __grid_constant__ PackOutput out) {
  __shared__ uint16_t lists[kWarps][kMaxSequence];
  __shared__ uint8_t kept_lanes[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int p = blockIdx.x * kWarps + warp;
  if (p >= in.pixels) return;
  int token = out.offsets[p];
  if (token == out.offsets[p + 1]) return;
  int n = 0;
  for (int i = 0; i < in.series_count; ++i) n += in.counts[int64_t{3} * p + in.series[i].column];
  const bool none = n == 0;  // and yet tokens: v1.0 draws from all dates
  if (none) n = in.dates;
  const bool reads_all = in.sampling != Sampling::kV1_0 && n <= kMaxSequence;
  uint16_t* const list = lists[warp];
  const int listed = list_ranks(in, p, n, reads_all, lane, list);

  int rank = 0, position = 0;  // of the first date of the word, and of the series
  const uint32_t* word = in.bits + p;
  for (int i = 0; i < in.series_count; position += in.series[i++].dates) {
    const Series& s = in.series[i];
    for (int first = 0; first < s.dates; first += 32, word += in.pixels) {
      const int left = s.dates - first;
      const uint32_t bits = !none ? *word : left < 32 ? (1u << left) - 1 : kAllLanes;
      const uint32_t before = (1u << lane) - 1;
      int multiplicity = 0;
      if (bits >> lane & 1) {
        const int own = rank + __popc(bits & before);
        multiplicity = reads_all;
#pragma unroll 1
        for (int k = 0; k < listed; ++k) multiplicity += list[k] == own;
      }
      const uint32_t kept = __ballot_sync(kAllLanes, multiplicity > 0);
      if (multiplicity > 0) {
        const int slot = __popc(kept & before), t = first + lane;
        kept_lanes[warp][slot] = static_cast<uint8_t>(lane);
        const int day = s.doy[s.doy_per_pixel ? static_cast<int64_t>(t) * in.pixels + p : t];
        out.doy[token + slot] = static_cast<uint16_t>(min(max(day, 0), kMaxDoy));
        out.orbit[token + slot] = s.orbit;
        out.multiplicity[token + slot] = static_cast<uint16_t>(multiplicity);
      }
      __syncwarp();
      copy_bands<kWords>(in, s, p, first, position, kept_lanes[warp], __popc(kept), lane,
                         out.bands + static_cast<int64_t>(token) * kWords);
      __syncwarp();
      rank += __popc(bits);
      token += __popc(kept);
    }
  }
  if (!out.steps) return;
  const int start = out.step_offsets[p], length = out.step_offsets[p + 1] - start;
#pragma unroll 1
  for (int k = lane; k < length; k += 32) {
    int step = k;  // n > 256: all of the sequence are distinct and ascending
    if (in.sampling == Sampling::kV1_0) {
      step = 0;
#pragma unroll 1
      for (int i = 1; i <= k; ++i) step += list[i] != list[i - 1];
    } else if (reads_all && k >= n) {
      step = list[k - n];
    }
    out.steps[start + k] = step;
  }
}

dim3 blocks(int pixels, int per_block) {
  return dim3((static_cast<unsigned>(pixels) + per_block - 1) / per_block);
}

}  // namespace

void mark_all_zero(const PackInput& in, uintptr_t stream) {
  const auto kernel = in.is_float ? all_zero_kernel<10> : all_zero_kernel<5>;
  launch("all_zero_kernel", kernel, blocks(in.pixels, kThreads), kThreads, 0, stream, in);
}

void count_tokens(const PackInput& in, int32_t* tokens, int32_t* steps, uintptr_t stream) {
  const auto kernel = in.stream == 0 ? count_kernel<false, 0>
                      : in.is_float  ? count_kernel<true, 2>
                                     : count_kernel<true, 1>;
  launch("count_kernel", kernel, blocks(in.pixels, kThreads), kThreads, 0, stream, in, tokens,
         steps);
}

void fill_tokens(const PackInput& in, const PackOutput& out, uintptr_t stream) {
  const auto kernel = in.stream == 0 ? (in.is_float ? fill_kernel<10> : fill_kernel<5>)
                                     : (in.is_float ? fill_kernel<2> : fill_kernel<1>);
  launch("fill_kernel", kernel, blocks(in.pixels, kWarps), kThreads, 0, stream, in, out);
}

}  // namespace tessera::cuda
