// Raw series of a window of pixels on the device -> packed tokens: what csrc/pack does, bit for
// bit. mark_all_zero (v1.0 only), then count; the caller scans the counts into offsets; then fill.
// Everything is on the device and contiguous; P pixels, T dates, C bands, N tokens, S steps.
#pragma once

#include <cstdint>

#include "pack/pack_tokens.h"

namespace tessera::cuda {

using pack::Sampling;

// One list of dates: Sentinel-2, or one Sentinel-1 orbit.
struct Series {
  const uint32_t* bands;  // [T, P, C] uint16, int16 or float32, in words of 4 bytes
  const uint8_t* mask;    // [T, P], not 0 = clear; null = no mask
  const int32_t* doy;     // [T, P] or [T]
  bool doy_per_pixel;
  int dates;      // T
  int column;     // of counts
  uint8_t orbit;  // row of the statistics
};

// The dates of a stream are those of its series, one after the other.
struct PackInput {
  Series series[2];
  int series_count;
  int dates;   // of all series, at most 65,535
  int stream;  // 0 Sentinel-2, read where the mask says so; 1 Sentinel-1, read where not 0
  bool is_float;
  int pixels, columns;  // row p / columns, column p % columns of the window
  int64_t row0;
  Sampling sampling;
  uint64_t seed;
  bool binary_masks;  // report mask values beyond 0 and 1
  uint32_t* bits;     // [words, P] scratch: one bit per date; every series starts a new word
  uint16_t* counts;   // [P, 3] observed dates
  uint8_t* skip;      // [P], or null: pixels that get no token
  // The first offence of each kind, or what the caller put there: [mask, Sentinel-2 values,
  // Sentinel-1 values]. Mask: ((row * T + date) * columns + column) * 256 + value. Values that are
  // not finite: (p * 65,536 + date of the stream) * 16 + band. Ordered as csrc/pack finds them.
  unsigned long long* errors;
};

struct PackOutput {
  uint32_t* bands;              // [N, C] as the series
  uint16_t* doy;                // [N]
  uint8_t* orbit;               // [N]
  uint16_t* multiplicity;       // [N]
  const int32_t* offsets;       // [P + 1]
  int32_t* steps;               // [S], or null
  const int32_t* step_offsets;  // [P + 1]
};

// skip[p] = 1 where every band of every date is 0.
void mark_all_zero(const PackInput& in, uintptr_t stream);
// tokens, steps [P]; writes in.bits and the series' columns of in.counts.
void count_tokens(const PackInput& in, int32_t* tokens, int32_t* steps, uintptr_t stream);
// Reads in.bits and in.counts.
void fill_tokens(const PackInput& in, const PackOutput& out, uintptr_t stream);

}  // namespace tessera::cuda
