// linear on AMX tiles, for bfloat16 and int8 on the same packed weights: a panel is two tiles wide,
// and 16 of its rows (of 64 bytes, 128 apart) are the right-hand tile of a product. x is read row
// by row as it lies. Sums go through a scratch of [32, kPanel] to the epilogue of linear-inl.h.
//
//   tiles 0-3  sums of 2 x 2 tiles: 32 rows, 32 columns
//   4, 5       x and w over 16 words of k
//   6, 7       x and w over the last 1..15 words, whose shapes the configuration cuts to size

constexpr int kAmxRows = 16, kAmxWords = 16;

struct alignas(64) AmxConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles of `rows` rows of x and a depth of K words in all.
TESSERA_INLINE void configure_tiles(int rows, int depth) {
  const int tail = depth % kAmxWords;
  AmxConfig config;
  for (int t = 0; t < 4; ++t) config.rows[t] = rows, config.column_bytes[t] = 64;
  config.rows[4] = rows, config.column_bytes[4] = 64;
  config.rows[5] = kAmxWords, config.column_bytes[5] = 64;
  if (tail) {
    config.rows[6] = rows, config.column_bytes[6] = tail * 4;
    config.rows[7] = tail, config.column_bytes[7] = 64;
  }
  // gcc 12's _tile_loadconfig says that it reads 8 bytes, and the others' stores are dropped
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// In assembly: gcc 12's macros want the numbers of the tiles as literals.
template <int kTile>
TESSERA_INLINE void load_tile(const char* p, ptrdiff_t ld) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(ld), "i"(kTile) : "memory");
}

template <class Dot, int kSum, int kX, int kW>
TESSERA_INLINE void tile_product() {
  if constexpr (Dot::kElement == Element::kInt8)
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kX), "i"(kW));
  else
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kX), "i"(kW));
}

// One depth of kBlocks x 2 products: x rows from `x` on, weights from `panel` on.
template <class Dot, int kBlocks, int kX, int kW>
TESSERA_INLINE void tile_step(const char* x, ptrdiff_t ld, const char* panel) {
  constexpr int kStride = kPanel * 4;
  load_tile<kX>(x, ld);
  load_tile<kW>(panel, kStride);
  tile_product<Dot, 0, kX, kW>();
  load_tile<kW>(panel + kStride / 2, kStride);
  tile_product<Dot, 1, kX, kW>();
  if constexpr (kBlocks == 2) {
    load_tile<kX>(x + kAmxRows * ld, ld);
    tile_product<Dot, 3, kX, kW>();
    load_tile<kW>(panel, kStride);
    tile_product<Dot, 2, kX, kW>();
  }
}

// Epilogue of rows m.. of a panel, two at a time where there are two.
template <class Dot, int kRows>
TESSERA_INLINE void finish_rows(const LinearArgs& a, int m, int n,
                                const typename Dot::Sum (*sums)[kPanelVectors]) {
  const int columns = a.w.N - n;
  const int vectors = columns > kLanes ? 2 : 1, last = columns - (vectors - 1) * kLanes;
  const int count = last < kLanes ? last : kLanes;
  if (vectors == 2) {
    Tile<Dot, kRows, 2> tile{a, m, n, count, {}};
    tile.start();
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < 2; ++v) tile.sums[i][v] += sums[i][v];
    tile.finish();
  } else {
    Tile<Dot, kRows, 1> tile{a, m, n, count, {}};
    tile.start();
    for (int i = 0; i < kRows; ++i) tile.sums[i][0] += sums[i][0];
    tile.finish();
  }
}

// `rows` rows, at most kBlocks tiles of them, from m on, for every panel.
template <class Dot, int kBlocks>
TESSERA_INLINE void amx_panel(const LinearArgs& a, int m, int rows, int n, const char* panel) {
  using Sum = typename Dot::Sum;
  alignas(64) Sum sums[kBlocks * kAmxRows][kPanelVectors];
  const int depth = words<Dot>(a.w.K);
  const ptrdiff_t ld = a.x.ld * 4;
  const char* x = row(a.x, m);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kBlocks == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  int k = 0;
  for (; k + kAmxWords <= depth;
       k += kAmxWords, x += kAmxWords * 4, panel += kAmxWords * kPanel * 4)
    tile_step<Dot, kBlocks, 4, 5>(x, ld, panel);
  if (k < depth) tile_step<Dot, kBlocks, 6, 7>(x, ld, panel);
  constexpr int kStride = kPanel * 4;
  _tile_stored(0, &sums[0][0], kStride);
  _tile_stored(1, &sums[0][1], kStride);
  if constexpr (kBlocks == 2) {
    _tile_stored(2, &sums[kAmxRows][0], kStride);
    _tile_stored(3, &sums[kAmxRows][1], kStride);
  }
  int i = 0;
  for (; i + 4 <= rows; i += 4) finish_rows<Dot, 4>(a, m + i, n, sums + i);
  for (; i < rows; ++i) finish_rows<Dot, 1>(a, m + i, n, sums + i);
}

// Blocks of 32 rows, one of 16, then the rest, for which the tiles get fewer rows.
template <class Dot>
void linear_amx(const LinearArgs& a) {
  const char* packed = static_cast<const char*>(a.w.packed);
  const int depth = words<Dot>(a.w.K), whole = a.M / kAmxRows * kAmxRows;
  if (whole > 0) {
    configure_tiles(kAmxRows, depth);
    for (int n = 0; n < a.w.N; n += kPanel) {
      const char* panel = packed + ptrdiff_t(n) * depth * 4;
      int m = 0;
      for (; m + 2 * kAmxRows <= whole; m += 2 * kAmxRows)
        amx_panel<Dot, 2>(a, m, 2 * kAmxRows, n, panel);
      if (m < whole) amx_panel<Dot, 1>(a, m, kAmxRows, n, panel);
    }
  }
  if (whole < a.M) {
    configure_tiles(a.M - whole, depth);
    for (int n = 0; n < a.w.N; n += kPanel)
      amx_panel<Dot, 1>(a, whole, a.M - whole, n, packed + ptrdiff_t(n) * depth * 4);
  }
  _tile_release();
}

// Independent products in registers, for the measurement of the peak.
template <class Dot>
int64_t spin_amx(int64_t steps) {
  configure_tiles(kAmxRows, kAmxWords);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t i = 0; i < steps; ++i) {
    tile_product<Dot, 0, 4, 5>();
    tile_product<Dot, 1, 4, 5>();
    tile_product<Dot, 2, 4, 5>();
    tile_product<Dot, 3, 4, 5>();
  }
  _tile_release();
  return steps * 4 * kAmxRows * kAmxRows * kAmxWords * Dot::kGroup;
}
