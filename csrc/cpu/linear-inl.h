// linear: y [M, N] = x [M, K] W^T + bias (+ residual), then ReLU if asked.
// W is packed [N / kPanel][K / group][kPanel][group]; x and y are row-major. Panels outside, rows
// inside: one panel stays in the cache while all M rows pass; words of x are broadcast, never
// packed. The sums take one word of x after the other, in order, whatever the tile.

constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes;
// Sums of a tile: 6 x 2 fill the 16 registers of SSE and AVX2 with two weights and a broadcast;
// 8 x 2 are enough for AVX-512 and NEON, which have 32.
#if defined(__aarch64__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = kLanes == 16 ? 8 : 6;
#endif

template <class Dot>
constexpr int words(int k) {
  return (k + Dot::kGroup - 1) / Dot::kGroup;
}

TESSERA_INLINE char* row(const Matrix& a, ptrdiff_t m) {
  return static_cast<char*>(a.data) + m * a.ld * 4;
}

// Columns n.. of row m, `count` of them: a vector, or the last lanes of the row.
TESSERA_INLINE void store_output(const LinearArgs& a, ptrdiff_t m, int n, int count, F y) {
  char* out = row(a.y, m);
  if (a.relu) y = max(y, F{});
  if (a.y.element == Element::kBfloat16) {
    // whole words: past N the sums are 0
    store_narrow(reinterpret_cast<uint16_t*>(out) + n, to_bf16(y), (count + 1) & ~1);
  } else if (count == kLanes) {
    store(reinterpret_cast<float*>(out) + n, y);
  } else {
    store_first(reinterpret_cast<float*>(out) + n, y, count);
  }
}

TESSERA_INLINE F load_residual(const LinearArgs& a, ptrdiff_t m, int n, int count) {
  const float* residual = a.residual + m * a.ld_residual + n;
  return count == kLanes ? load(residual) : load_first(residual, count);
}

// Float sums start from bias and residual; scaled ones (of attention, of int8) meet them at the end.
TESSERA_INLINE F start(const LinearArgs& a, F, ptrdiff_t m, int n, int count) {
  F sum = {};
  if (a.x.scale) return sum;
  if (a.w.bias) sum = load(a.w.bias + n);
  if (a.residual) sum += load_residual(a, m, n, count);
  return sum;
}

TESSERA_INLINE I start(const LinearArgs& a, I, ptrdiff_t, int n, int) {
  return a.w.offset ? load_as<I>(a.w.offset + n) : I{};
}

TESSERA_INLINE F finish(const LinearArgs& a, F sum, ptrdiff_t m, int n, int count) {
  if (!a.x.scale) return sum;
  sum = fma(sum, set(a.x.scale[m]), a.w.bias ? load(a.w.bias + n) : F{});
  return a.residual ? sum + load_residual(a, m, n, count) : sum;
}

TESSERA_INLINE F finish(const LinearArgs& a, I sum, ptrdiff_t m, int n, int count) {
  F y = __builtin_convertvector(sum, F) * set(a.x.scale[m]) * load(a.w.scale + n);
  if (a.w.bias) y += load(a.w.bias + n);
  return a.residual ? y + load_residual(a, m, n, count) : y;
}

template <class Dot, int kRows, int kVectors>
TESSERA_INLINE void linear_tile(const LinearArgs& a, int m, int n, const char* panel) {
  typename Dot::Sum sums[kRows][kVectors];
  const int columns = a.w.N - n;  // left in this panel; the last vector may be partial
  int count[kVectors];
  for (int v = 0; v < kVectors; ++v) count[v] = kLanes;
  if (columns < kVectors * kLanes) count[kVectors - 1] = columns - (kVectors - 1) * kLanes;

  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v)
      sums[i][v] = start(a, typename Dot::Sum{}, m + i, n + v * kLanes, count[v]);
  const char* x = row(a.x, m);
  const ptrdiff_t ld = a.x.ld * 4;
  for (int k = words<Dot>(a.w.K); k > 0; --k, x += 4, panel += kPanel * 4) {
    I w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = load_as<I>(panel + v * kLanes * 4);
    for (int i = 0; i < kRows; ++i) {
      const I word = set_word(x + i * ld);
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Dot::dot(sums[i][v], word, w[v]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) {
      const int column = n + v * kLanes;
      store_output(a, m + i, column, count[v], finish(a, sums[i][v], m + i, column, count[v]));
    }
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

void linear(const LinearArgs& a) {
  switch (a.w.element) {
    case Element::kFloat32:
      return linear_as<Float32>(a);
    case Element::kBfloat16:
      return linear_as<Bfloat16>(a);
    case Element::kInt8:
      return linear_as<Int8>(a);
  }
}
