// Raw series of a window of pixels -> packed tokens, in two passes: count (so that the caller can
// allocate exactly), then fill. Reads the window's own bytes, of any strides, and copies only what
// is kept: a tile of any size is packed row block by row block. The caller may write the arrays at
// the same time (core/borrowed.h): then `fill` may throw, or give other values, and stays within
// its room. Legend: docs/data_flow.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pack/sequence.h"

namespace tessera::pack {

enum class Element { kU16, kI16, kF32 };
enum class Observed { kMasked, kNonZero, kAlways };  // where a date counts as observed

constexpr int kMaxDates = 65535;  // of a stream: counts are uint16
constexpr int kMaxDoy = 366;      // tables of the day of year end there

// One list of dates of the window: Sentinel-2, or one Sentinel-1 orbit. Elements are aligned.
struct Series {
  const char* bands;  // [dates, rows, columns, channels], the channels of a pixel contiguous
  ptrdiff_t bands_stride[3];  // bytes
  Element element;
  int channels;
  Observed observed;
  const uint8_t* mask;  // [dates, rows, columns], not 0 = clear; kMasked only
  ptrdiff_t mask_stride[3];
  const char* doy;  // [dates, rows, columns] int32; strides 0 where all pixels share their days
  ptrdiff_t doy_stride[3];
  int dates;
  uint8_t orbit;  // row of the statistics
};

struct Window {
  int64_t rows, columns;
  int64_t row0;  // row of the window's first row in the tile: v1.0's draws depend on it
  Sampling sampling;
  uint64_t seed;
  bool binary_masks;  // mask values beyond 0 and 1 are an error
  int threads;
};

struct Counts {
  std::vector<int64_t> tokens, steps;  // [rows * columns] each
};

// Where `fill` writes; sizes from Counts. steps may be null.
struct Tokens {
  char* bands;                  // [N, C]
  uint16_t* doy;                // [N]
  uint8_t* orbit;               // [N]
  uint16_t* multiplicity;       // [N]
  const int64_t* offsets;       // [P + 1]
  int32_t* steps;               // [S]
  const int64_t* step_offsets;  // [P + 1]
};

class StreamPacker {
 public:
  // `stream` 0 Sentinel-2, 1 Sentinel-1. `skip` [P], or null: pixels that get no token.
  StreamPacker(std::vector<Series> series, int stream, const Window& window, const uint8_t* skip);

  // observed: one array [P] per series (or null), the valid dates before any cut.
  Counts count(const std::vector<uint16_t*>& observed) const;
  // InputError for values that are not finite, days beyond 366, and arrays that changed since.
  void fill(const Tokens& out) const;

 private:
  struct Pixel;
  template <class Body>
  void for_each_pixel(const Body& body) const;
  void observe_row(int64_t row, uint8_t* valid) const;
  int sequence(int n, int64_t row, int64_t column, int32_t* ranks) const;
  void copy_bands(const Series& s, int64_t t, const Pixel& p, char* out) const;
  uint16_t day(const Series& s, int64_t t, const Pixel& p) const;
  void check_unchanged(bool ok, const Pixel& p) const;

  std::vector<Series> series_;
  int stream_, dates_ = 0;
  Window window_;
  const uint8_t* skip_;
};

// skip[P] = 1 where every band of every date is 0: v1.0 does not run such a pixel.
void mark_all_zero(const Series& series, const Window& window, uint8_t* skip);

}  // namespace tessera::pack
