// Which of a pixel's n valid dates a model reads, and in which order: the padded sequence as ranks
// 0..n-1. One rule per generation; the naive statement is python/tessera_fast/reference/packing.py.
#pragma once

#include <cstdint>

namespace tessera::pack {

enum class Sampling { kV2, kV1_1, kV1_0 };

constexpr int kMaxSequence = 256;  // v2 and v1.1 cut longer series to this
constexpr int kBin = 8;            // and pad shorter ones to a multiple of this
constexpr int kDraws = 40;         // v1.0 draws this many dates

// Random words of one v1.0 stream: SplitMix64 keyed by (seed, row, column, stream), so that a draw
// depends on the pixel's place alone. stream: 0 Sentinel-2, 1 Sentinel-1.
struct DrawKey {
  uint64_t seed, row, column, stream;
};

// v2 and v1.1, n >= 1: writes the sequence to ranks[kMaxSequence], returns its length.
int padded_sequence(Sampling sampling, int n, int32_t* ranks);

// v1.0, n >= 1: writes kDraws ascending ranks; without replacement where n >= kDraws.
int drawn_sequence(int n, const DrawKey& key, int32_t* ranks);

}  // namespace tessera::pack
