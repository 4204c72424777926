// linear: y [M, N] = x [M, K] W^T + bias (+ residual), then ReLU if asked.
// W is packed [N / kPanel][K / group][kPanel][group]; x and y are row-major. Panels outside, rows
// inside: one panel stays in the cache while all M rows pass; words of x are broadcast, never
// packed. The sums take one word of x after the other, in order, whatever the tile.

constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes;
// Sums of a tile: 6 x 2 fill the 16 registers of SSE and AVX2 with two weights and a broadcast;
// 8 x 2 are enough for AVX-512 and NEON, which have 32. Emulated ones are slow to compile.
#if defined(__aarch64__) || defined(__AVX512F__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = kLanes == 16 ? 3 : 6;
#endif

template <class Dot>
constexpr int words(int k) {
  return (k + Dot::kGroup - 1) / Dot::kGroup;
}

TESSERA_INLINE char* row(const Matrix& a, ptrdiff_t m) {
  return static_cast<char*>(a.data) + m * a.ld * 4;
}

// Out of line where it is a call of memcpy: this is unrolled with the rows of a tile.
#if defined(__AVX512F__) || TESSERA_LANES == 8
#define TESSERA_PARTIAL TESSERA_INLINE
#else
#define TESSERA_PARTIAL __attribute__((noinline))
#endif
TESSERA_PARTIAL void store_last(float* p, F v, int n) {
  store_first(p, v, n);
}
TESSERA_PARTIAL F load_last(const float* p, int n) {
  return load_some(p, n);
}
#undef TESSERA_PARTIAL
__attribute__((noinline)) void store_last(uint16_t* p, F v, int n) {
  store_narrow(p, to_bf16(v), n);
}

// A tile's sums stay in registers from start to store: every loop over them is unrolled, and every
// choice is made outside the loops.
#define TESSERA_EACH_SUM                                  \
  _Pragma("GCC unroll 8") for (int i = 0; i < kRows; ++i) \
      _Pragma("GCC unroll 8") for (int v = 0; v < kVectors; ++v)

template <class Dot, int kRows, int kVectors>
struct Tile {
  using Sum = typename Dot::Sum;
  const LinearArgs& a;
  int m, n;   // first row and column
  int count;  // columns of the last vector
  Sum sums[kRows][kVectors];

  TESSERA_INLINE F residual(int i, int v) const {
    const float* from = a.residual + (m + i) * a.ld_residual + n + v * kLanes;
    return v < kVectors - 1 ? load(from) : load_last(from, count);
  }

  // Float sums start from bias and residual; int8 ones meet them at the end.
  TESSERA_INLINE void start() {
    if constexpr (Dot::kElement == Element::kInt8) {
      TESSERA_EACH_SUM sums[i][v] = load_as<I>(a.w.offset + n + v * kLanes);
    } else {
      if (a.w.bias) {
        TESSERA_EACH_SUM sums[i][v] = load(a.w.bias + n + v * kLanes);
      } else {
        TESSERA_EACH_SUM sums[i][v] = F{};
      }
      if (a.residual) {
        TESSERA_EACH_SUM sums[i][v] += residual(i, v);
      }
    }
  }

  TESSERA_INLINE void multiply(const char* panel) {
    const char* x = row(a.x, m);
    const ptrdiff_t ld = a.x.ld * 4;
    for (int k = words<Dot>(a.w.K); k > 0; --k, x += 4, panel += kPanel * 4) {
      I w[kVectors];
      _Pragma("GCC unroll 8") for (int v = 0; v < kVectors; ++v) w[v] =
          load_as<I>(panel + v * kLanes * 4);
      TESSERA_EACH_SUM sums[i][v] = Dot::dot(sums[i][v], word_of(x + i * ld), w[v]);
    }
  }

  TESSERA_INLINE void finish() {
    F y[kRows][kVectors];
    if constexpr (Dot::kElement == Element::kInt8) {
      TESSERA_EACH_SUM {
        const F scale = set(a.x.scale[m + i]) * load(a.w.scale + n + v * kLanes);
        y[i][v] =
            fma(__builtin_convertvector(sums[i][v], F), scale, load(a.w.bias + n + v * kLanes));
      }
      if (a.residual) {
        TESSERA_EACH_SUM y[i][v] += residual(i, v);
      }
    } else {
      TESSERA_EACH_SUM y[i][v] = sums[i][v];
      if (a.x.scale) {
        TESSERA_EACH_SUM y[i][v] *= set(a.x.scale[m + i]);
      }
    }
    if (a.relu) {
      TESSERA_EACH_SUM y[i][v] = max(y[i][v], F{});
    }
    if (a.y.element == Element::kBfloat16)
      store_rows<uint16_t>(y, (count + 1) & ~1);  // whole words: past N the sums are 0
    else
      store_rows<float>(y, count);
  }

  // `last`: elements of the last vector.
  template <class T>
  TESSERA_INLINE void store_rows(const F (&y)[kRows][kVectors], int last) {
    T* out[kRows];
    for (int i = 0; i < kRows; ++i) out[i] = reinterpret_cast<T*>(row(a.y, m + i)) + n;
    if (last == kLanes) {
      TESSERA_EACH_SUM store_some(out[i] + v * kLanes, y[i][v], kLanes);
    } else {
      _Pragma("GCC unroll 8") for (int i = 0; i < kRows; ++i) {
        for (int v = 0; v < kVectors - 1; ++v) store_some(out[i] + v * kLanes, y[i][v], kLanes);
        store_last(out[i] + (kVectors - 1) * kLanes, y[i][kVectors - 1], last);
      }
    }
  }
};

template <class Dot, int kRows, int kVectors>
TESSERA_INLINE void linear_tile(const LinearArgs& a, int m, int n, const char* panel) {
  const int columns = a.w.N - n - (kVectors - 1) * kLanes;
  Tile<Dot, kRows, kVectors> tile{a, m, n, columns < kLanes ? columns : kLanes, {}};
  tile.start();
  tile.multiply(panel);
  tile.finish();
}

// One tile of `rows` <= kRows rows.
template <class Dot, int kRows, int kVectors>
TESSERA_INLINE void linear_rows(const LinearArgs& a, int rows, int m, int n, const char* panel) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      linear_tile<Dot, kRows, kVectors>(a, m, n, panel);
    else
      linear_rows<Dot, kRows - 1, kVectors>(a, rows, m, n, panel);
  }
}

// Whole tiles, then the last kTileRows + 1 .. 2 kTileRows - 1 rows as two halves: a tile of one or
// two rows would wait for each sum.
template <class Dot, int kVectors>
TESSERA_INLINE void linear_panel(const LinearArgs& a, int n, const char* panel) {
  int m = 0;
  for (; a.M - m >= 2 * kTileRows || a.M - m == kTileRows; m += kTileRows)
    linear_tile<Dot, kTileRows, kVectors>(a, m, n, panel);
  const int rest = a.M - m, first = rest > kTileRows ? (rest + 1) / 2 : rest;
  linear_rows<Dot, kTileRows, kVectors>(a, first, m, n, panel);
  linear_rows<Dot, kTileRows, kVectors>(a, rest - first, m + first, n, panel);
}

template <class Dot>
void linear_as(const LinearArgs& a) {
  const char* packed = static_cast<const char*>(a.w.packed);
  for (int n = 0; n < a.w.N; n += kPanel) {
    const char* panel = packed + ptrdiff_t(n) * words<Dot>(a.w.K) * 4;
    if (a.w.N - n > kLanes)
      linear_panel<Dot, 2>(a, n, panel);
    else
      linear_panel<Dot, 1>(a, n, panel);
  }
}
