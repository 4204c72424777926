#include "pack/sequence.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace tessera::pack {
namespace {

// Middle element (index len / 2) of chunk `c` of n items split into `chunks` near-equal parts; the
// first n % chunks parts are one longer, as in numpy.array_split.
int chunk_middle(int n, int chunks, int c) {
  const int size = n / chunks, longer = n % chunks;
  const int start = c * size + std::min(c, longer);
  return start + (size + (c < longer ? 1 : 0)) / 2;
}

uint64_t mix(uint64_t z) {  // SplitMix64 (Steele, Lea, Flood 2014)
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace

int padded_sequence(Sampling sampling, int n, int32_t* ranks) {
  if (n > kMaxSequence) {
    if (sampling == Sampling::kV1_1) {
      for (int k = 0; k < kMaxSequence; ++k) ranks[k] = chunk_middle(n, kMaxSequence, k);
    } else {
      // numpy.linspace(0, n - 1, 256, dtype=int64): a float64 product, floored; integer arithmetic
      // differs, first at n = 295.
      const double step = (n - 1) / double(kMaxSequence - 1);
      for (int k = 0; k < kMaxSequence - 1; ++k) ranks[k] = static_cast<int32_t>(k * step);
      ranks[kMaxSequence - 1] = n - 1;
    }
    return kMaxSequence;
  }
  const int length = (n + kBin - 1) / kBin * kBin, fillers = length - n;
  for (int k = 0; k < n; ++k) ranks[k] = k;
  if (sampling == Sampling::kV1_1) {
    // rint(linspace(0, n - 1, fillers + 2)[1:-1]), half to even
    const double step = (n - 1) / double(fillers + 1);
    for (int k = 0; k < fillers; ++k)
      ranks[n + k] = static_cast<int32_t>(std::nearbyint((k + 1) * step));
  } else {
    for (int k = 0; k < fillers; ++k)
      ranks[n + k] = fillers <= n ? chunk_middle(n, fillers, k) : k % n;
  }
  return length;
}

int drawn_sequence(int n, const DrawKey& key, int32_t* ranks) {
  const uint64_t state = mix(mix(mix(mix(key.seed) ^ key.row) ^ key.column) ^ key.stream);
  uint64_t k = 0;
  auto below = [&](int bound) {  // biased by at most bound / 2^64
    const uint64_t word = mix(state + k++ * 0x9E3779B97F4A7C15u);
    return static_cast<int32_t>((static_cast<unsigned __int128>(word) * unsigned(bound)) >> 64);
  };
  if (n < kDraws) {
    for (int i = 0; i < kDraws; ++i) ranks[i] = below(n);
  } else {  // Floyd's sample of kDraws out of n
    for (int i = 0; i < kDraws; ++i) {
      const int j = n - kDraws + i;
      const int32_t t = below(j + 1);
      ranks[i] = std::find(ranks, ranks + i, t) == ranks + i ? t : j;
    }
  }
  std::sort(ranks, ranks + kDraws);
  return kDraws;
}

}  // namespace tessera::pack
