#include "pack/pack_tokens.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "core/borrowed.h"
#include "core/check.h"
#include "core/parallel.h"

namespace tessera::pack {
namespace {

size_t element_size(Element element) {
  return element == Element::kF32 ? 4 : 2;
}

const char* at(const char* base, const ptrdiff_t* stride, int64_t t, int64_t row, int64_t column) {
  return base + t * stride[0] + row * stride[1] + column * stride[2];
}

template <class T>
bool any_non_zero(const char* bands, int channels) {
  for (int c = 0; c < channels; ++c)
    if (borrowed<T>(bands + c * sizeof(T)) != 0) return true;
  return false;
}

bool any_non_zero(const Series& s, int64_t t, int64_t row, int64_t column) {
  const char* bands = at(s.bands, s.bands_stride, t, row, column);
  switch (s.element) {
    case Element::kU16: return any_non_zero<uint16_t>(bands, s.channels);
    case Element::kI16: return any_non_zero<int16_t>(bands, s.channels);
    case Element::kF32: return any_non_zero<float>(bands, s.channels);
  }
  return false;
}

std::string place(const Window& window, int64_t t, int64_t row, int64_t column) {
  return "date " + std::to_string(t) + ", row " + std::to_string(window.row0 + row) + ", column " +
         std::to_string(column);
}

const char* name_of(int stream) {
  return stream ? "Sentinel-1" : "Sentinel-2";
}

}  // namespace

StreamPacker::StreamPacker(std::vector<Series> series, int stream, const Window& window,
                           const uint8_t* skip)
    : series_(std::move(series)), stream_(stream), window_(window), skip_(skip) {
  for (const Series& s : series_) {
    check(s.dates <= kMaxDates - dates_, "expected at most 65,535 dates in a stream");
    dates_ += s.dates;
  }
}

// valid [dates, columns]: 1 where the date is observed at this row's pixel.
void StreamPacker::observe_row(int64_t row, uint8_t* valid) const {
  for (const Series& s : series_) {
    for (int64_t t = 0; t < s.dates; ++t, valid += window_.columns) {
      for (int64_t w = 0; w < window_.columns; ++w) {
        if (s.observed == Observed::kMasked) {
          const char* base = reinterpret_cast<const char*>(s.mask);
          const auto clear = borrowed<uint8_t>(at(base, s.mask_stride, t, row, w));
          if (clear > 1 && window_.binary_masks)
            throw InputError("masks: expected only 0 (cloud) and 1 (clear), got " +
                             std::to_string(clear) + " at " + place(window_, t, row, w) +
                             "; turn classes into a mask first");
          valid[w] = clear != 0;
        } else {
          valid[w] = s.observed == Observed::kAlways || any_non_zero(s, t, row, w);
        }
      }
    }
  }
}

int StreamPacker::sequence(int n, int64_t row, int64_t column, int32_t* ranks) const {
  if (n == 0) return 0;
  if (window_.sampling != Sampling::kV1_0) return padded_sequence(window_.sampling, n, ranks);
  const DrawKey key{window_.seed, static_cast<uint64_t>(window_.row0 + row),
                    static_cast<uint64_t>(column), static_cast<uint64_t>(stream_)};
  return drawn_sequence(n, key, ranks);
}

// What the rule made of one pixel.
struct StreamPacker::Pixel {
  int64_t index, row, column;
  const uint8_t* valid;          // [dates] with a stride of the window's columns
  const int32_t* dates;          // [n] the positions that the ranks mean
  int n, length;                 // valid dates; length of the padded sequence
  const int32_t* ranks;          // [length]
  const uint16_t* multiplicity;  // [n], 0 = the date is not read
};

template <class Body>
void StreamPacker::for_each_pixel(const Body& body) const {
  struct Scratch {
    std::vector<uint8_t> valid;
    std::vector<int32_t> dates;
    std::vector<uint16_t> multiplicity;
    int32_t ranks[kMaxSequence];
  };
  std::vector<Scratch> scratch(window_.threads);
  parallel_for(window_.rows, window_.threads, [&](int64_t row, int worker) {
    Scratch& s = scratch[worker];
    s.valid.resize(size_t(dates_) * window_.columns + 1);
    s.dates.resize(dates_ + 1);
    s.multiplicity.resize(dates_ + 1);
    observe_row(row, s.valid.data());
    for (int64_t column = 0; column < window_.columns; ++column) {
      Pixel p{row * window_.columns + column,
              row,
              column,
              s.valid.data() + column,
              s.dates.data(),
              0,
              0,
              s.ranks,
              s.multiplicity.data()};
      const bool skip = skip_ && skip_[p.index];
      for (int t = 0; t < dates_ && !skip; ++t)
        if (p.valid[t * window_.columns]) s.dates[p.n++] = t;
      if (p.n == 0 && !skip && window_.sampling == Sampling::kV1_0)
        for (; p.n < dates_; ++p.n) s.dates[p.n] = p.n;  // v1.0 then draws from all dates
      p.length = sequence(p.n, row, column, s.ranks);
      std::fill_n(s.multiplicity.begin(), p.n, uint16_t{0});
      for (int k = 0; k < p.length; ++k) ++s.multiplicity[s.ranks[k]];
      body(p);
    }
  });
}

Counts StreamPacker::count(const std::vector<uint16_t*>& observed) const {
  Counts counts;
  counts.tokens.resize(window_.rows * window_.columns);
  counts.steps.resize(counts.tokens.size());
  for_each_pixel([&](const Pixel& p) {
    int64_t tokens = 0;
    for (int i = 0; i < p.n; ++i) tokens += p.multiplicity[i] > 0;
    counts.tokens[p.index] = tokens;
    counts.steps[p.index] = p.length;
    int t = 0;
    for (size_t i = 0; i < series_.size(); ++i) {
      int valid = 0;
      for (const int end = t + series_[i].dates; t < end; ++t)
        valid += p.valid[t * window_.columns];
      if (observed[i]) observed[i][p.index] = static_cast<uint16_t>(valid);
    }
  });
  return counts;
}

// The bands of one date at a pixel, copied before they are checked.
void StreamPacker::copy_bands(const Series& s, int64_t t, const Pixel& p, char* out) const {
  const char* bands = at(s.bands, s.bands_stride, t, p.row, p.column);
  if (s.element != Element::kF32) {
    copy_borrowed(bands, s.channels, reinterpret_cast<uint16_t*>(out));
    return;
  }
  float* values = reinterpret_cast<float*>(out);
  copy_borrowed(bands, s.channels, values);
  for (int c = 0; c < s.channels; ++c)
    if (!std::isfinite(values[c]))
      throw InputError(
          name_of(stream_) +
          std::string(" bands: expected finite values where a date is observed, "
                      "got NaN or infinity at ") +
          place(window_, t, p.row, p.column) + ", band " + std::to_string(c) +
          (stream_ ? "; write 0 where nothing was observed" : "; set the mask to 0 there"));
}

uint16_t StreamPacker::day(const Series& s, int64_t t, const Pixel& p) const {
  const auto doy = borrowed<int32_t>(at(s.doy, s.doy_stride, t, p.row, p.column));
  if (doy < 1 || doy > kMaxDoy)
    throw InputError(name_of(stream_) + std::string(" days: expected 1..366, got ") +
                     std::to_string(doy) + " at " + place(window_, t, p.row, p.column));
  return static_cast<uint16_t>(doy);
}

// What `count` said of this pixel is the room that `fill` has: it must say so again.
void StreamPacker::check_unchanged(bool ok, const Pixel& p) const {
  if (!ok)
    throw InputError(name_of(stream_) +
                     std::string(": the arrays changed while they were packed, at row ") +
                     std::to_string(window_.row0 + p.row) + ", column " + std::to_string(p.column) +
                     "; pass arrays that no other thread writes during the call");
}

void StreamPacker::fill(const Tokens& out) const {
  if (series_.empty()) return;
  const size_t size = element_size(series_[0].element) * series_[0].channels;
  for_each_pixel([&](const Pixel& p) {
    int64_t token = out.offsets[p.index];
    const int64_t end = out.offsets[p.index + 1];
    size_t i = 0;                            // series of date t
    int first = 0;                           // position of that series' first date
    thread_local std::vector<int32_t> kept;  // [n] rank -> index among the pixel's tokens
    kept.resize(p.n);
    for (int rank = 0; rank < p.n; ++rank) {
      if (p.multiplicity[rank] == 0) continue;
      check_unchanged(token < end, p);
      while (p.dates[rank] >= first + series_[i].dates) first += series_[i++].dates;
      const Series& s = series_[i];
      const int64_t t = p.dates[rank] - first;
      copy_bands(s, t, p, out.bands + token * size);
      out.doy[token] = day(s, t, p);
      out.orbit[token] = s.orbit;
      out.multiplicity[token] = p.multiplicity[rank];
      kept[rank] = static_cast<int32_t>(token++ - out.offsets[p.index]);
    }
    check_unchanged(token == end, p);
    if (out.steps) {
      const int64_t start = out.step_offsets[p.index];
      check_unchanged(out.step_offsets[p.index + 1] - start == p.length, p);
      for (int k = 0; k < p.length; ++k) out.steps[start + k] = kept[p.ranks[k]];
    }
  });
}

void mark_all_zero(const Series& series, const Window& window, uint8_t* skip) {
  parallel_for(window.rows, window.threads, [&](int64_t row, int) {
    for (int64_t w = 0; w < window.columns; ++w) {
      int t = 0;
      while (t < series.dates && !any_non_zero(series, t, row, w)) ++t;
      skip[row * window.columns + w] = t == series.dates;
    }
  });
}

}  // namespace tessera::pack
